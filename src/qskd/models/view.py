"""DetrView: one forward pass of any DETR in one dialect.

Letters used everywhere: B images, L decoder layers, Q queries, C classes, D channels, S memory tokens
(all levels end to end, each level row by row), N targets of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

AttentionReader = Callable[[Tensor, int | None], Tensor]
"""Maps query weights [L, B, Q], and the most of a layer and image that are positive (or None), to mass [L, B, S]."""


@dataclass(frozen=True, slots=True)
class DetrView:
    """What a DETR said about B images, layer by layer. Validated once, here."""

    logits: Tensor  # [L, B, Q, C] unnormalised, the no-object column split off
    no_object: Tensor | None  # [L, B, Q] its logit for softmax heads; None for sigmoid heads
    boxes: Tensor  # [L, B, Q, 4] cxcywh, fractions of the image content
    memory: tuple[Tensor, ...]  # encoder output, one [B, D, h, w] map per level, fine to coarse
    is_padding: tuple[Tensor, ...]  # which cells are padding, one [B, h, w] bool per level
    strides: tuple[int, ...]  # pixels per cell, per level
    attention: AttentionReader | None = None  # None unless it was asked for

    def __post_init__(self) -> None:
        layers, images, queries, _ = self.logits.shape
        _check("boxes", self.boxes, (layers, images, queries, 4))
        if self.no_object is not None:
            _check("no_object", self.no_object, (layers, images, queries))
        if not len(self.memory) == len(self.is_padding) == len(self.strides):
            raise ValueError(
                f"levels disagree: {len(self.memory)} maps, {len(self.is_padding)} masks, {len(self.strides)} strides"
            )
        for level, mask in zip(self.memory, self.is_padding, strict=True):
            _check("memory", level, (images, level.shape[1], level.shape[2], level.shape[3]))
            _check("is_padding", mask, (images, level.shape[2], level.shape[3]))

    @property
    def num_layers(self) -> int:
        """L."""
        return self.logits.shape[0]

    @property
    def num_images(self) -> int:
        """B."""
        return self.logits.shape[1]

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.logits.shape[2]

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[3]

    @property
    def num_tokens(self) -> int:
        """S."""
        return sum(level.shape[-2] * level.shape[-1] for level in self.memory)

    def scores(self) -> Tensor:
        """[L, B, Q, C] probability of each class, whatever the head (softmax with no-object, or sigmoid)."""
        if self.no_object is None:
            return self.logits.float().sigmoid()
        full = torch.cat([self.logits, self.no_object[..., None]], dim=-1)
        return full.float().softmax(-1)[..., :-1]

    def attention_mass(self, weights: Tensor, most: int | None = None) -> Tensor:
        """Where the weighted queries look.

        Args:
            weights: [L, B, Q], non-negative; attention is computed only for queries with weight > 0.
            most: no layer and image has more such queries; on a GPU it saves counting them. None counts them.

        Returns:
            [L, B, S] float32: sum over queries of weight x head-averaged cross-attention; 0 at padding.

        Raises:
            ValueError: the view was read without ``capture_attention=True``.
        """
        if self.attention is None:
            raise ValueError("This view holds no attention: read the model with capture_attention=True.")
        return self.attention(weights, most)

    def without_attention(self) -> "DetrView":
        """The same view, free of the tensors captured for ``attention_mass``."""
        return replace(self, attention=None)


def _check(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}.")
