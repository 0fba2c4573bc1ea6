"""What a model finds: the best detections of each image.

Letters: B images, Q queries, C classes, K detections kept of an image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qskd.boxes import cxcywh_to_xyxy
from qskd.models.view import DetrView

Array = np.ndarray[Any, np.dtype[Any]]


class Detections(NamedTuple):
    """The detections of one image, best first."""

    scores: Array  # [K] float32 in [0, 1]
    labels: Array  # [K] int64, class index of the model
    boxes: Array  # [K, 4] float32 xyxy, pixels of the original image; not clipped to it


def detections_of(view: DetrView, original_sizes: Sequence[tuple[int, int]], top: int = 100) -> list[Detections]:
    """The best detections of each image, from the last decoder layer.

    Sigmoid heads may find several classes with one query: the best of all Q * C scores. Softmax heads find
    the best class of each query, as the authors of DETR evaluate.

    Args:
        view: predictions on B images.
        original_sizes: (height, width) of each image file, in pixels.
        top: detections kept of each image, at most; COCO counts no more than 100.

    Returns:
        B detections; the device is asked once.

    Raises:
        ValueError: ``original_sizes`` has not one size for each image.
    """
    if len(original_sizes) != view.num_images:
        raise ValueError(
            f"{len(original_sizes)} original sizes for {view.num_images} images: give each (height, width)."
        )
    last = DetrView(
        view.logits[-1:], None if view.no_object is None else view.no_object[-1:], view.boxes[-1:], (), (), ()
    )
    scores = last.scores()[0]  # [B, Q, C]
    if view.no_object is None:
        best, index = scores.flatten(1).topk(min(top, scores[0].numel()))  # [B, K]
        query, label = index // view.num_classes, index % view.num_classes
    else:
        by_query, class_of = scores.max(-1)  # [B, Q]
        best, query = by_query.topk(min(top, view.num_queries))  # [B, K]
        label = class_of.gather(1, query)
    boxes = cxcywh_to_xyxy(last.boxes[0].float())  # [B, Q, 4]
    chosen = boxes.gather(1, query[..., None].expand(-1, -1, 4))  # [B, K, 4]
    packed = torch.cat([best[..., None], label[..., None].float(), chosen], dim=-1)  # [B, K, 6]
    return _unpack(packed, original_sizes)


def _unpack(packed: Tensor, original_sizes: Sequence[tuple[int, int]]) -> list[Detections]:
    """[B, K, 6] score, class and relative xyxy, on the host and in pixels."""
    table = packed.detach().cpu().numpy()
    detections = []
    for rows, (height, width) in zip(table, original_sizes, strict=True):
        scale = np.array([width, height, width, height], dtype=np.float32)
        detections.append(Detections(rows[:, 0], rows[:, 1].astype(np.int64), rows[:, 2:] * scale))
    return detections
