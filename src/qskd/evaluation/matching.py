"""Which detection finds which object, by COCO's rules: the tables that everything about single images is read from.

A detection is matched within its image and class, best score first, with the free object that it overlaps most; only
where there is none with a crowd, which makes it neither right nor wrong. All of it as pycocotools does, area range
"all", at most 100 detections of an image and class.

Letters: I images, C classes, D detections, N objects that are no crowds, T = 10 IoU thresholds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qskd.evaluation.detections import Array, Detections

IOUS = np.linspace(0.5, 0.95, 10)
"""The thresholds that COCO averages over."""

_MOST = 100
_LARGEST = 1e10  # square pixels; beyond COCO's area range "all"
_ALMOST_ONE = 1 - 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The objects of a split; images in the order of their ids."""

    image_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    starts: Array  # [I + 1]: objects of image i are at starts[i]:starts[i + 1], crowds included
    labels: Array  # [all]
    boxes: Array  # [all, 4] xywh in pixels, as the file has them
    is_ignored: Array  # [all] crowds, and what is outside of COCO's area range

    @classmethod
    def of(cls, truth: dict[str, Any]) -> "Truth":
        """Read ground truth in COCO's form; classes are its categories, in their order."""
        ids = sorted(int(image["id"]) for image in truth["images"])
        position = {image: at for at, image in enumerate(ids)}
        label = {int(category["id"]): at for at, category in enumerate(truth["categories"])}
        rows = sorted(truth["annotations"], key=lambda one: position[int(one["image_id"])])  # stable
        images = np.array([position[int(one["image_id"])] for one in rows], dtype=np.int64)
        boxes = np.array([one["bbox"] for one in rows], dtype=np.float64).reshape(-1, 4)
        areas = np.array([one.get("area", one["bbox"][2] * one["bbox"][3]) for one in rows], dtype=np.float64)
        is_crowd = np.array([bool(one.get("iscrowd", 0)) for one in rows], dtype=bool)
        return cls(
            tuple(ids),
            tuple(str(category["name"]) for category in truth["categories"]),
            np.searchsorted(images, np.arange(len(ids) + 1)),
            np.array([label[int(one["category_id"])] for one in rows], dtype=np.int64),
            boxes,
            is_crowd | (areas < 0) | (areas > _LARGEST),
        )

    def objects(self) -> Array:
        """[I, C] how many objects of each class an image has, ignored ones left out."""
        counts = np.zeros((len(self.image_ids), len(self.class_names)), dtype=np.int64)
        images = np.repeat(np.arange(len(self.image_ids)), np.diff(self.starts))
        np.add.at(counts, (images[~self.is_ignored], self.labels[~self.is_ignored]), 1)
        return counts


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """What became of each detection of a model; best score first, ties as COCO's evaluation has them."""

    truth: Truth
    objects: Array  # [I, C]
    image: Array  # [D] position of the image
    label: Array  # [D]
    score: Array  # [D]
    is_right: Array  # [T, D] matched with an object
    is_ignored: Array  # [T, D] neither right nor wrong
    object_of: Array  # [D] position in ``truth`` of the object it is matched with at IoU 0.5; -1 for none
    nearest: Array  # [2, D] object it overlaps most: of its own class, of the others; -1 for none
    overlap: Array  # [2, D] IoU with these; 0 for none


def match(truth: Truth, found: Mapping[int, Detections]) -> Matches:
    """Match the detections of one model.

    Args:
        truth: the objects.
        found: detections by image id, labels as positions in ``truth.class_names``; an image without any may be absent.
    """
    columns = [_match_image(truth, at, found[id_]) for at, id_ in enumerate(truth.image_ids) if id_ in found]
    columns = columns or [_match_image(truth, 0, None)]
    image, label, score, right, ignored, object_of, nearest, overlap = (
        np.concatenate(parts, axis=-1) for parts in zip(*columns, strict=True)
    )
    order = np.argsort(-score, kind="stable")
    return Matches(
        truth,
        truth.objects(),
        image[order],
        label[order],
        score[order],
        right[:, order],
        ignored[:, order],
        object_of[order],
        nearest[:, order],
        overlap[:, order],
    )


