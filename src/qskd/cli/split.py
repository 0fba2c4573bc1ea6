"""`qskd split`."""

from collections.abc import Sequence
from pathlib import Path

from qskd.cli.parsing import CommandParser, show
from qskd.data.formats.hub import BOX_FORMATS
from qskd.data.sources import FORMATS
from qskd.errors import ConfigError
from qskd.reporting.tables import text_table
from qskd.runs.options import SourceOptions
from qskd.runs.splitting import split


def run(arguments: Sequence[str]) -> int:
    """Divide a data set into splits."""
    given = _parser().read(arguments)
    shares = _shares(given.val, given.test)
    data = SourceOptions(data=given.data, data_format=given.data_format, box_format=given.box_format)
    made = split(data, given.output_dir, shares, source_split=given.split, seed=given.seed)
    names = list(next(iter(made.values())).classes)
    rows = [["images", *(str(part.images) for part in made.values())]]
    rows += [["boxes", *(str(part.boxes) for part in made.values())]]
    rows += [[name, *(str(part.classes[name]) for part in made.values())] for name in names]
    show(text_table(["", *made], rows))
    show(f"written to {given.output_dir}: give it as --data")
    return 0


def _shares(val: float, test: float) -> dict[str, float]:
    """The share of each split; what the others leave is for training.

    Raises:
        ConfigError: they leave nothing, or are no shares.
    """
    if not 0 < val < 1 or not 0 <= test < 1:
        raise ConfigError(
            f"--val is {val:g} and --test {test:g}: shares of the images. Give numbers from 0 to 1, --val above 0."
        )
    if val + test > 1 - 1e-6:
        raise ConfigError(
            f"--val {val:g} and --test {test:g} make {val + test:g} of the images, which leaves none for train. Give "
            "shares that make less than 1 together."
        )
    return {"train": 1 - val - test, "val": val} | ({"test": test} if test else {})


def _parser() -> CommandParser:
    parser = CommandParser(
        "split",
        "Divides a data set into train, val and test: the same way each time, every class in every split, "
        "images that look alike in one of them.",
    )
    parser.add_argument("data", metavar="DATA", help="Folder, data.yaml, or id of a Hugging Face dataset.")
    parser.add_argument("--output_dir", type=Path, required=True, help="A new folder for the divided data.")
    parser.add_argument("--val", type=float, default=0.2, help="Share of the images for validation (0.2).")
    parser.add_argument("--test", type=float, default=0.0, help="Share of the images for a test split (0).")
    parser.add_argument("--split", default="train", help="Which split of the data to divide (train).")
    parser.add_argument("--seed", type=int, default=0, help="Another seed gives another division (0).")
    parser.add_argument("--data_format", choices=FORMATS, default="auto", help="What it is in, if that is not clear.")
    parser.add_argument("--box_format", choices=BOX_FORMATS, default="xywh", help="Boxes of a Hugging Face dataset.")
    return parser
