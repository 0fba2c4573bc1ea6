"""COCO detection files: read once, checked before anything is trained, kept as arrays.

A box of the file is [left, top, width, height] in pixels; here it becomes corners (left, top, right, bottom).
Letters: I images, T annotations of the whole file, N annotations of one image.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from qskd.data.formats.coco_columns import Entry, bboxes, entries, flags, integers, names, unique
from qskd.errors import DataError

SMALLEST_SIDE = 1e-3
"""Pixels; a box with a shorter side holds nothing that could be learned or found."""

_NAMED = 5  # entries that a problem names; the others are only counted


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of the annotation file; its pixels are read when somebody asks for them."""

    id: int
    path: Path
    height: int  # pixels, as the annotation file says
    width: int


@dataclass(frozen=True, slots=True)
class ImageRecords(Sequence[ImageRecord]):
    """All images of a file, in the file's order, as columns; a record is made when it is asked for."""

    folder: Path
    file_names: tuple[str, ...]  # relative to the folder, with forward slashes
    ids: NDArray[np.int64]  # [I]
    sizes: NDArray[np.int64]  # [I, 2] (height, width), pixels

    def __len__(self) -> int:
        return len(self.file_names)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ImageRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | tuple[ImageRecord, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        height, width = self.sizes[index].tolist()
        return ImageRecord(int(self.ids[index]), self.folder / self.file_names[index], height, width)


@dataclass(frozen=True, slots=True)
class Problems:
    """What a file held that could not be used as it was: a count and the first few entries of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, found: Sequence[str], total: int | None = None) -> None:
        """Note entries of one kind; ``total`` says how many there are if not all of them are named."""
        count = len(found) if total is None else total
        if count:
            self.counts[kind] += count
            named = self.examples.setdefault(kind, [])
            named.extend(found[: _NAMED - len(named)])

    def lines(self) -> list[str]:
        """One sentence a kind, most frequent first; empty when there is nothing to report."""
        return [
            f"{count} {kind} ({', '.join(self.examples[kind])}{', ...' if count > _NAMED else ''})"
            for kind, count in self.counts.most_common()
        ]


@dataclass(frozen=True, slots=True)
class Annotations:
    """Every usable annotation of a file as columns, sorted by image, crowds behind the others."""

    ids: NDArray[np.int64]  # [T] as in the file
    labels: NDArray[np.int64]  # [T] class index
    boxes: NDArray[np.float64]  # [T, 4] corners in pixels, clipped to the image
    file_boxes: NDArray[np.float64]  # [T, 4] left, top, width, height as in the file
    areas: NDArray[np.float64]  # [T] pixels, the file's own where it says one
    is_crowd: NDArray[np.bool_]  # [T]
    starts: NDArray[np.int64]  # [I + 1] where the annotations of an image begin
    crowd_starts: NDArray[np.int64]  # [I] where its crowds begin

    def objects(self, image: int) -> slice:
        """The rows of an image's annotations that are single objects."""
        return slice(int(self.starts[image]), int(self.crowd_starts[image]))


@dataclass(frozen=True, slots=True, eq=False)
class CocoIndex:
    """A COCO file and its image folder: what there is to learn from and to be scored against."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # the file's id of each class
    images: ImageRecords
    annotations: Annotations
    problems: Problems

    @classmethod
    def load(
        cls,
        annotations: Path,
        images: Path,
        *,
        class_names: Sequence[str] | None = None,
        strict: bool = False,
    ) -> "CocoIndex":
        """Read and check an annotation file.

        Args:
            annotations: the JSON file.
            images: the folder that its file names are relative to.
            class_names: the vocabulary to use, e.g. a model's; by default the file's, by category id.
            strict: refuse boxes that would otherwise be dropped (degenerate, or outside of their image).

        Raises:
            DataError: the file cannot be read or contradicts itself, an image file is missing, or its
                categories do not fit ``class_names``. The message names the file and the entry.
        """
        annotations, images = Path(annotations), Path(images)
        content = _read_json(annotations)
        records = _read_images(annotations, images, content)
        names_, ids, class_of = _read_categories(annotations, content, class_names)
        problems = Problems()
        table = _read_annotations(annotations, content, records, class_of, problems)
        if strict and (refused := [line for line in problems.lines() if "dropped" in line]):
            raise DataError(f"{annotations}: {'; '.join(refused)}. Mend these boxes, or load without strict.")
        return cls(names_, ids, records, table, problems)

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, image: int) -> NDArray[np.int64]:
        """[N] class indices of the objects of the image at this position; crowds are left out."""
        return self.annotations.labels[self.annotations.objects(image)]

    def boxes(self, image: int) -> NDArray[np.float64]:
        """[N, 4] corners in pixels of the objects of the image at this position, clipped to the image."""
        return self.annotations.boxes[self.annotations.objects(image)]

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """What detections are scored against, in COCO's form: the file's boxes unclipped, crowds included.

        Annotation ids are the file's, or counted from 1 where one of them is below 1: pycocotools takes a
        match with annotation 0 for no match.
        """
        rows = self.annotations
        ids = rows.ids if not len(rows.ids) or rows.ids.min() > 0 else np.arange(1, len(rows.ids) + 1)
        image_ids = np.repeat(self.images.ids, np.diff(rows.starts))
        category_ids = np.asarray(self.category_ids, dtype=np.int64)[rows.labels]
        columns = (ids, image_ids, category_ids, rows.file_boxes, rows.areas, rows.is_crowd.astype(np.int64))
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        table = zip(*(column.tolist() for column in columns), strict=True)
        return {
            "images": [
                {"id": record.id, "file_name": name, "height": record.height, "width": record.width}
                for record, name in zip(self.images, self.images.file_names, strict=True)
            ],
            "annotations": [dict(zip(keys, row, strict=True)) for row in table],
            "categories": [
                {"id": category, "name": name}
                for category, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }


def find_split(data_dir: Path, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of a split in a folder laid out as COCO's, or more simply.

    Annotations are ``annotations/instances_{split}.json`` or ``..._{split}2017.json``; images lie in
    ``images/{split}/``, ``images/{split}2017/``, ``{split}/``, ``{split}2017/`` or ``images/``, the first
    that exists.

    Raises:
        DataError: nothing of the kind is there; says what was looked for.
    """
    data_dir = Path(data_dir)
    files = [data_dir / "annotations" / f"instances_{split}{year}.json" for year in ("", "2017")]
    folders = [
        data_dir / folder
        for folder in (f"images/{split}", f"images/{split}2017", split, f"{split}2017", "images")
    ]
    if not data_dir.is_dir():
        raise DataError(f"{data_dir} is not a folder. Give the folder that holds annotations/ and images/.")
    return _first(files, "annotation file", split), _first(folders, "image folder", split)


def _first(candidates: Sequence[Path], what: str, split: str) -> Path:
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise DataError(f"No {what} for the split '{split}'; looked for {looked}.")


def _without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)  # most of COCO's bytes, and never used here
    return entry


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_without_segmentation)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give a COCO annotation file.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} (character {error.pos}): "
            f"{error.msg}. Is the file truncated? Copy it again."
        ) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: not a JSON text file ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds a {type(content).__name__}, expected a COCO object with 'images', 'annotations' "
            "and 'categories'."
        )
    return content


