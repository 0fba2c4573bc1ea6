"""Work on decoder layers one after the other where that is faster."""

from collections.abc import Callable

import torch
from torch import Tensor


def by_layer(function: Callable[..., Tensor], *stacks: Tensor | None) -> Tensor:
    """What a function that treats every layer alike returns for all layers, [L, ...].

    On a CPU it is called layer by layer: the many small tensors of such a function then stay in the cache and come from
    memory that has just been freed, which is three times faster. Elsewhere it is called once.

    Args:
        function: takes either the stacks or one layer of each.
        stacks: [L, ...] each, at least one; None is passed on.
    """
    first = next(stack for stack in stacks if stack is not None)
    if first.device.type != "cpu":
        return function(*stacks)
    layers = [function(*(None if stack is None else stack[layer] for stack in stacks)) for layer in range(len(first))]
    return torch.stack(layers)
