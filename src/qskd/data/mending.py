"""COCO content taken apart entry by entry: everything that is wrong with it, and what is left when that is mended.

``DetectionIndex.of`` stops at the first entry that makes no sense; here all of them are found.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from qskd.data.formats.coco_tables import with_slashes
from qskd.data.images import upright_size_and_turn
from qskd.data.mended import POSITION, SCALE, Mended, key_of, whole
from qskd.data.mending_boxes import mend_annotations
from qskd.errors import DataError

_SAME_SHAPE = 0.02  # relative difference of two aspect ratios that are one


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
    boxes = Counter(key_of(row.get("image_id")) for row in annotations)
    same_image = _mend_images(mended, images, boxes)
    mend_annotations(mended, annotations, same_name, same_image)
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


def _mend_categories(mended: Mended, rows: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Note the categories; returns the id that each id stands for, since names may repeat."""
    stands_for: dict[int, int] = {}
    by_name: dict[str, int] = {}
    for at, row in enumerate(rows):
        where, key, name = f"categories[{at}]", whole(row.get("id")), row.get("name")
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
    parents = [row.get("supercategory") for row in rows if whole(row.get("id")) in used]
    own = {whole(row.get("id")): row.get("supercategory") for row in reversed(rows)}
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
        key, name = whole(row.get("id")), _plain_name(mended.folder, row.get("file_name"))
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
            mended.images[key] = {"id": key, POSITION: at} | entry
            stands_for[key] = by_file[name] = key
        given = key_of(row.get("id"))
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
        return {"file_name": name, "height": row["height"], "width": row["width"], SCALE: (1.0, 1.0)}
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
    scale = _scale(mended, where, (whole(row.get("height")), whole(row.get("width"))), (height, width), turned)
    return None if scale is None else {"file_name": name, "height": height, "width": width, SCALE: scale}


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
