"""COCO average precision, streamed: nothing accumulates but each image's few best detections.

Letters: K detections kept of an image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any, NamedTuple

import numpy as np

from qskd.errors import DataError
from qskd.evaluation.coco_tables import no_garbage_collection, precision_and_recall, result_entries
from qskd.evaluation.detections import Array, Detections

_SHOWN = 5  # image ids named in an error message
_AT_ONCE = 25_000  # detections handed to COCO's evaluation together, which takes about 2 kB for each of them


class EvaluatorState(NamedTuple):
    """What one process has collected, in three arrays that travel well between processes."""

    image_ids: Array  # [I] int64
    counts: Array  # [I] int64, detections of each image
    rows: Array  # [sum of counts, 6] float32: score, class index, xyxy


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """The twelve COCO numbers in [0, 1], and AP by class; NaN where there is nothing to find."""

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    AR1: float
    AR10: float
    AR100: float
    AR_small: float
    AR_medium: float
    AR_large: float
    per_class: dict[str, float]  # AP by category name, in the order of category ids
    num_images: int
    num_detections: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: None where undefined, since JSON knows no NaN."""
        values = asdict(self)
        values["per_class"] = {name: _or_none(value) for name, value in self.per_class.items()}
        return {name: _or_none(value) for name, value in values.items()}

    def flat(self) -> dict[str, float]:
        """The defined ones among the twelve numbers, by name."""
        values = {name: value for name, value in asdict(self).items() if isinstance(value, float)}
        return {name: value for name, value in values.items() if not isnan(value)}


