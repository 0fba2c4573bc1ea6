"""`qskd compare`."""

from collections.abc import Sequence
from pathlib import Path

from qskd.cli.parsing import CommandParser, show
from qskd.data.formats.hub import BOX_FORMATS
from qskd.data.sources import FORMATS
from qskd.runs.comparing import compare


def run(arguments: Sequence[str]) -> int:
    """Put runs side by side."""
    given = vars(_parser().read(arguments))
    made = compare(given.pop("runs"), **(given | {"latency": given["latency"] == "on"}))
    show(made.table)
    show(f"report: {made.html}")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "compare", "Finished runs side by side: report.html (one self-contained page), report.md, report.json."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="Folder of a finished run.")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("comparison"), help="Where the report goes. Default: %(default)s."
    )
    images = "Validation images to draw detections on; 0 for none. Default: %(default)s."
    parser.add_argument("--images", type=int, default=6, help=images)
    parser.add_argument(
        "--latency",
        choices=("on", "off"),
        default="on",
        help="Measure all models in turn on this machine, instead of showing what each run measured at its end. "
        "Default: %(default)s.",
    )
    parser.add_argument("--data", help="The data, if it is no longer where the runs had it.")
    as_had = "Default: as the first of the runs had it."
    parser.add_argument("--data_format", choices=FORMATS, help=f"What --data is in. {as_had}")
    parser.add_argument("--box_format", choices=BOX_FORMATS, help=f"Boxes of a Hugging Face dataset. {as_had}")
    parser.add_argument("--val_split", help=f"Which split of --data to look at. {as_had}")
    parser.add_argument("--val_annotations", help="COCO json of the validation split, instead of --data.")
    parser.add_argument("--val_images", help="Folder of the validation images.")
    return parser
