"""Objects and detections that were drawn by chance, and what pycocotools says of them."""

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qskd.evaluation.detections import Detections


def ground_truth(boxes: Sequence[tuple[int, int, list[float]]], images: Sequence[int], categories: int = 2):
    """(image, category, xywh) triples as a COCO dictionary."""
    return {
        "images": [{"id": image, "width": 640, "height": 480} for image in images],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3]}
            for i, (image, category, box) in enumerate(boxes)
        ],
        "categories": [{"id": 10 * (one + 1), "name": f"class {one}"} for one in range(categories)],
    }


def detections(*rows: tuple[float, int, list[float]]) -> Detections:
    """(score, class, xyxy) rows as detections of one image."""
    return Detections(
        np.array([row[0] for row in rows], dtype=np.float32),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.float32).reshape(-1, 4),
    )


def random_scene(seed: int, images: int, classes: int, most: int) -> tuple[dict[str, Any], list[Detections]]:
    """Objects of all sizes, some of them crowds, and noisy detections with tied scores and duplicates."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = ground_truth([], rng.permutation(images) * 3 + 1, classes)
    truth["images"] = [{**image, "id": int(image["id"])} for image in truth["images"]]
    found = []
    for image in truth["images"]:
        count, kept = int(rng.integers(0, most)), int(rng.integers(0, 4 * most))
        corner, size = rng.uniform(0, 300, (count, 2)), np.exp(rng.uniform(1.5, 6, (count, 2)))
        labels = rng.integers(0, classes, count)
        for index in range(count):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(labels[index] + 1) * 10,
                    "bbox": [*corner[index].tolist(), *size[index].tolist()],
                    "area": float(size[index].prod() * rng.uniform(0.3, 1)),  # as if it were a mask's
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
        origin = rng.integers(0, count, kept) if count else np.zeros(0, dtype=int)
        jitter = rng.normal(0, 0.15, (len(origin), 4)) * (rng.random((len(origin), 1)) < 0.8)
        start = corner[origin] + jitter[:, :2] * size[origin]
        found.append(
            Detections(
                np.round(rng.random(len(origin)), 1).astype(np.float32),
                np.where(rng.random(len(origin)) < 0.7, labels[origin], rng.integers(0, classes, len(origin))),
                np.concatenate([start, start + size[origin] * np.exp(jitter[:, 2:])], 1).astype(np.float32),
            )
        )
    return truth, found


def by_pycocotools(truth: dict[str, Any], image_ids: Sequence[int], found: Sequence[Detections]) -> COCOeval:
    results = [
        {
            "image_id": image,
            "category_id": 10 * (int(label) + 1),
            "score": float(score),
            "bbox": [*box[:2].astype(float), *(box[2:].astype(float) - box[:2].astype(float))],
        }
        for image, one in zip(image_ids, found, strict=True)
        for score, label, box in zip(*one, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = copy.deepcopy(truth)
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def without_ties(found: Sequence[Detections], seed: int = 0) -> list[Detections]:
    """The same detections, no two of one score."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(sum(len(one.scores) for one in found)) / 1e5 + 0.1
    parts = np.split(scores.astype(np.float32), np.cumsum([len(one.scores) for one in found])[:-1])
    return [one._replace(scores=part) for one, part in zip(found, parts, strict=True)]


def class_ap(evaluation: COCOeval) -> np.ndarray:
    """[10, C] AP at each IoU threshold; NaN where undefined."""
    table = evaluation.eval["precision"][..., 0, 2].mean(axis=1)
    return np.where(table < 0, np.nan, table)
