"""Hugging Face datasets: rows of images with their objects, read as they are needed.

The columns are recognised by their kind and usual names: an image; a list of objects (or a record of lists) with
``bbox`` and ``category`` or ``label``. Boxes are left, top, width, height in pixels, as the hub's detection datasets
have them; other forms are named with ``box_format``. Where columns ``height`` and ``width`` tell the size of the image
that was annotated, the image must have it.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar

from qskd.data.formats.hub_files import check_hub, check_saved, is_cached, listed
from qskd.data.formats.layout import (
    Content,
    RawSplit,
    canonical,
    in_order,
    missing_split,
    tolerated,
)
from qskd.data.images import upright_size_of
from qskd.data.index import DetectionIndex
from qskd.errors import DataError

BOX_FORMATS = ("xywh", "xyxy", "cxcywh", "xywh_fraction", "xyxy_fraction", "cxcywh_fraction")

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
_SAVED = (("dataset_dict.json",), ("state.json", "dataset_info.json"))  # what save_to_disk leaves
_IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "png")  # columns of encoded images without a kind
_SIZE = ("height", "width")  # columns that say what an upright image has, in pixels
_LARGEST = 1e9  # pixels; see coco_columns
_HEAD = 1 << 16  # bytes
_ONE_PIXEL = 2.0  # no box of fractions reaches beyond, whatever its form


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


@dataclass(frozen=True, slots=True)
class HubSource:
    """A Hugging Face dataset, from the hub or from a folder."""

    format: ClassVar[str] = "hf"
    name: str
    parts: Mapping[str, Any]  # of each split: a datasets.Dataset
    box_format: str = "xywh"
    folder: str | None = None  # where image files of its own must lie; None: where the library keeps downloads
    absent: Mapping[str, str] = field(default_factory=dict)  # none: a split without rows is no split there

    @classmethod
    def find(cls, path: Path) -> "HubSource | None":
        """What ``save_to_disk`` wrote, or a folder of parquet files, or images with ``metadata.jsonl``."""
        if not path.is_dir():
            return None
        folder = os.path.abspath(path)
        if any(all((path / name).is_file() for name in names) for names in _SAVED):
            library = _library(str(path))
            try:
                check_saved(folder)
                return cls._of(str(path), library.load_from_disk(folder), folder)
            except Exception as error:  # the library raises whatever its files make it
                raise DataError(f"{path}: save_to_disk's files cannot be read ({_reason(error)}).") from error
        kinds = ("*.parquet", "*/*.parquet", "metadata.jsonl", "*/metadata.jsonl", "metadata.csv", "*/metadata.csv")
        if any(file.suffix == ".parquet" or _names_files(file) for kind in kinds for file in path.glob(kind)):
            library = _library(str(path))
            try:
                kind, files = listed(folder)
                return cls._of(str(path), library.load_dataset(kind, data_files=files), folder)
            except Exception as error:
                raise DataError(
                    f"{path}: looks like a Hugging Face dataset, but cannot be loaded ({_reason(error)}). Mend it, or "
                    "say with --data_format what else it is."
                ) from error
        return None

    @classmethod
    def on_hub(cls, name: str) -> "HubSource":
        """A dataset by its id.

        Raises:
            DataError: it cannot be had, or the library is not installed.
        """
        library = _library(name)
        try:
            described = library.load_dataset_builder(name).config.data_files or {}
            check_hub(name, [file for files in described.values() for file in files])
            return cls._of(name, library.load_dataset(name))
        except Exception as error:  # the library raises whatever its loaders and the network do
            raise DataError(
                f"'{name}' is no folder here, and as a dataset it cannot be loaded: {_reason(error)}. Give a folder of "
                "detection data, or the id of a dataset on the hub."
            ) from error

    @classmethod
    def _of(cls, name: str, loaded: Any, folder: str | None = None) -> "HubSource":
        parts = loaded if isinstance(loaded, dict) else {"train": loaded}
        rows_of = {canonical(str(split)): rows.with_format(None) for split, rows in parts.items()}
        return cls(name, rows_of, folder=folder)

    def with_boxes(self, box_format: str) -> "HubSource":
        """The same data, its boxes read in another form; one of ``BOX_FORMATS``."""
        if box_format not in BOX_FORMATS:
            raise DataError(f"There is no box format '{box_format}'. Give one of {', '.join(BOX_FORMATS)}.")
        return replace(self, box_format=box_format)

    @property
    def origin(self) -> str:
        """The id or folder."""
        return self.name

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the dataset."""
        return in_order(tuple(self.parts))

    def load(self, split: str, *, class_names: Sequence[str] | None = None, strict: bool = False) -> DetectionIndex:
        """See ``Source.load``."""
        return self.raw(split).index(class_names, strict)

    def raw(self, split: str, errors: list[DataError] | None = None) -> RawSplit:
        """See ``Source.raw``. Images stay where they are until they are asked for."""
        if split not in self.parts:
            raise missing_split(self, split)
        rows = self.parts[split]
        columns = _columns(self.name, rows.features)
        declared = _class_names(rows, columns)
        names = declared or _labels_in(self.name, self.parts, columns)
        where = f"{self.name}, row {{}} of {split}"
        blobs = _Blobs(
            _undecoded(rows.select_columns([columns.image]), columns.image), columns.image, where, self.folder
        )
        content, kept = Content(names), []
        place: dict[Any, int] = {name: position for position, name in enumerate(names)}
        if declared:
            place |= {position: position for position in range(len(names))}
        for position, (row, said) in enumerate(zip(columns.of_objects(rows), _said_sizes(rows), strict=True)):
            where = f"{self.name}, row {position} of {split}"
            with tolerated(errors):
                height, width = upright_size_of(where, blobs(position), _size(where, said))
                found = list(_objects(where, row, columns, place))
                image = content.add_image(f"{split}-{position:06d}", height, width)
                kept.append(position)
                for label, box in found:
                    content.add_box(image, label, _pixels(box, self.box_format, height, width), where)
        self._check_boxes(content, split)
        chosen = blobs if len(kept) == len(rows) else partial(_at, blobs, kept)
        return RawSplit(Path(self.name), Path(self.name), content.as_coco(), content.problems, chosen)

    def _check_boxes(self, content: Content, split: str) -> None:
        """Refuse boxes most of which would leave their image: they are in another form than was said."""
        sizes = {image["id"]: (image["width"], image["height"]) for image in content.images}
        beyond = 0
        tiny = 0
        for entry in content.annotations:
            left, top, width, height = entry["bbox"]
            limit = sizes[entry["image_id"]]
            beyond += left + width > 1.1 * limit[0] or top + height > 1.1 * limit[1] or min(width, height) < 0
            tiny += max(left + width, top + height) <= _ONE_PIXEL < min(limit) / 2
        if tiny and tiny == len(content.annotations):
            raise DataError(
                f"{self.name}: all {tiny} boxes of '{split}' lie within the first pixels of their image when read as "
                f"{self.box_format}: they are fractions. Give --box_format: one of {', '.join(BOX_FORMATS)}."
            )
        if beyond > max(0.2 * len(content.annotations), 1):
            raise DataError(
                f"{self.name}: {beyond} of {len(content.annotations)} boxes of '{split}' leave their image when "
                f"read as {self.box_format}. Give --box_format: one of {', '.join(BOX_FORMATS)}."
            )


