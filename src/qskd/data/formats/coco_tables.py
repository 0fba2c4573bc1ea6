"""The images and annotations of a COCO file as checked columns.

Letters: I images, T annotations of the whole file, N annotations of one image.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import overload

import numpy as np
from numpy.typing import NDArray

from qskd.data.formats.coco_columns import Entry, bboxes, entries, flags, integers, names, unique
from qskd.errors import DataError

SMALLEST_SIDE = 1e-3
"""Pixels; a box with a shorter side holds nothing that could be learned or found."""

WHERE = "where"
"""Key of an annotation that says where it comes from, put there by readers of other formats than COCO's."""

LARGEST_AREA = 1e18  # pixels, of the largest box
_NAMED = 5  # entries that a problem names; the others are only counted


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of the annotation file; its pixels are read when somebody asks for them."""

    id: int
    path: Path
    height: int  # pixels, as the annotation file says
    width: int
    blob: Callable[[], bytes] | None = None  # the encoded image, where it is no file of its own


@dataclass(frozen=True, slots=True)
class ImageRecords(Sequence[ImageRecord]):
    """All images of a file, in the file's order, as columns; a record is made when it is asked for."""

    folder: Path
    file_names: tuple[str, ...]  # relative to the folder, with forward slashes
    ids: NDArray[np.int64]  # [I]
    sizes: NDArray[np.int64]  # [I, 2] (height, width), pixels
    blobs: Callable[[int], bytes] | None = None  # the encoded image at a position, where images are no files

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
        blob = partial(self.blobs, index) if self.blobs is not None else None
        return ImageRecord(int(self.ids[index]), self.folder / self.file_names[index], height, width, blob)


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
        if image < 0:
            image += len(self.crowd_starts)
        return slice(int(self.starts[image]), int(self.crowd_starts[image]))


def read_images(
    path: Path, folder: Path, content: Entry, problems: Problems, blobs: Callable[[int], bytes] | None = None
) -> ImageRecords:
    """The images of a file, every one of which exists in the folder or among the blobs; pixels are not looked at."""
    rows = entries(path, content, "images")
    if not rows:
        raise DataError(f"{path}: 'images' is empty; expected at least one image.")
    ids = unique(path, "image", integers(path, "images", rows, "id"))
    sizes = np.stack([integers(path, "images", rows, key) for key in ("height", "width")], axis=1)
    if len(bad := np.flatnonzero((sizes < 1).any(axis=1))):
        height, width = sizes[bad[0]].tolist()
        raise DataError(f"{path}: image id {ids[bad[0]]} has height {height} and width {width}; expected >= 1.")
    file_names = tuple(names(path, "images", rows, "file_name"))
    for name, image in zip(file_names, ids.tolist(), strict=True):
        _check_inside(path, name, image)
    if blobs is None:
        file_names = tuple(with_slashes(folder, name) for name in file_names)
    if blobs is None:
        _check_exist(path, folder, file_names)
    shared = [name for name, count in Counter(file_names).items() if count > 1]
    problems.add("image files that several image ids share", shared)
    return ImageRecords(folder, file_names, ids, sizes, blobs)


def _check_inside(path: Path, name: str, image: int) -> None:
    """A file name may not lead out of the image folder, on any operating system."""
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts:
            raise DataError(
                f"{path}: image id {image} has the file name '{name}', which leaves the image folder. "
                "Names must be relative to it, without '..'."
            )


def with_slashes(folder: Path, name: str) -> str:
    """The name with slashes for the backslashes that Windows writes, unless a file is really called that."""
    return name.replace("\\", "/") if "\\" in name and not os.path.isfile(folder / name) else name


def _check_exist(path: Path, folder: Path, file_names: Sequence[str]) -> None:
    """One listing per folder instead of one question per file: 100 times faster on network disks."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give the one that the file names of {path} are relative to.")
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


def read_annotations(
    path: Path, content: Entry, images: ImageRecords, class_of: dict[int, int | None], problems: Problems
) -> Annotations:
    """The usable annotations of a file, sorted by image; ``class_of`` maps category ids to class indices."""
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
    origins = [str(row.get(WHERE) or f"annotation id {id_}") for row, id_ in zip(rows, ids.tolist(), strict=True)]
    keep = _usable(file_boxes, clipped, boxes, origins, problems)
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
    origins: Sequence[str],
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
        named = [f"{origins[row]} {np.round(file_boxes[row], 2).tolist()}" for row in np.flatnonzero(where)[:_NAMED]]
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
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST_AREA:
            raise DataError(f"{path}: annotation id {ids[at]} has area {value!r:.80}; expected a number >= 0.")
        computed[at] = value
    return computed