class CocoEvaluator:
    """Collects detections batch by batch, then answers with COCO's numbers.

    Args:
        ground_truth: a COCO dictionary with ``images``, ``annotations`` and ``categories``, left as it is.
        category_ids: COCO category of each class index of the model; -1 for classes the data has not, whose
            detections are dropped.

    Raises:
        DataError: ``category_ids`` names a category the ground truth lacks.
    """

    def __init__(self, ground_truth: dict[str, Any], category_ids: Sequence[int]) -> None:
        self._images = [{**image, "id": int(image["id"])} for image in ground_truth["images"]]
        self._categories = list(ground_truth["categories"])
        self._annotations = [_annotation(one, i) for i, one in enumerate(ground_truth["annotations"])]
        self._image_ids = frozenset(image["id"] for image in self._images)
        self._category_ids = np.asarray(category_ids, dtype=np.int64)
        self._rows: dict[int, Array] = {}  # image id -> [K, 6] float32: score, class index, xyxy
        known = {int(category["id"]) for category in self._categories}
        unknown = sorted(set(self._category_ids.tolist()) - known - {-1})
        if unknown:
            raise DataError(
                f"Category ids {unknown} are not among the annotation file's {sorted(known)}; use -1 for "
                "classes that the data has not."
            )

    def add(self, image_ids: Sequence[int], detections: Sequence[Detections]) -> None:
        """Keep the detections of some images; an image seen before keeps its first ones.

        Args:
            image_ids: ids of the annotation file.
            detections: of each of these images, as from ``detections_of``.

        Raises:
            DataError: an image the ground truth lacks, a class without category id, or a score or box that is
                no finite number.
            ValueError: not as many detections as images.
        """
        for image_id, (scores, labels, boxes) in zip(image_ids, detections, strict=True):
            rows = np.empty((len(scores), 6), dtype=np.float32)
            rows[:, 0], rows[:, 1], rows[:, 2:] = scores, labels, boxes
            self._keep(int(image_id), rows)

    def state(self) -> EvaluatorState:
        """What was collected, to be sent to another process's ``merge``."""
        counts = np.array([len(rows) for rows in self._rows.values()], dtype=np.int64)
        rows = np.concatenate([np.empty((0, 6), np.float32), *self._rows.values()])
        return EvaluatorState(np.array(list(self._rows), dtype=np.int64), counts, rows)

    def merge(self, states: Iterable[EvaluatorState]) -> None:
        """Take over what other processes collected; images that samplers repeated count once.

        Raises:
            DataError: as in ``add``.
        """
        for state in states:
            parts = np.split(state.rows, np.cumsum(state.counts)[:-1]) if len(state.counts) else []
            for image_id, rows in zip(state.image_ids.tolist(), parts, strict=True):
                self._keep(image_id, rows)

    def reset(self) -> None:
        """Forget all detections, to evaluate the same images again."""
        self._rows.clear()

    def result(self, *, subset: bool = False) -> CocoMetrics:
        """COCO's numbers over all images of the ground truth.

        Args:
            subset: evaluate only the images that were added, instead of refusing when some are missing.

        Raises:
            DataError: images of the ground truth were never added.
        """
        missing = sorted(self._image_ids - self._rows.keys())
        if missing and not subset:
            raise DataError(
                f"{len(missing)} of {len(self._image_ids)} images were never evaluated, among them "
                f"{missing[:_SHOWN]}. Add them, without detections if there are none, or ask for subset=True."
            )
        seen = sorted(self._rows)
        table, images, categories = self._found(seen)
        with no_garbage_collection():
            # Classes have nothing to do with each other.
            tables = [
                precision_and_recall(*self._in_dictionaries(chosen, table, images, categories), seen)
                for chosen in self._groups(categories)
            ]
        precision = np.concatenate([one for one, _ in tables], axis=2)
        recall = np.concatenate([one for _, one in tables], axis=1)
        names = [str(category["name"]) for category in sorted(self._categories, key=lambda one: one["id"])]
        by_class = [_mean(precision[:, :, index, 0, 2]) for index in range(precision.shape[2])]
        return CocoMetrics(
            AP=_mean(precision[..., 0, 2]),
            AP50=_mean(precision[0, ..., 0, 2]),
            AP75=_mean(precision[5, ..., 0, 2]),
            AP_small=_mean(precision[..., 1, 2]),
            AP_medium=_mean(precision[..., 2, 2]),
            AP_large=_mean(precision[..., 3, 2]),
            AR1=_mean(recall[..., 0, 0]),
            AR10=_mean(recall[..., 0, 1]),
            AR100=_mean(recall[..., 0, 2]),
            AR_small=_mean(recall[..., 1, 2]),
            AR_medium=_mean(recall[..., 2, 2]),
            AR_large=_mean(recall[..., 3, 2]),
            per_class=dict(zip(names, by_class, strict=True)),
            num_images=len(seen),
            num_detections=len(table),
        )

    def _keep(self, image_id: int, rows: Array) -> None:
        if image_id not in self._image_ids:
            raise DataError(f"Image {image_id} is not in the ground truth: evaluate on the split it was made from.")
        if not np.isfinite(rows).all():
            raise DataError(f"Image {image_id} has a score or box that is not finite: the model has diverged.")
        if len(rows) and not 0 <= rows[:, 1].min() <= rows[:, 1].max() < len(self._category_ids):
            raise DataError(
                f"Image {image_id} has detections of class {int(rows[:, 1].max())}, but category ids are "
                f"given for {len(self._category_ids)} classes: give one for each class of the model."
            )
        self._rows.setdefault(image_id, rows)

    def _found(self, image_ids: list[int]) -> tuple[Array, Array, Array]:
        """Detections whose class the data has: [K, 6] rows, [K] image ids, [K] category ids."""
        rows = [self._rows[image_id] for image_id in image_ids]
        table = np.concatenate([np.empty((0, 6), np.float32), *rows])
        images = np.repeat(np.array(image_ids, dtype=np.int64), [len(one) for one in rows])
        categories = self._category_ids[table[:, 1].astype(np.int64)]
        keep = categories >= 0
        return table[keep], images[keep], categories[keep]

    def _groups(self, categories: Array) -> list[list[int]]:
        """All category ids in order, in groups of at most ``_AT_ONCE`` detections, or of one category."""
        groups: list[list[int]] = [[]]
        held = 0
        for category in sorted(int(one["id"]) for one in self._categories):
            count = int((categories == category).sum())
            if groups[-1] and held + count > _AT_ONCE:
                groups.append([])
                held = 0
            groups[-1].append(category)
            held += count
        return groups

    def _in_dictionaries(
        self, chosen: list[int], table: Array, images: Array, categories: Array
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Objects and detections of some categories, as COCO's evaluation takes them."""
        head = {"images": self._images, "categories": [one for one in self._categories if one["id"] in chosen]}
        objects = [one for one in self._annotations if one["category_id"] in chosen]
        keep = np.isin(categories, chosen)
        found = result_entries(table[keep].astype(np.float64), images[keep], categories[keep])
        return {**head, "annotations": objects}, {**head, "annotations": found}


def _annotation(annotation: dict[str, Any], position: int) -> dict[str, Any]:
    """What evaluation reads of a ground-truth annotation."""
    width, height = annotation["bbox"][2:]
    return {
        "id": position + 1,  # ids of files may repeat or be 0, which COCO's evaluation takes for "no match"
        "image_id": int(annotation["image_id"]),
        "category_id": int(annotation["category_id"]),
        "bbox": annotation["bbox"],
        "area": annotation.get("area", width * height),
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }


def _mean(table: Array) -> float:
    """Mean of the defined entries; NaN when there are none."""
    defined = table[table > -1]
    return float(defined.mean()) if defined.size else nan


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and isnan(value) else value
