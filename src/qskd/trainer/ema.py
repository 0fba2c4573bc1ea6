"""Exponential moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn


class ModelAverage:
    """A moving average of a model, kept as a second model.

    The decay grows from 0.1 to its full value as min(decay, (1 + n) / (10 + n)) after n updates, so that the random
    start is forgotten (the rule of TensorFlow's ExponentialMovingAverage). Batch-norm statistics are averaged too;
    integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, new = _tensors(self.model), _tensors(model)
        floating = [(mine, theirs) for mine, theirs in zip(own, new, strict=True) if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floating], [theirs for _, theirs in floating], 1.0 - decay)
        for mine, theirs in zip(own, new, strict=True):
            if not mine.is_floating_point():
                mine.copy_(theirs)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each shared tensor once, in a fixed order."""
    return [*model.parameters(), *model.buffers()]
