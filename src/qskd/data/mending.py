"""COCO content taken apart entry by entry: everything that is wrong with it, and what is left when that is mended.

``DetectionIndex.of`` stops at the first entry that makes no sense; here all of them are found.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from qskd.data.findings import Finding, Severity
from qskd.data.formats.coco_tables import LARGEST_AREA, SMALLEST_SIDE, WHERE, with_slashes
from qskd.data.images import upright_size_and_turn
from qskd.data.index import ImageRecord
from qskd.errors import DataError

_SAME = 0.95  # intersection over union from which two boxes of one class are one object
_SAME_SHAPE = 0.02  # relative difference of two aspect ratios that are one
_HUGE = 1e9  # pixels
_ROUNDING = 1e-2  # pixels that exporters round away
_SCALE = "scale"  # key of an image: what its boxes are multiplied by
_POSITION = "position"  # key of an image: its place in the file


@dataclass(slots=True)
class Mended:
    """What is left of a split, in COCO's form, and what was found on the way."""

    origin: Path
    folder: Path
    split: str
    blobs: Callable[[int], bytes] | None = None  # the encoded image at a position, where images are no files
    images: dict[int, dict[str, Any]] = field(default_factory=dict)  # by id
    categories: dict[int, str] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unsure: set[int] = field(default_factory=set)  # ids of images with objects nobody knows: labels made no sense
    listed: int = 0  # images that the content names
    listed_boxes: int = 0
    lost: set[int | str] = field(default_factory=set)  # ids of images that were left out
    classes_lost: set[int] = field(default_factory=set)  # what boxes of such images are of

    def note(self, severity: Severity, kind: str, where: str, what: str = "") -> None:
        """Note one finding."""
        self.findings.append(Finding(severity, kind, where, what, self.split))

    def record(self, image: int) -> ImageRecord:
        """Where the pixels of an image are."""
        row = self.images[image]
        blob = partial(self.blobs, row[_POSITION]) if self.blobs is not None else None
        return ImageRecord(image, self.folder / row["file_name"], row["height"], row["width"], blob)

    def count_boxes(self, image: int) -> int:
        """How many annotations an image has."""
        return sum(row["image_id"] == image for row in self.annotations)

    def drop_image(self, image: int) -> None:
        """Leave an image out, with its annotations."""
        del self.images[image]
        self.annotations = [row for row in self.annotations if row["image_id"] != image]

    def as_coco(self) -> dict[str, Any]:
        """Content that ``DetectionIndex.of`` takes."""
        return self._content(self.images)

    def clean(self) -> dict[str, Any]:
        """The same without the images some of whose objects are not known, or none of whose boxes is left.

        They would teach that what is seen in them is background.
        """
        return self._content(self.images.keys() - self.unsure)

    def _content(self, kept: Container[int]) -> dict[str, Any]:
        categories = [{"id": key, "name": name} for key, name in sorted(self.categories.items())]
        own = (_SCALE, _POSITION)
        images = [
            {key: value for key, value in row.items() if key not in own}
            for image, row in self.images.items()
            if image in kept
        ]
        boxes = [row for row in self.annotations if row["image_id"] in kept]
        rows = [{key: value for key, value in row.items() if key != WHERE} for row in boxes]
        return {"images": images, "annotations": rows, "categories": categories}


def mend(
    origin: Path,
    folder: Path,
    split: str,
    content: Mapping[str, Any],
    blobs: Callable[[int], bytes] | None = None,
    unread: Mapping[int, int] | None = None,
) -> Mended:
    """Check every category, image and annotation of COCO content.

    Args:
        origin: the annotation file, for messages.
        folder: the folder of its images.
        split: name of the split, for messages.
        content: a COCO file's content, whatever it holds.
        blobs: the encoded image at a position, where images are no files.
        unread: labels that the reader could make no sense of, by image id.
    """
    mended = Mended(origin, folder, split, blobs)
    categories = _rows(mended, content, "categories")
    same_name = _mend_categories(mended, categories)
    images, annotations = (_rows(mended, content, key) for key in ("images", "annotations"))
    mended.listed, mended.listed_boxes = len(images), len(annotations) + sum((unread or {}).values())
    mended.unsure |= set(unread or ())
    boxes = Counter(_key(row.get("image_id")) for row in annotations)
    same_image = _mend_images(mended, images, boxes)
    _mend_annotations(mended, annotations, same_name, same_image)
    _find_unused(mended, categories)
    return mended


