"""Box geometry on tensors. Inside qskd a box is cxcywh, in fractions of the image content."""

import torch
from torch import Tensor

_TINY = 1e-9


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes: [..., 4] (centre x, centre y, width, height) to (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of broadcastable corner boxes, in at least float32.

    Coordinates are taken apart first, so that pairs lie contiguously, and few new tensors are made: both
    together are 4 times faster on a CPU.
    """
    (left_a, top_a, right_a, bottom_a), (left_b, top_b, right_b, bottom_b) = a.unbind(-1), b.unbind(-1)
    width = _length(torch.maximum(left_a, left_b), torch.minimum(right_a, right_b))
    height = _length(torch.maximum(top_a, top_b), torch.minimum(bottom_a, bottom_b))
    intersection = width * height
    hull_width = _length(torch.minimum(left_a, left_b), torch.maximum(right_a, right_b))
    hull_height = _length(torch.minimum(top_a, top_b), torch.maximum(bottom_a, bottom_b))
    hull = hull_width * hull_height
    area_a = (right_a - left_a) * (bottom_a - top_a)
    area_b = (right_b - left_b) * (bottom_b - top_b)
    union = (area_a + area_b).sub_(intersection)
    iou = intersection / union.clamp(min=_TINY)
    return iou - (hull - union).div_(hull.clamp(min=_TINY))


def _length(low: Tensor, high: Tensor) -> Tensor:
    """High less low, at least 0; the memory of both is used again."""
    return high.sub_(low).clamp_(min=0)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is when it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _corners(boxes: Tensor) -> Tensor:
    return cxcywh_to_xyxy(at_least_float32(boxes))


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of every box of ``a`` with every box of ``b``.

    Args:
        a: [..., N, 4] cxcywh; leading axes broadcast against those of ``b``.
        b: [..., M, 4] cxcywh.

    Returns:
        [..., N, M] in [-1, 1], at least float32 also inside autocast; 1 means identical.

    Source: Rezatofighi et al. 2019, "Generalized Intersection over Union".
    """
    with torch.autocast(a.device.type, enabled=False):
        return _giou(_corners(a)[..., :, None, :], _corners(b)[..., None, :, :])


def aligned_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of corresponding boxes: [..., 4] and [..., 4] cxcywh to [...] in [-1, 1]."""
    with torch.autocast(a.device.type, enabled=False):
        return _giou(_corners(a), _corners(b))
