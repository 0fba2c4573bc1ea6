"""Where the queries of a DETR with ordinary cross-attention look, without a map per query."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qskd.models.host import most_selected

_QUERIES_AT_ONCE = 64
"""Bounds the largest temporary to [B, heads, 64, S] float32, however many queries are selected."""


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """What one decoder layer's cross-attention compares, as projected by the layer itself.

    Conditional families compare a content and a position part: parts are concatenated head by head, so
    their dot products add up.
    """

    queries: tuple[Tensor, ...]  # parts, each [B, Q, D]
    keys: tuple[Tensor, ...]  # as many parts, each [B, S, D]
    num_heads: int
    scaling: float  # of the dot products, before the softmax


@dataclass(frozen=True, slots=True)
class DenseAttentionMass:
    """Reads attention mass from captured queries and keys; an ``AttentionReader``."""

    layers: tuple[CrossAttention, ...]  # L of them
    is_padding: Tensor  # [B, S] bool, tokens nobody attends to

    def __call__(self, weights: Tensor, most: int | None = None) -> Tensor:
        """Attention mass of the weighted queries.

        Args:
            weights: [L, B, Q], non-negative; only queries with a positive weight are computed.
            most: see ``DetrView.attention_mass``.

        Returns:
            [L, B, S] float32: sum over queries of weight x head-averaged attention; 0 at padding.

        Raises:
            ValueError: ``weights`` belongs to another view.
        """
        expected = (len(self.layers), *self.layers[0].queries[0].shape[:2])
        if tuple(weights.shape) != expected:
            raise ValueError(f"weights has shape {tuple(weights.shape)}, expected {expected} ([L, B, Q]).")
        with torch.autocast(weights.device.type, enabled=False):
            return torch.stack(
                [
                    _layer_mass(layer, layer_weights.float(), most_selected(layer_weights, most), self.is_padding)
                    for layer, layer_weights in zip(self.layers, weights, strict=True)
                ]
            )


def _layer_mass(layer: CrossAttention, weights: Tensor, count: int, is_padding: Tensor) -> Tensor:
    """[B, S] mass of one layer: the ``count`` heaviest queries of each image hold all positive weights."""
    heaviest, chosen = weights.topk(count, dim=-1)  # [B, count]
    heaviest = heaviest.clamp(min=0.0) / layer.num_heads
    keys = _by_head(layer.keys, layer.num_heads).mT * layer.scaling  # [B, H, D', S]
    mass = torch.zeros(is_padding.shape, dtype=torch.float32, device=weights.device)
    for start in range(0, count, _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        queries = _by_head(_rows(layer.queries, chosen[:, part]), layer.num_heads)  # [B, H, n, D']
        scores = (queries @ keys).masked_fill(is_padding[:, None, None, :], -torch.inf)  # [B, H, n, S]
        mass = mass + torch.einsum("bn,bhns->bs", heaviest[:, part], scores.softmax(-1))
    return mass


def _rows(parts: Sequence[Tensor], chosen: Tensor) -> tuple[Tensor, ...]:
    """Rows ``chosen`` [B, n] of each [B, Q, D]: each [B, n, D]."""
    return tuple(part.gather(1, chosen[..., None].expand(-1, -1, part.shape[-1])) for part in parts)


def _by_head(parts: Sequence[Tensor], num_heads: int) -> Tensor:
    """Parts [B, T, D] concatenated head by head: [B, H, T, D'] float32, D' the parts' D / H added up."""
    heads = [part.float().reshape(*part.shape[:2], num_heads, -1) for part in parts]  # [B, T, H, D / H]
    return torch.cat(heads, dim=-1).transpose(1, 2)
