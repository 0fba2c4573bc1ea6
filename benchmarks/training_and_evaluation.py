"""Parts of a step and of an evaluation against the libraries that usually compute them."""

import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from timing import interleaved, ratio
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from qskd.data.batch import Targets
from qskd.data.dataset import DetectionDataset
from qskd.data.formats.coco import load_coco
from qskd.data.synthetic import draw_scene
from qskd.data.transforms import ImageSize, build_transform
from qskd.evaluation.coco_map import CocoEvaluator
from qskd.evaluation.detections import Detections
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.view import DetrView
from qskd.selection.assignment import match_to_targets

_LAYERS, _QUERIES, _CLASSES, _OBJECTS = 6, 300, 80, 30


def softmax_loss(quick: bool) -> float:
    """All layers' cross-entropy, box losses and matching, forward and backward, batch 16."""
    return _detection_loss("detr", ForObjectDetectionLoss, quick)


def focal_loss(quick: bool) -> float:
    """All layers' focal loss, box losses and matching, forward and backward, batch 16."""
    return _detection_loss("conditional_detr", DeformableDetrForObjectDetectionLoss, quick)


def coco_evaluation(quick: bool) -> float:
    """1000 images (quick: 40) of 100 detections, from arrays to metrics."""
    images = 40 if quick else 1000
    truth, found = _scenes(images)
    image_ids = [image["id"] for image in truth["images"]]

    def ours() -> list[float]:
        evaluator = CocoEvaluator(truth, list(range(1, _CLASSES + 1)))
        evaluator.add(image_ids, found)
        return list(evaluator.result().flat().values())

    def theirs() -> list[float]:
        return _pycocotools(truth, image_ids, found)

    np.testing.assert_allclose(ours(), theirs(), atol=1e-9)
    return ratio(theirs, ours, 1 if quick else 3)


def data_loading(quick: bool) -> float:
    """Images a second of 640 x 480 JPEGs, decoded, augmented and resized to 640 x 640.

    In seconds of the processor, which one thread that waits for nothing would need of the clock.
    """
    count = 16 if quick else 48
    with tempfile.TemporaryDirectory() as name:
        annotations = _write_images(Path(name), count)
        transform = build_transform(ImageSize(square=640), train=True)
        dataset = DetectionDataset(load_coco(annotations, Path(name)), transform)

        def read() -> None:
            dataset.set_epoch(dataset.epoch + 1)
            for position in range(len(dataset)):
                dataset[position]

        (seconds,) = interleaved([read], 3 if quick else 9, time.process_time)
    return count / seconds


def _detection_loss(family: str, by_transformers: Any, quick: bool) -> float:
    config = SimpleNamespace(
        **dict(model_type=family, num_labels=_CLASSES, decoder_layers=_LAYERS, auxiliary_loss=True),
        **dict(class_cost=2, bbox_cost=5, giou_cost=2, bbox_loss_coefficient=5, giou_loss_coefficient=2),
        **dict(eos_coefficient=0.1, focal_alpha=0.25),
    )
    criterion = SetPredictionLoss.from_config(config)
    is_softmax = criterion.kind == "softmax"
    images = 16
    torch.manual_seed(0)
    logits = torch.randn(_LAYERS, images, _QUERIES, _CLASSES + is_softmax).requires_grad_()
    boxes = torch.rand(_LAYERS, images, _QUERIES, 4).mul(0.5).add(0.1).requires_grad_()
    targets = Targets.from_lists(
        [torch.randint(_CLASSES, (_OBJECTS,)) for _ in range(images)],
        [torch.rand(_OBJECTS, 4) * 0.4 + 0.2 for _ in range(images)],
    )
    labels = targets.as_huggingface()

    def theirs() -> list[Tensor]:
        loss, _, _ = by_transformers(logits[-1], labels, "cpu", boxes[-1], config, logits, boxes)
        return [loss.detach(), *torch.autograd.grad(loss, [logits, boxes])]

    def ours() -> list[Tensor]:
        classes = logits[..., :_CLASSES]
        view = DetrView(classes, logits[..., -1] if is_softmax else None, boxes, (), (), ())
        match = match_to_targets(view, targets, criterion.costs)
        loss = torch.stack(list(criterion(view, targets, match, targets.total).values())).sum()
        return [loss.detach(), *torch.autograd.grad(loss, [logits, boxes])]

    for one, other in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    return ratio(theirs, ours, 1 if quick else 9)


def _scenes(images: int) -> tuple[dict[str, Any], list[Detections]]:
    """About 7 objects an image, and 100 detections near them."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    found = []
    for image in range(1, images + 1):
        count = int(rng.integers(1, 15))
        corner, size = rng.uniform(0, 300, (count, 2)), np.exp(rng.uniform(1.5, 5.5, (count, 2)))
        labels, origin = rng.integers(0, _CLASSES, count), rng.integers(0, count, 100)
        for one in range(count):
            box = [*corner[one].tolist(), *size[one].tolist()]
            entry = {"image_id": image, "category_id": int(labels[one]) + 1, "bbox": box, "iscrowd": 0}
            annotations.append({**entry, "id": len(annotations) + 1, "area": float(size[one].prod())})
        jitter = rng.normal(0, 0.15, (100, 4))
        start = corner[origin] + jitter[:, :2] * size[origin]
        boxes = np.concatenate([start, start + size[origin] * np.exp(jitter[:, 2:])], 1)
        guessed = np.where(rng.random(100) < 0.7, labels[origin], rng.integers(0, _CLASSES, 100))
        found.append(Detections(rng.random(100, dtype=np.float32), guessed, boxes.astype(np.float32)))
    truth = {
        "images": [{"id": image, "height": 480, "width": 640} for image in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": one + 1, "name": f"class {one}"} for one in range(_CLASSES)],
    }
    return truth, found


def _pycocotools(truth: dict[str, Any], image_ids: list[int], found: list[Detections]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        rows = [
            np.column_stack((np.full(len(one.scores), image), one.boxes.astype(float), one.scores, one.labels + 1))
            for image, one in zip(image_ids, found, strict=True)
        ]
        table = np.concatenate(rows)
        table[:, 3:5] -= table[:, 1:3]
        evaluation = COCOeval(reference, reference.loadRes(table), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def _write_images(folder: Path, count: int) -> Path:
    """JPEGs about as heavy as photographs, and their annotation file."""
    images, annotations = [], []
    for index in range(count):
        scene = draw_scene(index, size=640)
        Image.fromarray(scene.pixels[:480]).save(folder / f"{index}.jpg", quality=90)
        images.append({"id": index + 1, "file_name": f"{index}.jpg", "height": 480, "width": 640})
        for label, (left, top, width, height) in zip(scene.labels, scene.boxes.tolist(), strict=True):
            if top + height <= 480:
                entry = {"image_id": index + 1, "category_id": int(label) + 1, "iscrowd": 0}
                box = {"bbox": [left, top, width, height], "area": width * height}
                annotations.append({"id": len(annotations) + 1, **entry, **box})
    categories = [{"id": one + 1, "name": f"class {one}"} for one in range(20)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
