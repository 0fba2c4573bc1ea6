"""What there is to learn from and to be scored against: images, classes and boxes, checked, as arrays.

Whatever the format of the files was, its reader makes content in COCO's form, and this is where that is checked.
A box of such content is [left, top, width, height] in pixels; here it becomes corners (left, top, right, bottom).
Letters: I images, T annotations of the whole file, N annotations of one image.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qskd.data.formats.coco_columns import Entry, entries, integers, names, unique
from qskd.data.formats.coco_tables import (
    Annotations,
    ImageRecord,
    ImageRecords,
    Problems,
    read_annotations,
    read_images,
)
from qskd.errors import DataError

__all__ = ["DetectionIndex", "ImageRecord", "ImageRecords", "Problems"]


@dataclass(frozen=True, slots=True, eq=False)
class DetectionIndex:
    """The images of one split with their objects."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # the file's id of each class
    images: ImageRecords
    annotations: Annotations
    problems: Problems

    @classmethod
    def of(
        cls,
        origin: Path,
        images: Path,
        content: Mapping[str, Any],
        *,
        class_names: Sequence[str] | None = None,
        strict: bool = False,
        problems: Problems | None = None,
        blobs: Callable[[int], bytes] | None = None,
    ) -> "DetectionIndex":
        """Check content in COCO's form.

        Args:
            origin: where it comes from, for messages.
            images: the folder that its file names are relative to.
            content: ``images``, ``annotations`` and ``categories``.
            class_names: the vocabulary to use, e.g. a model's; by default the content's, by category id.
            strict: refuse boxes that would otherwise be dropped (degenerate, or outside of their image).
            problems: what its reader had to leave out or mend.
            blobs: the encoded image at a position, where images are no files in ``images``.

        Raises:
            DataError: the content contradicts itself, an image file is missing, or its categories do not fit
                ``class_names``. The message names origin and entry.
        """
        entry = dict(content)
        problems = problems if problems is not None else Problems()
        records = read_images(origin, images, entry, problems, blobs)
        names_, ids, class_of = _read_categories(origin, entry, class_names)
        table = read_annotations(origin, entry, records, class_of, problems)
        if strict and (refused := [line for line in problems.lines() if "dropped" in line]):
            raise DataError(f"{origin}: {'; '.join(refused)}. Mend these boxes, or leave out --strict.")
        return cls(names_, ids, records, table, problems)

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, image: int) -> NDArray[np.int64]:
        """[N] class indices of the objects of the image at this position; crowds are left out."""
        return self.annotations.labels[self.annotations.objects(image)]

    def boxes(self, image: int) -> NDArray[np.float64]:
        """[N, 4] corners in pixels of the objects of the image at this position, clipped to the image."""
        return self.annotations.boxes[self.annotations.objects(image)]

    def fingerprint(self) -> str:
        """SHA-256 over classes, file names, labels, boxes and which of them are crowds: what there is to learn from."""
        digest = hashlib.sha256("\n".join((*self.class_names, *self.images.file_names)).encode())
        for column in (self.annotations.labels, self.annotations.file_boxes, self.annotations.starts):
            digest.update(np.ascontiguousarray(column).tobytes())
        if self.annotations.is_crowd.any():
            digest.update(np.ascontiguousarray(self.annotations.is_crowd, dtype=bool).tobytes())
        return digest.hexdigest()

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


def _read_categories(
    path: Path, content: Entry, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int | None]]:
    """Class names, the file's id of each, and the class index of each of the file's ids (None: no class)."""
    rows = entries(path, content, "categories")
    ids = unique(path, "category", integers(path, "categories", rows, "id")).tolist()
    by_id = dict(sorted(zip(ids, names(path, "categories", rows, "name"), strict=True)))
    if repeated := [name for name, count in Counter(by_id.values()).items() if count > 1]:
        raise DataError(f"{path}: the category name '{repeated[0]}' occurs more than once; names must differ.")
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
