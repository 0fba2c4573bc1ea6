"""Hugging Face datasets: rows of images with their objects, read as they are needed.

The columns are recognised by their kind and usual names: an image; a list of objects (or a record of lists) with
``bbox`` and ``category`` or ``label``. Boxes are left, top, width, height in pixels, as the hub's detection datasets
have them; other forms are named with ``box_format``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from qskd.data.formats.layout import Content, canonical, in_order, missing_split
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
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row keeps what."""

    image: str
    objects: str | None  # None: boxes and labels are columns of the row itself
    boxes: str
    labels: str


@dataclass(frozen=True, slots=True)
class HubSource:
    """A Hugging Face dataset, from the hub or from a folder."""

    format: ClassVar[str] = "hf"
    name: str
    parts: Mapping[str, Any]  # of each split: a datasets.Dataset
    box_format: str = "xywh"

    @classmethod
    def find(cls, path: Path) -> "HubSource | None":
        """What ``save_to_disk`` wrote, or a folder of parquet files, or images with ``metadata.jsonl``."""
        if not path.is_dir():
            return None
        if any((path / name).is_file() for name in _SAVED):
            return cls._of(str(path), _library(str(path)).load_from_disk(str(path)))
        kinds = ("*.parquet", "*/*.parquet", "metadata.jsonl", "*/metadata.jsonl", "metadata.csv", "*/metadata.csv")
        if any(next(path.glob(kind), None) for kind in kinds):
            return cls.on_hub(str(path))
        return None

    @classmethod
    def on_hub(cls, name: str) -> "HubSource":
        """A dataset by its id, or a folder that ``datasets.load_dataset`` reads.

        Raises:
            DataError: it cannot be had, or the library is not installed.
        """
        library = _library(name)
        try:
            return cls._of(name, library.load_dataset(name))
        except DataError:
            raise
        except Exception as error:  # the library raises whatever its loaders and the network do
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"'{name}' is no folder here, and as a dataset it cannot be loaded: {reason}. Give a folder of "
                "detection data, or the id of a dataset on the hub."
            ) from error

    @classmethod
    def _of(cls, name: str, loaded: Any) -> "HubSource":
        parts = loaded if isinstance(loaded, dict) else {"train": loaded}
        return cls(name, {canonical(str(split)): rows for split, rows in parts.items()})

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
        """One split; see ``Source.load``. Images stay where they are until they are asked for."""
        if split not in self.parts:
            raise missing_split(self, split)
        rows = self.parts[split]
        columns = _columns(self.name, rows.features)
        names = _class_names(rows, columns) or _labels_in(self.parts.values(), columns)
        blobs = _Blobs(_undecoded(rows.select_columns([columns.image]), columns.image), columns.image)
        content = Content(names)
        place = {name: position for position, name in enumerate(names)}
        objects = rows.remove_columns(columns.image)
        for position, row in enumerate(objects):
            where = f"{self.name}, row {position} of {split}"
            height, width = upright_size_of(where, blobs(position))
            image = content.add_image(f"{split}-{position:06d}", height, width)
            for label, box in _objects(where, row, columns, place, names):
                content.add_box(image, label, _pixels(box, self.box_format, height, width), where)
        self._check_boxes(content, split)
        return DetectionIndex.of(
            Path(self.name),
            Path(self.name),
            content.as_coco(),
            class_names=class_names,
            strict=strict,
            problems=content.problems,
            blobs=blobs,
        )

    def _check_boxes(self, content: Content, split: str) -> None:
        """Refuse boxes most of which would leave their image: they are in another form than was said."""
        sizes = {image["id"]: (image["width"], image["height"]) for image in content.images}
        beyond = 0
        for entry in content.annotations:
            left, top, width, height = entry["bbox"]
            limit = sizes[entry["image_id"]]
            beyond += left + width > 1.1 * limit[0] or top + height > 1.1 * limit[1] or min(width, height) < 0
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

    def __call__(self, position: int) -> bytes:
        cell = self.rows[position][self.column]
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        return Path(cell["path"]).read_bytes()


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
    image = next((key for key, kind in features.items() if type(kind).__name__ == "Image"), None)
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


def _labels_in(parts: Any, columns: Columns) -> list[str]:
    """Every label of all splits as a name: texts by name, numbers by value."""
    found = {label for rows in parts for row in rows.remove_columns(columns.image) for label in _cells(row, columns)[1]}
    return [str(label) for label in sorted(found, key=lambda label: (isinstance(label, str), label))]


def _cells(row: Mapping[str, Any], columns: Columns) -> tuple[list[Any], list[Any]]:
    """Boxes and labels of a row, whether its objects are records or lists."""
    objects = row if columns.objects is None else row[columns.objects]
    if objects is None:
        return [], []
    if isinstance(objects, list):
        return [one[columns.boxes] for one in objects], [one[columns.labels] for one in objects]
    return list(objects[columns.boxes] or []), list(objects[columns.labels] or [])


def _objects(
    where: str, row: Mapping[str, Any], columns: Columns, place: Mapping[str, int], names: Sequence[str]
) -> Iterator[tuple[int, list[float]]]:
    boxes, labels = _cells(row, columns)
    if len(boxes) != len(labels):
        raise DataError(f"{where}: has {len(boxes)} boxes but {len(labels)} labels.")
    for box, label in zip(boxes, labels, strict=True):
        if not isinstance(box, Sequence) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise DataError(f"{where}: has the box {box!r:.80}; expected four numbers.")
        position = label if isinstance(label, int) and 0 <= label < len(names) and str(label) not in place else None
        position = place.get(str(label)) if position is None else position
        if position is None:
            raise DataError(f"{where}: has the label {label!r:.40}, which is none of {list(names)[:10]}.")
        yield position, [float(value) for value in box]


def _pixels(box: Sequence[float], form: str, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, width, height in pixels."""
    kind, _, unit = form.partition("_")
    scales = (width, height, width, height) if unit == "fraction" else (1, 1, 1, 1)
    a, b, c, d = (value * scale for value, scale in zip(box, scales, strict=True))
    if kind == "xyxy":
        return a, b, c - a, d - b
    return (a - c / 2, b - d / 2, c, d) if kind == "cxcywh" else (a, b, c, d)
