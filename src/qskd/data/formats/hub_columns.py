"""Rows of Hugging Face datasets: which column holds what, and what a row says of its image and objects."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from qskd.errors import DataError

_BOXES = ("bbox", "bboxes", "boxes", "box")
_LABELS = (
    "category",
    "categories",
    "category_id",
    "category_ids",
    "label",
    "labels",
    "class",
    "classes",
    "class_label",
)
_OBJECTS = ("objects", "annotations", "object", "annotation", "faces", "labels")
_IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "png")  # columns of encoded images without a kind
_SIZE = ("height", "width")  # columns that say what an upright image has, in pixels
_LARGEST = 1e9  # pixels; see coco_columns


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row keeps what."""

    image: str
    objects: str | None  # None: boxes and labels are columns of the row itself
    boxes: str
    labels: str

    def of_objects(self, rows: Any) -> Any:
        """The rows without their images, and without whatever else they have."""
        return rows.select_columns([self.objects] if self.objects else [self.boxes, self.labels])


def columns_of(name: str, features: Mapping[str, Any]) -> Columns:
    """The columns of a dataset.

    Raises:
        DataError: it has no images, or no boxes with labels.
    """
    images = [key for key, kind in features.items() if type(kind).__name__ == "Image"]
    images += [key for key in _IMAGES if key in features and _is_encoded(features[key])]
    image = next(iter(images), None)
    if image is None:
        raise DataError(f"{name} has no column of images, only {list(features)}.")
    groups: list[str | None] = [key for key in _OBJECTS if key in features]
    for objects in [*groups, None]:
        fields = features if objects is None else _fields(features[objects])
        boxes = next((key for key in _BOXES if key in fields), None)
        labels = next((key for key in _LABELS if key in fields and key != objects), None)
        if boxes and labels:
            return Columns(image, objects, boxes, labels)
    raise DataError(
        f"{name} has no objects that can be read: expected a column 'objects' with 'bbox' and 'category', found "
        f"{list(features)}. Rename its columns (datasets.Dataset.rename_column) and save it with save_to_disk."
    )


def _is_encoded(kind: Any) -> bool:
    """Whether a column without a kind holds encoded images, as files written without the library do."""
    inner = kind.get("bytes") if isinstance(kind, dict) else kind
    return getattr(inner, "dtype", None) in ("binary", "large_binary")


def _fields(kind: Any) -> Mapping[str, Any]:
    """Keys of a record, of a list of records, or of a record of lists."""
    inner = getattr(kind, "feature", kind)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    return inner if isinstance(inner, Mapping) else {}


def declared_names(rows: Any, columns: Columns) -> list[str] | None:
    """The names of a ClassLabel, if the labels are of that kind."""
    fields = rows.features if columns.objects is None else _fields(rows.features[columns.objects])
    kind = fields[columns.labels]
    while not hasattr(kind, "names") and (hasattr(kind, "feature") or (isinstance(kind, list) and kind)):
        kind = kind.feature if hasattr(kind, "feature") else kind[0]
    return list(kind.names) if hasattr(kind, "names") else None


def labels_in(name: str, parts: Mapping[str, Any], columns: Columns) -> list[str]:
    """Every label of all splits as a name: texts by name, numbers by value."""
    found: set[str | int] = set()
    for split, rows in parts.items():
        if not {columns.objects or columns.boxes} <= set(rows.features):
            continue
        for position, row in enumerate(columns.of_objects(rows)):
            labels = _cells(row, columns)[1]
            if bad := [label for label in labels if not isinstance(label, str | int) or label == ""]:
                raise DataError(
                    f"{name}, row {position} of {split}: has the label {bad[0]!r:.40}; expected a text or a number."
                )
            found.update(labels)
    if not found:
        raise DataError(f"{name}: no row of it has an object, so there are no classes.")
    return [str(label) for label in sorted(found, key=lambda label: (isinstance(label, str), label))]


def _cells(row: Mapping[str, Any], columns: Columns) -> tuple[list[Any], list[Any]]:
    """Boxes and labels of a row, whether its objects are records or lists."""
    objects = row if columns.objects is None else row[columns.objects]
    if objects is None:
        return [], []
    if isinstance(objects, list):
        whole = [one for one in objects if one is not None]
        return [one[columns.boxes] for one in whole], [one[columns.labels] for one in whole]
    boxes, labels = objects[columns.boxes], objects[columns.labels]
    if labels is not None and not isinstance(labels, list):  # one object a row
        return [boxes], [labels]
    return list(boxes or []), list(labels or [])


def sizes_said(rows: Any) -> Iterator[Mapping[str, Any]]:
    """What each row says of its image's size: its numbers ``height`` and ``width``, or nothing where there are none."""
    kinds = [str(getattr(rows.features.get(key), "dtype", "")) for key in _SIZE]
    if all(kind.startswith(("int", "uint", "float")) for kind in kinds):
        yield from rows.select_columns(list(_SIZE))
    else:
        yield from repeat({}, len(rows))


def size_of_row(where: str, said: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) in pixels that a row says, None where one of them is missing."""
    found: list[int] = []
    for key in _SIZE:
        value = said.get(key)
        if value is None or value != value:
            return None
        if not _is_length(value) or value % 1:
            raise DataError(f"{where}: has {key} {value!r:.80}; expected a whole number.")
        found.append(int(value))
    return found[0], found[1]


def objects_of(
    where: str, row: Mapping[str, Any], columns: Columns, place: Mapping[Any, int]
) -> Iterator[tuple[int, list[float]]]:
    """Class index and the four numbers of the box of every object in a row.

    Raises:
        DataError: boxes and labels do not go together, or one of them cannot be used.
    """
    boxes, labels = _cells(row, columns)
    if len(boxes) != len(labels):
        raise DataError(f"{where}: has {len(boxes)} boxes but {len(labels)} labels.")
    for box, label in zip(boxes, labels, strict=True):
        if not isinstance(box, Sequence) or len(box) != 4 or not all(_is_length(value) for value in box):
            raise DataError(f"{where}: has the box {box!r:.80}; expected four finite numbers.")
        position = place.get(label, place.get(str(label)))
        if position is None:
            known = [name for name in place if isinstance(name, str)]
            raise DataError(f"{where}: has the label {label!r:.40}, which is none of {known[:10]}.")
        yield position, [float(value) for value in box]


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < _LARGEST
