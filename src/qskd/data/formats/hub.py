"""Hugging Face datasets: rows of images with their objects, read as they are needed.

The columns are recognised by their kind and usual names: an image; a list of objects (or a record of lists) with
``bbox`` and ``category`` or ``label``. Boxes are left, top, width, height in pixels, as the hub's detection datasets
have them; other forms are named with ``box_format``. Where columns ``height`` and ``width`` tell the size of the image
that was annotated, the image must have it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from qskd.data.formats.hub_columns import columns_of, declared_names, labels_in, objects_of, size_of_row, sizes_said
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

_SAVED = (("dataset_dict.json",), ("state.json", "dataset_info.json"))  # what save_to_disk leaves
_HEAD = 1 << 16  # bytes
_ONE_PIXEL = 2.0  # no box of fractions reaches beyond, whatever its form


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
        columns = columns_of(self.name, rows.features)
        declared = declared_names(rows, columns)
        names = declared or labels_in(self.name, self.parts, columns)
        where = f"{self.name}, row {{}} of {split}"
        blobs = _Blobs(
            _undecoded(rows.select_columns([columns.image]), columns.image), columns.image, where, self.folder
        )
        content, kept = Content(names), []
        place: dict[Any, int] = {name: position for position, name in enumerate(names)}
        if declared:
            place |= {position: position for position in range(len(names))}
        for position, (row, said) in enumerate(zip(columns.of_objects(rows), sizes_said(rows), strict=True)):
            where = f"{self.name}, row {position} of {split}"
            with tolerated(errors):
                height, width = upright_size_of(where, blobs(position), size_of_row(where, said))
                found = list(objects_of(where, row, columns, place))
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
            "`pip install datasets`."
        ) from error
    datasets.disable_progress_bars()
    return datasets


def _undecoded(rows: Any, column: str) -> Any:
    import datasets

    return rows.cast_column(column, datasets.Image(decode=False))


def _pixels(box: Sequence[float], form: str, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, width, height in pixels."""
    kind, _, unit = form.partition("_")
    scales = (width, height, width, height) if unit == "fraction" else (1, 1, 1, 1)
    a, b, c, d = (value * scale for value, scale in zip(box, scales, strict=True))
    if kind == "xyxy":
        return a, b, c - a, d - b
    return (a - c / 2, b - d / 2, c, d) if kind == "cxcywh" else (a, b, c, d)
