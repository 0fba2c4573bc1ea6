"""Long tensors in blocks that stay in a processor's cache."""

from collections.abc import Iterator

import torch

_BLOCK_BYTES = 2**18  # of one tensor's block: a handful of blocks fit in the second-level cache


def blocks(length: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover ``length`` entries, block by block on a CPU and all at once elsewhere.

    Args:
        length: entries.
        bytes_each: bytes of one entry.
        device: where the tensor lies.
    """
    step = max(1, _BLOCK_BYTES // max(bytes_each, 1)) if device.type == "cpu" else max(length, 1)
    for start in range(0, length, step):
        yield slice(start, start + step)
