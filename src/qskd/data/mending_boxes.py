"""Annotations of COCO content: every box that makes no sense, and what is left when that is mended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from qskd.data.formats.coco_tables import LARGEST_AREA, SMALLEST_SIDE, WHERE
from qskd.data.mended import SCALE, Mended, key_of, known, whole

_SAME = 0.95  # intersection over union from which two boxes of one class are one object
_HUGE = 1e9  # pixels
_ROUNDING = 1e-2  # pixels that exporters round away


def mend_annotations(
    mended: Mended, rows: Sequence[dict[str, Any]], same_name: Mapping[int, int], same_image: Mapping[int, int]
) -> None:
    """Note the annotations with their boxes inside their images.

    Args:
        mended: its categories and images are known.
        rows: the annotations of the file.
        same_name: the category that each category's id stands for.
        same_image: the image that each image's id stands for.
    """
    seen = Counter(whole(row.get("id")) for row in rows)
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
            if (category := known(row.get("category_id"), same_name)) is not None:
                mended.classes_lost.add(category)
            continue
        where = str(row.get(WHERE) or (f"annotation id {row['id']}" if "id" in row else f"annotations[{at}]"))
        entry = _annotation(mended, where, row, same_name, same_image)
        if (image := known(row.get("image_id"), same_image)) is not None:
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
    return known(given, same_image) is None and key_of(given) in mended.lost


def _annotation(
    mended: Mended, where: str, row: Mapping[str, Any], same_name: Mapping[int, int], same_image: Mapping[int, int]
) -> dict[str, Any] | None:
    """One annotation with its box inside its image, or None where it is of no use."""
    image = known(row.get("image_id"), same_image)
    if image is None:
        mended.note("error", "annotation of an unknown image", where, f"image_id {row.get('image_id')!r:.40}")
        return None
    category = known(row.get("category_id"), same_name)
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
    return entry | {"area": _area(row.get("area"), given, box, mended.images[image][SCALE])}


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
    scale, sides = image[SCALE] * 2, (float(image["width"]), float(image["height"]))
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
