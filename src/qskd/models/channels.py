"""Evenly spaced channels of wider layers."""

import torch
from torch import Tensor


def evenly_spaced(count: int, channels: int) -> Tensor:
    """[count] long: which of a teacher's channels a narrower student's begin as."""
    return torch.arange(count) * channels // count


def with_channels(tensor: Tensor, shape: torch.Size, first: int) -> Tensor:
    """Evenly spaced channels of a wider tensor, on every axis from ``first`` on; ``shape`` is wanted."""
    for dim in range(first, tensor.dim()):
        tensor = tensor.index_select(dim, evenly_spaced(shape[dim], tensor.shape[dim]).to(tensor.device))
    return tensor
