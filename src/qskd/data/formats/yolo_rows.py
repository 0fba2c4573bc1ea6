"""Lines of YOLO label files: a class and a box, an outline, or a box with keypoints."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from qskd.data.formats.layout import read_text
from qskd.errors import DataError

_FAR_OUTSIDE = 2.0  # a fraction beyond this is no fraction
ROW = 5  # numbers of a box; an outline has at least 7, an odd count


def rows_of(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line that is not empty."""
    for number, line in enumerate(read_text(file, "a YOLO label file").splitlines(), start=1):
        if cells := line.split():
            yield number, cells


def box_of(where: str, values: Sequence[float]) -> tuple[float, float, float, float]:
    """(left, top, width, height) of a line's numbers."""
    if len(values) == ROW:
        x, y, width, height = values[1:]
        return x - width / 2, y - height / 2, width, height
    if len(values) > ROW + 1 and len(values) % 2:
        xs, ys = values[1::2], values[2::2]
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    what = "a sixth, a detector's confidence, has no place here" if len(values) == ROW + 1 else "expected"
    raise DataError(
        f"{where}: has {len(values)} numbers; {what}: 'class cx cy w h', or a class and the x and y of at least three "
        "corners."
    )


def numbers_of(where: str, cells: Sequence[str]) -> list[float]:
    """The cells of a line as numbers: a class, and fractions of the image.

    Raises:
        DataError: they are not.
    """
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        raise DataError(f"{where}: '{' '.join(cells)[:80]}' are not all numbers.") from None
    if not all(math.isfinite(value) for value in values):
        raise DataError(f"{where}: '{' '.join(cells)[:80]}' are not all finite numbers.")
    if any(abs(value) > _FAR_OUTSIDE for value in values[1:]):
        raise DataError(
            f"{where}: {max(values[1:], key=abs):g} is no fraction of the image. YOLO's boxes are fractions from "
            "0 to 1, not pixels."
        )
    return values
