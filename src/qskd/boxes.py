"""Box geometry on tensors. Inside qskd a box is cxcywh, in fractions of the image content."""

import torch
from torch import Tensor

_TINY = 1e-9


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes: [..., 4] (centre x, centre y, width, height) to (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Centre form of boxes: [..., 4] (left, top, right, bottom) to (centre x, centre y, width, height)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def _iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of broadcastable corner boxes, both in at least float32."""
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    union = area_a + area_b - intersection
    hull_area = hull[..., 0] * hull[..., 1]
    iou = intersection / union.clamp(min=_TINY)
    return iou, iou - (hull_area - union) / hull_area.clamp(min=_TINY)


def _corners(boxes: Tensor) -> Tensor:
    return cxcywh_to_xyxy(boxes if boxes.dtype == torch.float64 else boxes.float())


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
        return _iou_and_giou(_corners(a)[..., :, None, :], _corners(b)[..., None, :, :])[1]


def aligned_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of corresponding boxes: [..., 4] and [..., 4] cxcywh to [...] in [-1, 1]."""
    with torch.autocast(a.device.type, enabled=False):
        return _iou_and_giou(_corners(a), _corners(b))[1]


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of ``a`` [..., N, 4] with every box of ``b`` [..., M, 4], both cxcywh: [..., N, M]."""
    with torch.autocast(a.device.type, enabled=False):
        return _iou_and_giou(_corners(a)[..., :, None, :], _corners(b)[..., None, :, :])[0]