@dataclass(frozen=True, slots=True)
class _Blobs:
    """The encoded image of each row."""

    rows: Any
    column: str
    where: str  # with {} for the row
    folder: str | None

    def __call__(self, position: int) -> bytes:
        where = self.where.format(position)
        cell = self.rows[position][self.column] or {}
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        path = cell.get("path")
        if not path:
            raise DataError(f"{where}: has no image. Remove the row (datasets.Dataset.filter).")
        inside = self._is_its_own(path)
        if not inside or not os.path.isfile(path):
            told = "is not there" if inside else f"is outside of {self.folder or 'what was downloaded'}"
            raise DataError(f"{where}: its image '{path[:120]}' {told}. Save the dataset with the images in it.")
        return Path(path).read_bytes()

    def _is_its_own(self, path: str) -> bool:
        """Whether a row may name this file. A link in the dataset's folder may lead out of it, as in other formats."""
        if self.folder is None:
            return is_cached(path)
        return any(
            os.path.normpath(path).startswith(os.path.join(folder, ""))
            for folder in (self.folder, os.path.realpath(self.folder))
        )


def _reason(error: Exception) -> str:
    """What an exception says, and what was behind it, since the library's own say little."""
    texts = dict.fromkeys(" ".join(str(one).split()) for one in (error, error.__cause__) if one is not None)
    return ": ".join(texts)[:300] or type(error).__name__


def _names_files(file: Path) -> bool:
    """Whether a metadata file is an image folder's: its rows have a file_name."""
    try:
        with file.open("rb") as opened:
            line = opened.read(_HEAD).lstrip(b"\xef\xbb\xbf \r\n").split(b"\n")[0]
    except OSError:
        return False
    return b"file_name" in line


def _at(blobs: _Blobs, positions: Sequence[int], place: int) -> bytes:
    """The encoded image of the row at a place among those that were kept."""
    return blobs(positions[place])


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"'{name}' is no folder of COCO, YOLO or VOC data; to read it as a Hugging Face dataset, "
            'pip install "qskd[datasets]".'
        ) from error
    datasets.disable_progress_bars()
    return datasets


def _undecoded(rows: Any, column: str) -> Any:
    import datasets

    return rows.cast_column(column, datasets.Image(decode=False))


def _columns(name: str, features: Mapping[str, Any]) -> Columns:
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


def _class_names(rows: Any, columns: Columns) -> list[str] | None:
    """The names of a ClassLabel, if the labels are of that kind."""
    fields = rows.features if columns.objects is None else _fields(rows.features[columns.objects])
    kind = fields[columns.labels]
    while not hasattr(kind, "names") and (hasattr(kind, "feature") or (isinstance(kind, list) and kind)):
        kind = kind.feature if hasattr(kind, "feature") else kind[0]
    return list(kind.names) if hasattr(kind, "names") else None


def _labels_in(name: str, parts: Mapping[str, Any], columns: Columns) -> list[str]:
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


def _said_sizes(rows: Any) -> Iterator[Mapping[str, Any]]:
    """What each row says of its image's size: its numbers ``height`` and ``width``, or nothing where there are none."""
    kinds = [str(getattr(rows.features.get(key), "dtype", "")) for key in _SIZE]
    if all(kind.startswith(("int", "uint", "float")) for kind in kinds):
        yield from rows.select_columns(list(_SIZE))
    else:
        yield from repeat({}, len(rows))


def _size(where: str, said: Mapping[str, Any]) -> tuple[int, int] | None:
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


def _objects(
    where: str, row: Mapping[str, Any], columns: Columns, place: Mapping[Any, int]
) -> Iterator[tuple[int, list[float]]]:
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


def _pixels(box: Sequence[float], form: str, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, width, height in pixels."""
    kind, _, unit = form.partition("_")
    scales = (width, height, width, height) if unit == "fraction" else (1, 1, 1, 1)
    a, b, c, d = (value * scale for value, scale in zip(box, scales, strict=True))
    if kind == "xyxy":
        return a, b, c - a, d - b
    return (a - c / 2, b - d / 2, c, d) if kind == "cxcywh" else (a, b, c, d)
