"""Counting what would make the host wait for a GPU, on a machine without one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_ASKING = {
    "_local_scalar_dense": "item",  # item, tolist, bool, int, float
    "equal": "equal",
    "is_nonzero": "bool",
    "lift_fresh": "constant",  # torch.tensor(list): on a GPU, a copy that the host waits for
    "masked_select": "size",  # how large the answer is, the device alone knows
    "nonzero": "size",
    "unique_dim": "size",
    "_unique2": "size",
}


class HostWaits(TorchDispatchMode):
    """Collects (kind, qskd file and line) of every operation inside the block after which a host would wait.

    On a CPU nobody waits, so operations are recognised by name: reading a value, sizes that depend on values, and
    constants made from Python numbers. Handing a tensor to NumPy counts too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._paused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name in _ASKING:
            self._note(_ASKING[name])
        if name in ("index", "index_put_") and any(_is_mask(one) for one in args[1] or ()):
            self._note("size")
        return func(*args, **(kwargs or {}))

    def _note(self, kind: str) -> None:
        if not self._paused:
            self.found.append((kind, _place()))

    @contextmanager
    def watching(self, *networks: nn.Module) -> Iterator[None]:
        """Count inside the block, but nothing that ``networks`` do themselves in their forward passes."""

        def enter(*_: Any) -> None:
            self._paused += 1

        def leave(*_: Any) -> None:
            self._paused -= 1

        numpy, tolist, handles = torch.Tensor.numpy, torch.Tensor.tolist, []
        for network in networks:
            handles += [network.register_forward_pre_hook(enter), network.register_forward_hook(leave)]

        def handed_over(tensor: torch.Tensor, **options: Any) -> np.ndarray:
            self._note("numpy")
            return numpy(tensor, **options)

        def listed(tensor: torch.Tensor) -> Any:
            self._note("item")
            return tolist(tensor)

        torch.Tensor.numpy, torch.Tensor.tolist = handed_over, listed
        try:
            with self:
                yield
        finally:
            torch.Tensor.numpy, torch.Tensor.tolist = numpy, tolist
            for handle in handles:
                handle.remove()


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _place() -> str:
    frame: Any = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if "/src/qskd/" in path:
            return f"{path.rpartition('/src/qskd/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
