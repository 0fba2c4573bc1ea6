"""What the host can know without waiting for an accelerator.

Reading a number from one, or copying a fresh Python list to it, makes the host wait until all work so far is done.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Numbers = float | bool | tuple["Numbers", ...]
"""A number, or nested tuples of them."""


def waits_for(tensor: Tensor) -> bool:
    """Whether the host would have to wait for the values of ``tensor``."""
    return tensor.device.type != "cpu"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; the host goes on while it travels to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def most_selected(weights: Tensor, most: int | None) -> int:
    """The most positive weights of any row: counted where that is free, else the bound ``most`` if there is one.

    Args:
        weights: [..., Q].
        most: no row has more; None always counts.
    """
    if most is not None and waits_for(weights):
        return min(most, weights.shape[-1])
    return int((weights > 0).sum(-1).amax()) if weights.numel() else 0


def constant(values: Sequence[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor of numbers known beforehand, copied to the device once; nobody may change it.

    The type must be said: Python takes (True,) and (1,) for the same, so they would be one tensor.
    """
    return _constant(_as_tuple(values), device, dtype)


@lru_cache(maxsize=256)
def _constant(values: Numbers, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # kept for later calls, which may need gradients
        return torch.tensor(values, device=device, dtype=dtype)


def _as_tuple(values: Any) -> Any:
    return tuple(_as_tuple(one) for one in values) if isinstance(values, list | tuple) else values
