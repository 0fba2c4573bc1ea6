"""COCO's tables of precision and recall, by the C++ implementation of its evaluation."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from qskd.evaluation.detections import Array


def precision_and_recall(truth: dict[str, Any], found: dict[str, Any], image_ids: list[int]) -> tuple[Array, Array]:
    """COCO's tables; an undefined entry is -1.

    Returns:
        Precision [10 IoU, 101 recall, class, 4 area, 3 most detections] and recall [10, class, 4, 3].
    """
    # Imported here: loading the C++ evaluator takes long, and most commands never need it.
    from faster_coco_eval.core.coco import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    evaluation = COCOeval_faster(COCO(truth), COCO(found), iouType="bbox", print_function=_silent)
    evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def result_entries(table: Array, images: Array, categories: Array) -> list[dict[str, Any]]:
    """COCO result dictionaries of [K, 6] rows, in float64."""
    size = table[:, 4:] - table[:, 2:4]
    boxes = np.concatenate([table[:, 2:4], size], axis=1)  # xywh
    columns = zip(
        images.tolist(),
        categories.tolist(),
        table[:, 0].tolist(),
        boxes.tolist(),
        size.prod(axis=1).tolist(),
        strict=True,
    )
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "score": score,
            "bbox": box,
            "area": area,
            "iscrowd": 0,
        }
        for number, (image, category, score, box, area) in enumerate(columns, start=1)
    ]


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Spares new dictionaries by the hundred thousand from being searched for cycles again and again.

    That was 40% of the time of an evaluation.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _silent(*_: object) -> None:
    """Takes the messages that COCO's evaluation would print."""