def _rows(mended: Mended, content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = content.get(key)
    if not isinstance(rows, list):
        if not any(one.kind == f"no list of {key}" for one in mended.findings):
            mended.note("error", f"no list of {key}", str(mended.origin), f"'{key}' is {type(rows).__name__}")
        return []
    for at, row in enumerate(rows):
        if not isinstance(row, dict):
            mended.note("error", "entry that is no object", f"{key}[{at}]", f"{row!r:.80}")
    return [row for row in rows if isinstance(row, dict)]


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value % 1:
        return None
    return int(value) if abs(value) < 2**62 else None


def _key(value: Any) -> int | str | None:
    """What an image may be called by: a whole number, or the text that stands where one should."""
    return value if isinstance(value, str) else _whole(value)


def _known(value: Any, ids: Mapping[int, int]) -> int | None:
    """The id that a value stands for; None for what is no id."""
    key = _whole(value)
    return None if key is None else ids.get(key)


def _mend_categories(mended: Mended, rows: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Note the categories; returns the id that each id stands for, since names may repeat."""
    stands_for: dict[int, int] = {}
    by_name: dict[str, int] = {}
    for at, row in enumerate(rows):
        where, key, name = f"categories[{at}]", _whole(row.get("id")), row.get("name")
        if key is None or not isinstance(name, str) or not name:
            mended.note("error", "category without id or name", where, f"{row!r:.80}")
        elif key in stands_for:
            mended.note("error", "category id repeated", where, f"id {key}, '{name}'")
        elif name in by_name:
            mended.note("error", "category name repeated", where, f"'{name}' is id {by_name[name]} and {key}")
            stands_for[key] = by_name[name]
        else:
            mended.categories[key] = name
            stands_for[key] = by_name[name] = key
    ids = sorted(mended.categories)
    if ids and ids not in (list(range(len(ids))), list(range(1, len(ids) + 1))):
        mended.note("note", "category ids with gaps", str(mended.origin), f"{ids[:12]}")
    return stands_for


def _find_unused(mended: Mended, rows: Sequence[dict[str, Any]]) -> None:
    """Categories without annotations, among them roots that exporters put above all others; these are left out.

    Boxes of images that were left out count: such a class has objects, and only its images are gone.
    """
    used = {row["category_id"] for row in mended.annotations} | mended.classes_lost
    parents = [row.get("supercategory") for row in rows if _whole(row.get("id")) in used]
    own = {_whole(row.get("id")): row.get("supercategory") for row in reversed(rows)}
    for key, name in sorted(mended.categories.items()):
        if key in used:
            continue
        if parents and own[key] != name and all(parent == name for parent in parents):
            mended.note("warning", "placeholder root category", str(mended.origin), f"id {key}, '{name}'")
            del mended.categories[key]
        else:
            mended.note("note", "class without objects", str(mended.origin), f"'{name}'")


def _mend_images(
    mended: Mended, rows: Sequence[dict[str, Any]], boxes: Mapping[int | str | None, int]
) -> dict[int, int]:
    """Note the images; returns the id that each id stands for, since files may be listed twice.

    ``boxes`` are the annotations of each id, which an image that is left out takes along.
    """
    stands_for: dict[int, int] = {}
    by_file: dict[str, int] = {}
    for at, row in enumerate(rows):
        key, name = _whole(row.get("id")), _plain_name(mended.folder, row.get("file_name"))
        where = f"image {name}" if isinstance(name, str) and name else f"images[{at}]"
        if key is None or not isinstance(name, str) or not name:
            told = f"id {row.get('id')!r:.40} (a whole number is expected), file name {row.get('file_name')!r:.80}"
            mended.note("error", "image without id or file name", where, told)
        elif key in stands_for:
            mended.note("error", "image id repeated", where, f"id {key}")
        elif name in by_file:
            mended.note("warning", "image file listed twice", where, f"ids {by_file[name]} and {key}")
            stands_for[key] = by_file[name]
        elif entry := _image(mended, where, name, row):
            mended.images[key] = {"id": key, _POSITION: at} | entry
            stands_for[key] = by_file[name] = key
        given = _key(row.get("id"))
        if given is not None and given not in stands_for:
            _lose(mended, given, boxes.get(given, 0))
    return stands_for


def _lose(mended: Mended, image: int | str, boxes: int) -> None:
    """Note that an image was left out, and say in the finding about it how many boxes went with it."""
    mended.lost.add(image)
    if boxes:
        last = mended.findings[-1]
        mended.findings[-1] = replace(last, what="; ".join(filter(None, (last.what.rstrip("."), with_boxes(boxes)))))


def with_boxes(count: int) -> str:
    """What to say of an image that is left out with its boxes."""
    return f"left out with its {count} box{'es' if count != 1 else ''}"


def _plain_name(folder: Path, name: Any) -> Any:
    """The same file's name as this system writes it, so that one file has one name."""
    if not isinstance(name, str) or not name or "\0" in name or _leaves(name):
        return name
    return Path(os.path.normpath(with_slashes(folder, name))).as_posix()


def _image(mended: Mended, where: str, name: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """One image with its true size, or None where there is none."""
    if mended.blobs is not None:
        return {"file_name": name, "height": row["height"], "width": row["width"], _SCALE: (1.0, 1.0)}
    if _leaves(name):
        mended.note("error", "file name leaves the image folder", where)
        return None
    if "\0" in name or not os.path.isfile(mended.folder / name):
        mended.note("error", "image file missing", where, f"not in {mended.folder}")
        return None
    try:
        (height, width), turned = upright_size_and_turn(mended.folder / name)
    except DataError as error:
        mended.note("error", "image unreadable", where, str(error).removeprefix(f"{mended.folder / name}: "))
        return None
    scale = _scale(mended, where, (_whole(row.get("height")), _whole(row.get("width"))), (height, width), turned)
    return None if scale is None else {"file_name": name, "height": height, "width": width, _SCALE: scale}


def _scale(
    mended: Mended, where: str, said: tuple[int | None, int | None], true: tuple[int, int], turned: bool
) -> tuple[float, float] | None:
    """What boxes are multiplied by, in x and y, to fit the image as it is; None where that cannot be known."""
    if said == true:
        return 1.0, 1.0
    told = f"is {true[1]} x {true[0]} (width x height), said to be {said[1]} x {said[0]}"
    if turned and said == true[::-1]:
        mended.note("error", "turned by its EXIF tag, but not by its annotations", where, told)
        return None
    height, width = said
    if height is None or width is None or min(height, width) < 1:
        mended.note("error", "image without a size", where, told)
        return 1.0, 1.0
    scale = (true[1] / width, true[0] / height)
    if abs(scale[0] / scale[1] - 1) < _SAME_SHAPE:
        mended.note("error", "image of another size than said", where, told)
        return scale
    mended.note("error", "image of another shape than said", where, told)
    return None


def _leaves(name: str) -> bool:
    flavours = (PurePosixPath(name), PureWindowsPath(name))
    return any(one.is_absolute() or one.drive or one.root or ".." in one.parts for one in flavours)


def _mend_annotations(
    mended: Mended, rows: Sequence[dict[str, Any]], same_name: Mapping[int, int], same_image: Mapping[int, int]
) -> None:
    seen = Counter(_whole(row.get("id")) for row in rows)
    repeated = [key for key, count in seen.items() if key is not None and count > 1]
    for key in repeated:
        mended.note("error", "annotation id repeated", f"annotation id {key}", f"{seen[key]} times")
    without = seen[None]
    if without:
        mended.note("error", "annotations without id", str(mended.origin), f"{without}")
    by_image: dict[int, list[dict[str, Any]]] = {}
    annotated: set[int] = set()
    for at, row in enumerate(rows):
        if _is_lost(mended, row, same_image):  # told where its image was
            if (category := _known(row.get("category_id"), same_name)) is not None:
                mended.classes_lost.add(category)
            continue
        where = str(row.get(WHERE) or (f"annotation id {row['id']}" if "id" in row else f"annotations[{at}]"))
        entry = _annotation(mended, where, row, same_name, same_image)
        if (image := _known(row.get("image_id"), same_image)) is not None:
            annotated.add(image)
        if entry is not None:
            by_image.setdefault(entry["image_id"], []).append(entry | {WHERE: where})
    mended.unsure |= annotated - by_image.keys()  # of all its boxes none is left
    for image in mended.images:
        for entry in _without_duplicates(mended, by_image.get(image, [])):
            mended.annotations.append(entry | {"id": len(mended.annotations) + 1})


def _is_lost(mended: Mended, row: Mapping[str, Any], same_image: Mapping[int, int]) -> bool:
    """Whether an annotation is of an image that was left out."""
    given = row.get("image_id")
    return _known(given, same_image) is None and _key(given) in mended.lost


def _annotation(
    mended: Mended, where: str, row: Mapping[str, Any], same_name: Mapping[int, int], same_image: Mapping[int, int]
) -> dict[str, Any] | None:
    """One annotation with its box inside its image, or None where it is of no use."""
    image = _known(row.get("image_id"), same_image)
    if image is None:
        mended.note("error", "annotation of an unknown image", where, f"image_id {row.get('image_id')!r:.40}")
        return None
    category = _known(row.get("category_id"), same_name)
    if category is None:
        mended.note("error", "annotation of an unknown category", where, f"category_id {row.get('category_id')!r:.40}")
        mended.unsure.add(image)
        return None
    given = row.get("bbox")
    if not _is_box(given):
        name = f"{where} in {mended.images[image]['file_name']}"
        mended.note("error", "box that is not four numbers", name, f"{given!r:.80}")
        mended.unsure.add(image)
        return None
    box = _box(mended, where, given, mended.images[image])
    if box is None:
        return None
    crowd = row.get("iscrowd") or 0
    if crowd not in (0, 1):
        mended.note("error", "iscrowd neither 0 nor 1", where, f"{crowd!r:.40}")
        crowd = 0
    entry = {"image_id": image, "category_id": category, "bbox": box, "iscrowd": int(crowd)}
    return entry | {"area": _area(row.get("area"), given, box, mended.images[image][_SCALE])}


def _area(area: Any, given: Any, box: Sequence[float], scale: tuple[float, float]) -> float:
    """The file's area, scaled as its box; the box's where there is none, or where the box was cut."""
    is_number = isinstance(area, int | float) and not isinstance(area, bool) and 0 < area < LARGEST_AREA
    is_cut = max(abs(new - old * one) for new, old, one in zip(box, given, scale * 2, strict=True)) > _ROUNDING
    return float(area) * scale[0] * scale[1] if is_number and not is_cut else box[2] * box[3]


def _is_box(box: Any) -> TypeGuard[list[float]]:
    """Whether something is four numbers of a size that pixels may have."""
    numbers = isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    return numbers and all(abs(value) < _HUGE for value in box)


def _box(mended: Mended, where: str, box: list[float], image: Mapping[str, Any]) -> list[float] | None:
    """Left, top, width, height inside the image, or None."""
    name = f"{where} in {image['file_name']}"
    if min(box[2:]) < SMALLEST_SIDE:
        mended.note("warning", "degenerate box", name, f"{box}")
        return None
    scale, sides = image[_SCALE] * 2, (float(image["width"]), float(image["height"]))
    box = [value * factor for value, factor in zip(box, scale, strict=True)]
    low = [min(max(box[axis], 0.0), sides[axis]) for axis in range(2)]
    high = [min(max(box[axis] + box[axis + 2], 0.0), sides[axis]) for axis in range(2)]
    if min(high[0] - low[0], high[1] - low[1]) < SMALLEST_SIDE:
        mended.note("warning", "box outside of its image", name, f"{box}")
        return None
    clipped = [low[0], low[1], high[0] - low[0], high[1] - low[1]]
    if max(abs(new - old) for new, old in zip(clipped, box, strict=True)) > _ROUNDING:
        mended.note("warning", "box beyond the border", name, f"{box}, image {image['width']} x {image['height']}")
        return clipped
    return [float(value) for value in box]


def _without_duplicates(mended: Mended, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The boxes of an image without those that repeat another one of their class."""
    if len(entries) < 2:
        return list(entries)
    boxes = np.array([entry["bbox"] for entry in entries])
    labels = np.array([(entry["category_id"], entry["iscrowd"]) for entry in entries])
    same = (_overlaps(boxes) >= _SAME) & (labels[:, None] == labels[None]).all(-1)
    kept: list[dict[str, Any]] = []
    for at, entry in enumerate(entries):
        twins = np.flatnonzero(same[at, :at])
        if len(twins):
            name = mended.images[entry["image_id"]]["file_name"]
            mended.note("warning", "duplicate box", f"{entry[WHERE]} in {name}", f"as {entries[int(twins[0])][WHERE]}")
        else:
            kept.append(entry)
    return kept


def _overlaps(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, N] intersection over union of left, top, width, height."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    inner = (np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])).clip(min=0).prod(-1)
    areas = boxes[:, 2:].prod(-1)
    overlaps: NDArray[np.float64] = inner / (areas[:, None] + areas[None] - inner)
    return overlaps