def _read_images(path: Path, folder: Path, content: Entry) -> ImageRecords:
    rows = entries(path, content, "images")
    ids = unique(path, "image", integers(path, "images", rows, "id"))
    sizes = np.stack([integers(path, "images", rows, key) for key in ("height", "width")], axis=1)
    if len(bad := np.flatnonzero((sizes < 1).any(axis=1))):
        height, width = sizes[bad[0]].tolist()
        raise DataError(
            f"{path}: image id {ids[bad[0]]} has height {height} and width {width}; expected >= 1."
        )
    file_names = tuple(names(path, "images", rows, "file_name"))
    for name, image in zip(file_names, ids.tolist(), strict=True):
        _check_inside(path, name, image)
    _check_exist(path, folder, file_names)
    return ImageRecords(folder, file_names, ids, sizes)


def _check_inside(path: Path, name: str, image: int) -> None:
    """A file name may not lead out of the image folder, on any operating system."""
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts:
            raise DataError(
                f"{path}: image id {image} has the file name '{name}', which leaves the image folder. "
                "Names must be relative to it, without '..'."
            )


def _check_exist(path: Path, folder: Path, file_names: Sequence[str]) -> None:
    """One listing per folder instead of one question per file: 100 times faster on network disks."""
    listed: dict[str, set[str]] = {}
    missing: list[str] = []
    for name in file_names:
        parent, _, base = name.rpartition("/")
        if parent not in listed:
            listed[parent] = set(_files_in(folder / parent))
        if base not in listed[parent]:
            missing.append(name)
    if missing:
        some = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise DataError(
            f"{path}: {len(missing)} of {len(file_names)} image files are not in {folder}: {some}. "
            "Give the folder that the file names are relative to (upper and lower case count)."
        )


def _files_in(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            yield from (entry.name for entry in found if entry.is_file())
    except (OSError, ValueError):  # an absent folder has no files; ValueError: a zero byte in its name
        return


def _read_categories(
    path: Path, content: Entry, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int | None]]:
    """Class names, the file's id of each, and the class index of each of the file's ids (None: no class)."""
    rows = entries(path, content, "categories")
    ids = unique(path, "category", integers(path, "categories", rows, "id")).tolist()
    by_id = dict(sorted(zip(ids, names(path, "categories", rows, "name"), strict=True)))
    if repeated := [name for name, count in Counter(by_id.values()).items() if count > 1]:
        raise DataError(
            f"{path}: the category name '{repeated[0]}' occurs more than once; names must differ."
        )
    if not by_id:
        raise DataError(f"{path}: 'categories' is empty; expected at least one category.")
    chosen = tuple(by_id.values()) if class_names is None else tuple(class_names)
    if len(set(chosen)) < len(chosen) or not chosen:
        raise DataError(f"class_names is {list(chosen)}; expected names, each once.")
    index_of = {name: index for index, name in enumerate(chosen)}
    class_of = {category: index_of.get(name) for category, name in by_id.items()}
    _check_vocabulary(path, content, by_id, class_of, chosen)
    id_of = {name: category for category, name in by_id.items()}
    unused = iter(range(max(ids) + 1, max(ids) + 1 + len(chosen)))
    return chosen, tuple(id_of[name] if name in id_of else next(unused) for name in chosen), class_of


