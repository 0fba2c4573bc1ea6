"""`qskd predict`."""

import sys
from collections.abc import Sequence
from typing import Any

from qskd.cli.parsing import CommandParser, show
from qskd.reporting.tables import duration, text_table
from qskd.runs.api import predict
from qskd.runs.predicting import Predicted, PredictOptions

_NAMED = 20  # files that could not be read, on the console; predictions_info.json has them all


def run(arguments: Sequence[str]) -> int:
    """Look at images and videos; 1 where some could not be read."""
    given = vars(_parser().read(arguments))
    found = predict(given.pop("model"), given.pop("inputs"), **given)
    _show(found, given["pictures"])
    _show_failures(found.failures)
    return 1 if found.failures else 0


def _parser() -> CommandParser:
    parser = CommandParser("predict", "Boxes on images and videos: drawn, and as COCO results (predictions.json).")
    parser.add_argument("model", metavar="MODEL", help="Hub id or folder of a trained model, or a run folder.")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="Images, videos, or folders of them.")
    _option(parser, "output_dir", help="Where everything goes.")
    _option(parser, "threshold", type=float, help="The least score of a box, 0 to 1.")
    _option(parser, "top", type=int, help="Boxes of an image, at most.")
    _option(parser, "classes", nargs="+", metavar="NAME", help="Only these classes.")
    _option(parser, "batch_size", type=int, help="Images at a time.")
    _option(parser, "image_size", type=int, help="Side of the square, or with --max_image_size the shortest edge.")
    _option(parser, "max_image_size", type=int, help="Longest edge; keeps the aspect ratio.")
    _option(parser, "box_frame", choices=("content", "canvas"), help="What boxes are fractions of in padded images.")
    _option(parser, "device", help="cpu, cuda, cuda:1, ...; by default cuda where there is one.")
    _option(parser, "trust_remote_code", action="store_true", help="Run model code that a hub repository brings.")
    names = ("--no_pictures", "--json_only")
    parser.add_argument(*names, dest="pictures", action="store_false", default=True, help="Draw nothing, write JSON.")
    return parser


def _option(parser: CommandParser, name: str, **settings: Any) -> None:
    """One flag; its default is that of ``PredictOptions``."""
    default = PredictOptions.__dataclass_fields__[name].default
    settings["help"] += "" if default in (None, False) else " Default: %(default)s."
    parser.add_argument(f"--{name}", default=default, **settings)


def _show(found: Predicted, pictures: bool) -> None:
    rows = [[name, str(count), str(found.holding[name])] for name, count in found.boxes.items() if count]
    if rows:
        show(text_table(["class", "boxes", "images"], rows))
    seen = found.images + found.frames
    what = f"{found.images} images" + (f" and {found.frames} frames" if found.frames else "")
    pace = ""
    if seen:
        pace = f", {found.seconds / seen:.3f} s each ({found.model_seconds / seen:.3f} s in the model)"
    show(f"{what}, {sum(found.boxes.values())} boxes, {duration(found.seconds)}{pace}")
    show(f"predictions: {found.predictions}" + (f"; drawn: {found.output_dir}" if pictures and seen else ""))


def _show_failures(failures: dict[str, str]) -> None:
    if not failures:
        return
    lines = list(failures.values())
    more = [f"... and {len(lines) - _NAMED} more, see predictions_info.json"] if len(lines) > _NAMED else []
    print(f"qskd predict: {len(lines)} could not be read:", file=sys.stderr)
    for line in lines[:_NAMED] + more:
        print(f"  {line}", file=sys.stderr)
