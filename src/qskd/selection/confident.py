"""A teacher's confident detections as objects, where nobody has labelled an image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from qskd.data.batch import Targets
from qskd.models.view import DetrView

_SAME = 0.7  # intersection over union from which two detections of one class are the same object
_LEAST_SIDE = 1e-3  # of the image; a detection with a shorter side holds nothing


def confident(view: DetrView, threshold: float) -> tuple[Targets, list[Tensor]]:
    """What the last layer is sure of, as objects, and how sure [N_i] it is of each, an image at a time.

    Of detections of one class that overlap by more than ``_SAME``, the surest is kept. Boxes are cut at the border of
    the image.
    """
    scores, labels = view.scores()[-1].max(-1)  # [B, Q]
    corners = box_convert(view.boxes[-1].float(), "cxcywh", "xyxy").clamp(0.0, 1.0)  # [B, Q, 4]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for sure, label, box in zip(scores, labels, corners, strict=True):
        keep = (sure >= threshold) & ((box[:, 2:] - box[:, :2]).amin(-1) > _LEAST_SIDE)
        sure, label, box = sure[keep], label[keep], box[keep]
        first = batched_nms(box, sure, label, _SAME)
        found.append((label[first], box_convert(box[first], "xyxy", "cxcywh"), sure[first]))
    targets = Targets.from_lists([label for label, _, _ in found], [box for _, box, _ in found])
    return targets, [sure for _, _, sure in found]


def drawn(targets: Targets, scores: Sequence[Tensor], generator: torch.Generator) -> Targets:
    """The same objects, each with a probability that is its score; the generator is the CPU's."""
    chosen = [torch.rand(sure.shape, generator=generator).to(sure.device) < sure for sure in scores]
    rows = range(len(targets.counts))
    labels = [targets.labels[row, : len(chosen[row])][chosen[row]] for row in rows]
    return Targets.from_lists(labels, [targets.boxes[row, : len(chosen[row])][chosen[row]] for row in rows])
