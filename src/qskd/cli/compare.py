"""`qskd compare`."""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from qskd.cli.parsing import show
from qskd.runs.comparing import compare
from qskd.runs.options import SourceOptions


def run(arguments: Sequence[str]) -> int:
    """Put runs side by side."""
    given = _parser().parse_intermixed_args(list(arguments))
    has_data = any(value is not None for value in (given.data, given.val_annotations, given.val_images))
    data = SourceOptions(data=given.data, val_annotations=given.val_annotations, val_images=given.val_images)
    made = compare(
        given.runs,
        given.output_dir,
        data=data if has_data else None,
        images=given.images,
        latency=given.latency == "on",
    )
    show(made.table)
    show(f"report: {made.html}")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="qskd compare",
        description="Finished runs side by side: report.html (one self-contained page), report.md, report.json.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="Folder of a finished run.")
    parser.add_argument("--output_dir", type=Path, default=Path("comparison"), help="Where the report goes.")
    parser.add_argument("--images", type=int, default=6, help="Validation images to draw detections on; 0 for none.")
    parser.add_argument(
        "--latency",
        choices=("on", "off"),
        default="on",
        help="Measure all models in turn on this machine, instead of showing what each run measured at its end.",
    )
    parser.add_argument("--data", help="Folder of the data, if it is no longer where the runs had it.")
    parser.add_argument("--val_annotations", help="COCO json of the validation split, instead of --data.")
    parser.add_argument("--val_images", help="Folder of the validation images.")
    return parser