def _check_vocabulary(
    path: Path, content: Entry, by_id: dict[int, str], class_of: dict[int, int | None], chosen: Sequence[str]
) -> None:
    foreign = {category for category, index in class_of.items() if index is None}
    if not foreign:
        return
    rows = entries(path, content, "annotations")
    used = Counter(integers(path, "annotations", rows, "category_id").tolist())
    if lost := [by_id[category] for category in sorted(foreign) if used[category]]:
        raise DataError(
            f"{path}: annotations of {lost} have no place among the given class names {list(chosen)}; the "
            f"file's categories are {list(by_id.values())}. Map or remove these categories, or name them too."
        )


def _read_annotations(
    path: Path, content: Entry, images: ImageRecords, class_of: dict[int, int | None], problems: Problems
) -> Annotations:
    rows = entries(path, content, "annotations")
    what = "annotations"
    ids = unique(path, "annotation", integers(path, what, rows, "id"))
    image = _positions(path, ids, integers(path, what, rows, "image_id"), images.ids, "image")
    known = np.array(sorted(class_of), dtype=np.int64)
    category = _positions(path, ids, integers(path, what, rows, "category_id"), known, "category")
    label_of = np.array([-1 if class_of[i] is None else class_of[i] for i in known.tolist()], dtype=np.int64)
    file_boxes = bboxes(path, rows, ids)
    boxes = np.concatenate([file_boxes[:, :2], file_boxes[:, :2] + file_boxes[:, 2:]], axis=1)
    extent = np.tile(images.sizes[image][:, ::-1].astype(np.float64), 2)  # [T, 4] width, height, twice
    clipped = np.clip(boxes, 0, extent)
    keep = _usable(file_boxes, clipped, boxes, ids, problems)
    areas = _areas(path, rows, ids, file_boxes)
    crowd = flags(path, rows, ids)
    order = np.lexsort((crowd, image))
    order = order[keep[order]]
    counts = np.bincount(image[order], minlength=len(images))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    single = np.bincount(image[order][~crowd[order]], minlength=len(images))
    return Annotations(
        ids=ids[order],
        labels=label_of[category][order],
        boxes=clipped[order],
        file_boxes=file_boxes[order],
        areas=areas[order],
        is_crowd=crowd[order],
        starts=starts,
        crowd_starts=starts[:-1] + single,
    )


def _positions(
    path: Path, annotations: NDArray[np.int64], wanted: NDArray[np.int64], known: NDArray[np.int64], what: str
) -> NDArray[np.int64]:
    """[T] where each wanted id stands among the known ones."""
    if not len(wanted):
        return wanted
    order = np.argsort(known)
    at = np.searchsorted(known, wanted, sorter=order).clip(max=max(len(known) - 1, 0))
    if len(lost := np.flatnonzero(known[order][at] != wanted) if len(known) else np.arange(1)):
        raise DataError(
            f"{path}: annotation id {annotations[lost[0]]} belongs to {what} {wanted[lost[0]]}, which the "
            f"file does not describe ({len(lost)} such annotations). Remove them or add the {what}."
        )
    return order[at]


def _usable(
    file_boxes: NDArray[np.float64],
    clipped: NDArray[np.float64],
    boxes: NDArray[np.float64],
    ids: NDArray[np.int64],
    problems: Problems,
) -> NDArray[np.bool_]:
    """[T] which boxes have an inside within their image; notes the others, and those that were clipped."""
    degenerate = (file_boxes[:, 2:] < SMALLEST_SIDE).any(axis=1)
    outside = ~degenerate & ((clipped[:, 2:] - clipped[:, :2]) < SMALLEST_SIDE).any(axis=1)
    # Exporters round to a few decimals: a hundredth of a pixel beyond the border is no news.
    crossing = ~degenerate & ~outside & (np.abs(clipped - boxes) > 1e-2).any(axis=1)
    kinds = {
        f"degenerate boxes (a side under {SMALLEST_SIDE} pixels) dropped": degenerate,
        "boxes entirely outside of their image dropped": outside,
        "boxes clipped at the border of their image": crossing,
    }
    for kind, where in kinds.items():
        named = [
            f"annotation id {ids[row]} {np.round(file_boxes[row], 2).tolist()}"
            for row in np.flatnonzero(where)[:_NAMED]
        ]
        problems.add(kind, named, int(where.sum()))
    return np.logical_not(degenerate | outside)


def _areas(
    path: Path, rows: Sequence[Entry], ids: NDArray[np.int64], file_boxes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[T] the file's area, or the box's where there is none."""
    computed = file_boxes[:, 2] * file_boxes[:, 3]
    given = [row.get("area") for row in rows]
    for at, value in enumerate(given):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
            raise DataError(f"{path}: annotation id {ids[at]} has area {value!r}; expected a number >= 0.")
        computed[at] = value
    return computed
