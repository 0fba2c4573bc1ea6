"""`qskd check`."""

import json
from collections.abc import Sequence
from pathlib import Path

from qskd.cli.parsing import CommandParser, show
from qskd.data.formats.hub import BOX_FORMATS
from qskd.data.sources import FORMATS
from qskd.errors import DataError
from qskd.files import place_for_file, write_whole
from qskd.reporting.tables import number, text_table
from qskd.runs.checking import Checked, check, clean_splits, lines, write_clean
from qskd.runs.options import SourceOptions

_CLASSES = 30  # shown on the console


def run(arguments: Sequence[str]) -> int:
    """Look at a data set; the exit status says whether it is good."""
    given = _parser().read(arguments)
    if given.json is not None:
        place_for_file(given.json, "--json")
    data = SourceOptions(data=given.data, data_format=given.data_format, box_format=given.box_format)
    found = check(data, pixels=not given.no_pixels)
    _show(found)
    if given.json is not None:
        write_whole(given.json, json.dumps(found.as_dict(), indent=2) + "\n")
    is_written = given.fix is None or _fix(found, given.fix)
    return 0 if found.is_good and is_written else 1


def _fix(found: Checked, folder: Path) -> bool:
    """Write the clean copy, unless there is nothing to write."""
    try:
        splits = clean_splits(found)
    except DataError as error:
        show(f"no clean copy: {error}")
        return False
    write_clean(found, splits, folder)
    show(f"clean copy: {folder}")
    for split in splits:
        show(f"  {split.line()}")
    unread = [name for name in found.names if name not in {split.name for split in splits}]
    if unread:
        show(f"  not in it, since nothing of them could be used: {', '.join(unread)}")
    return True


def _parser() -> CommandParser:
    parser = CommandParser(
        "check", "Counts and checks a data set. Exit status: 0 good, 1 errors were found, 2 it cannot be read."
    )
    parser.add_argument("data", metavar="DATA", help="Folder, data.yaml, or id of a Hugging Face dataset.")
    parser.add_argument("--data_format", choices=FORMATS, default="auto", help="What it is in, if that is not clear.")
    parser.add_argument("--box_format", choices=BOX_FORMATS, default="xywh", help="Boxes of a Hugging Face dataset.")
    parser.add_argument("--no_pixels", action="store_true", help="Do not decode images: much faster.")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="Write a clean copy in COCO's form to this new folder.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File to write everything to.")
    return parser


def _show(found: Checked) -> None:
    show(f"{found.origin} ({found.format})")
    for split in found.splits:
        numbers = split.statistics
        objects = numbers.objects_per_image
        show("")
        show(
            f"{split.name}: {numbers.images} images ({numbers.empty_images} without objects), {numbers.boxes} boxes"
            + (f", {numbers.crowds} crowds" if numbers.crowds else "")
        )
        show(f"  from {' with images in '.join(map(str, split.places))}")
        show(
            f"  objects an image: least {objects['least']:.0f}, median {objects['median']:g}, mean "
            f"{objects['mean']:.1f}, most {objects['most']:.0f}"
        )
        show("  sizes: " + ", ".join(f"{count} {name}" for name, count in numbers.sizes.items()) + " (COCO's bins)")
        shapes = list(numbers.image_sizes.items())
        show(
            "  images: "
            + ", ".join(f"{count} of {size}" for size, count in shapes[:4])
            + (", ..." if shapes[4:] else "")
        )
    show("")
    show(_classes(found))
    show("")
    for line in lines(found):
        show(line)
    show("good" if found.is_good else "NOT GOOD: the errors above would stop or spoil a training; see --fix")


def _classes(found: Checked) -> str:
    names = list(dict.fromkeys(name for split in found.splits for name in split.statistics.classes))
    rows = []
    for name in names[:_CLASSES]:
        row = [name]
        for split in found.splits:
            count = split.statistics.classes.get(name, 0)
            row += [str(count), f"{number(100 * count / max(split.statistics.boxes, 1))}%"]
        rows.append(row)
    if len(names) > _CLASSES:
        rows.append([f"... {len(names) - _CLASSES} more"] + [""] * (2 * len(found.splits)))
    return text_table(["class", *(cell for split in found.splits for cell in (split.name, ""))], rows)
