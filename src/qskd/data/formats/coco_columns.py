"""Columns of a COCO file: one key of every entry as an array, or an error that names the entry.

Whole columns are converted at once; only when that fails is the bad entry searched for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qskd.errors import DataError

Entry = dict[str, Any]

_LARGEST = 1e9  # pixels; no image reaches there, so a box that does is a mistake


def entries(path: Path, content: Entry, key: str) -> list[Entry]:
    """The list of objects under one of the file's top keys."""
    rows = content.get(key)
    if key not in content:
        raise DataError(
            f"{path}: has no '{key}', only {sorted(content)[:10]}. A COCO file has 'images', 'annotations' "
            "and 'categories'."
        )
    if not isinstance(rows, list):
        raise DataError(f"{path}: '{key}' is a {type(rows).__name__}, expected a list.")
    for at, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}: {key}[{at}] is {row!r:.80}, expected an object.")
    return rows


def _column(path: Path, what: str, rows: Sequence[Entry], key: str) -> list[Any]:
    try:
        return [row[key] for row in rows]
    except KeyError:
        at = next(at for at, row in enumerate(rows) if key not in row)
        raise DataError(
            f"{path}: {what}[{at}]{_named(rows[at], key)} has no '{key}', only {sorted(rows[at])[:10]}."
        ) from None


def _named(row: Entry, key: str) -> str:
    return f" (id {row['id']!r})" if key != "id" and "id" in row else ""


def integers(path: Path, what: str, rows: Sequence[Entry], key: str) -> NDArray[np.int64]:
    """One key of every entry as whole numbers; 640.0 counts as 640."""
    values = _column(path, what, rows, key)
    kinds = set(map(type, values))
    if kinds <= {int, float}:
        array = _as_integers(values)
        if array is not None:
            return array
    at = next(at for at, value in enumerate(values) if _as_integers([value]) is None)
    raise DataError(
        f"{path}: {what}[{at}]{_named(rows[at], key)} has {key} {values[at]!r:.80}; expected a whole number."
    )


def _as_integers(values: list[Any]) -> NDArray[np.int64] | None:
    if any(type(value) not in (int, float) or value != value or value % 1 for value in values):
        return None
    try:
        return np.array([int(value) for value in values], dtype=np.int64)
    except OverflowError:
        return None


def names(path: Path, what: str, rows: Sequence[Entry], key: str) -> list[str]:
    """One key of every entry as non-empty text."""
    values = _column(path, what, rows, key)
    for at, value in enumerate(values):
        if not isinstance(value, str) or not value or any("\ud800" <= sign <= "\udfff" for sign in value):
            raise DataError(f"{path}: {what}[{at}]{_named(rows[at], key)} has {key} {value!r:.80}; expected a text.")
    return values


def unique(path: Path, what: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same ids, none of which may occur twice."""
    found, counts = np.unique(ids, return_counts=True)
    if len(repeated := found[counts > 1]):
        raise DataError(
            f"{path}: {what} id {repeated[0]} occurs {counts[counts > 1][0]} times ({len(repeated)} ids are "
            f"repeated). Every {what} needs an id of its own."
        )
    return ids


def bboxes(path: Path, rows: Sequence[Entry], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """[T, 4] left, top, width, height in pixels: four finite numbers each."""
    values = _column(path, "annotations", rows, "bbox")
    try:
        array = np.array(values)
    except (ValueError, OverflowError, RecursionError):  # lists of different lengths, numbers beyond a float
        array = np.empty(0, dtype=object)
    fits = array.dtype.kind in "if" and array.shape == (len(values), 4)
    if fits and (np.abs(array) < _LARGEST).all():  # NaN compares false
        return array.astype(np.float64)
    if not values:
        return np.zeros((0, 4))
    at = next((at for at, value in enumerate(values) if not _is_bbox(value)), 0)
    raise DataError(
        f"{path}: annotation id {ids[at]} has bbox {values[at]!r:.120}; expected four finite numbers [left, "
        "top, width, height] in pixels."
    )


def _is_bbox(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(number) in (int, float) and abs(number) < _LARGEST for number in value)
    )


def flags(path: Path, rows: Sequence[Entry], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[T] whether an annotation is a crowd; absent means no."""
    values = [row.get("iscrowd") or 0 for row in rows]
    for at, value in enumerate(values):
        if value not in (0, 1):
            raise DataError(f"{path}: annotation id {ids[at]} has iscrowd {value!r:.80}; expected 0 or 1.")
    return np.array(values, dtype=bool)