def _match_image(truth: Truth, at: int, found: Detections | None) -> tuple[Array, ...]:
    """The columns of ``Matches`` for one image."""
    if found is None:
        found = Detections(np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 4)))
    score, label, boxes = _best(found)
    own = slice(truth.starts[at], truth.starts[at + 1]) if len(truth.image_ids) else slice(0, 0)
    labels, skipped = truth.labels[own], truth.is_ignored[own]
    iou = overlaps(boxes, truth.boxes[own], skipped)  # [D, all]
    right = np.zeros((len(IOUS), len(score)), dtype=bool)
    ignored = np.zeros_like(right)
    object_of = np.full(len(score), -1, dtype=np.int64)
    for class_ in np.unique(label):
        rows, columns = np.flatnonzero(label == class_), np.flatnonzero(labels == class_)
        if len(columns):
            partner = _match_class(iou[np.ix_(rows, columns)], skipped[columns])  # [T, rows]
            is_matched = partner >= 0
            is_crowd = is_matched & skipped[columns][partner]
            right[:, rows], ignored[:, rows] = is_matched & ~is_crowd, is_crowd
            object_of[rows] = np.where(right[0, rows], columns[partner[0]] + own.start, -1)
    area = boxes[:, 2] * boxes[:, 3]
    ignored |= ~right & ((area < 0) | (area > _LARGEST))
    nearest, overlap = _nearest(iou, label, labels, skipped, own.start)
    return np.full(len(score), at), label, score, right, ignored, object_of, nearest, overlap


def _best(found: Detections) -> tuple[Array, Array, Array]:
    """Scores, labels and xywh boxes, best score first, no more than COCO counts of a class."""
    order = np.argsort(-np.asarray(found.scores), kind="stable")
    label = np.asarray(found.labels)[order]
    rank = np.zeros(len(order), dtype=np.int64)
    for class_ in np.unique(label):
        rank[label == class_] = np.arange((label == class_).sum())
    order, label = order[rank < _MOST], label[rank < _MOST]
    corners = np.asarray(found.boxes, dtype=np.float64)[order].reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return np.asarray(found.scores, dtype=np.float64)[order], label, boxes


def overlaps(boxes: Array, objects: Array, is_crowd: Array) -> Array:
    """[D, N] IoU of xywh boxes; with a crowd, the part of the detection that lies in it."""
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], objects[None, :, :2] + objects[None, :, 2:])
    sides = high - low
    inside = np.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], 0.0)
    own, other = boxes[:, 2] * boxes[:, 3], objects[:, 2] * objects[:, 3]
    union = np.where(is_crowd[None], own[:, None], own[:, None] + other[None] - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def _match_class(iou: Array, is_crowd: Array) -> Array:
    """[T, D] column of the object that each detection is matched with, -1 for none; rows best score first."""
    partner = np.full((len(IOUS), len(iou)), -1, dtype=np.int64)
    limits = np.minimum(IOUS, _ALMOST_ONE)
    is_free = np.repeat(~is_crowd[None], len(IOUS), axis=0)  # [T, N]
    for row in np.flatnonzero((iou >= limits[0]).any(axis=1)):
        for candidates in (is_free, is_crowd[None]):
            value = np.where(candidates & (iou[row] >= limits[:, None]), iou[row], -1.0)  # [T, N]
            last_best = value.shape[1] - 1 - value[:, ::-1].argmax(axis=1)  # of equals the last, as COCO takes it
            is_new = (partner[:, row] < 0) & (value.max(axis=1) >= 0)
            partner[is_new, row] = last_best[is_new]
        taken = partner[:, row] >= 0
        is_free[taken, partner[taken, row]] = False
    return partner


def _nearest(iou: Array, label: Array, labels: Array, skipped: Array, start: int) -> tuple[Array, Array]:
    """[2, D] the objects overlapped most, of the own class and of others, and how much."""
    nearest, overlap = np.full((2, len(label)), -1, dtype=np.int64), np.zeros((2, len(label)))
    if not (~skipped).any() or not len(label):
        return nearest, overlap
    is_own = label[:, None] == labels[None]
    for at, chosen in enumerate((is_own, ~is_own)):
        value = np.where(chosen & ~skipped[None], iou, 0.0)
        overlap[at] = value.max(axis=1)
        nearest[at] = np.where(overlap[at] > 0, value.argmax(axis=1) + start, -1)
    return nearest, overlap
