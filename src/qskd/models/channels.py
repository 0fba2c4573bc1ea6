"""Evenly spaced channels of wider layers."""

import torch
from torch import Tensor

_SINES_APART = frozenset({"rt_detr", "rt_detr_v2", "d_fine", "deimv2"})  # sines first, then cosines


def kept_together(family: str) -> int:
    """How many neighbouring channels of a family belong together.

    Where a position's sine and cosine of the same frequency are neighbours, they are taken in pairs: single evenly
    spaced ones of twice as many would be sines alone, and a student's own positions are not.
    """
    return 1 if family in _SINES_APART else 2


def evenly_spaced(count: int, channels: int, together: int = 1) -> Tensor:
    """[count] long: which of a teacher's channels a narrower student's begin as.

    Args:
        count: channels of the student.
        channels: of the teacher, at least as many.
        together: neighbours that stay neighbours, where both numbers can be divided by it.
    """
    if count % together or channels % together:
        together = 1
    first = torch.arange(count // together) * (channels // together) // (count // together)
    return (first[:, None] * together + torch.arange(together)).flatten()


def with_channels(tensor: Tensor, shape: torch.Size, first: int, together: int = 1) -> Tensor:
    """Evenly spaced channels of a wider tensor, on every axis from ``first`` on; ``shape`` is wanted."""
    for dim in range(first, tensor.dim()):
        places = evenly_spaced(shape[dim], tensor.shape[dim], together)
        tensor = tensor.index_select(dim, places.to(tensor.device))
    return tensor
