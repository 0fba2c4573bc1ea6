"""Where the queries of a deformable DETR look, as a map over the encoder's memory.

Deformable cross-attention reads the memory at a few sampling points by bilinear interpolation. Its transpose
spreads each query's weight from those points to the four cells around them, so a weighted sum over queries
costs one scatter of (queries x heads x levels x points x 4) numbers and no [B, Q, S] matrix is ever built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from qskd.models.host import constant, most_selected
from qskd.models.view import AttentionReader

Grid = tuple[tuple[int, int], ...]
"""(height, width) in cells of every memory level."""


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """What one layer's deformable cross-attention was given, without gradient."""

    module: Any  # has Linears ``sampling_offsets`` and ``attention_weights``; points and heads: see below
    queries: Tensor  # [B, Q, D] hidden states plus position embeddings
    reference: Tensor  # [B, Q, levels or 1, 2 or 4] points (x, y) or boxes cxcywh, fractions of the canvas


def sampling_inputs(module: nn.Module, call: dict[str, Any], kept: slice = slice(None)) -> SamplingInputs:
    """One recorded cross-attention call, of the ``kept`` queries (others are denoising, or of other groups)."""
    queries, position = call["hidden_states"].detach(), call.get("position_embeddings")
    if position is not None:
        queries = queries + position.detach()
    return SamplingInputs(module, queries[:, kept], call["reference_points"].detach()[:, kept])


def deformable_attention(
    layers: Sequence[SamplingInputs], grid: Grid, is_padding: Tensor | None = None
) -> AttentionReader:
    """A reader of where weighted queries look: [L, B, Q] weights to [L, B, S] mass.

    Mass that falls outside the memory is lost, as it is in the model. On CPU the result is the same bit for
    bit every time; on CUDA it is so under ``torch.use_deterministic_algorithms(True)``.

    Args:
        layers: the inputs of each decoder layer's cross-attention.
        grid: cells of each level that the attention reads; areas sum to S.
        is_padding: [B, S] bool, cells whose value the model hides; None where it hides nothing.
    """

    @torch.no_grad()
    def read(weights: Tensor, most: int | None = None) -> Tensor:
        with torch.autocast(weights.device.type, enabled=False):
            selected = max(1, most_selected(weights, most))
            chosen = weights.float().topk(selected, dim=-1)  # every positive weight is among these, [L, B, K]
            location, attention = _sample(layers, chosen.indices, grid)
            heads = attention.shape[3]
            share = attention * chosen.values.clamp(min=0)[..., None, None, None] / heads
            mass = splat(location, share, grid)
        return mass if is_padding is None else mass.masked_fill(is_padding, 0.0)

    return read


def splat(location: Tensor, share: Tensor, grid: Grid) -> Tensor:
    """Spread shares over the cells that bilinear sampling would read; the transpose of ``grid_sample``.

    Args:
        location: [L, B, K, heads, levels, points, 2] (x, y), fractions of the canvas, any real numbers.
        share: [L, B, K, heads, levels, points] what each sampling point carries.
        grid: (height, width) of each level.

    Returns:
        [L, B, S]: levels end to end, each row by row. Corners outside a level are lost, as with
        ``padding_mode="zeros"``; cell centres lie at half cells, as with ``align_corners=False``.
    """
    layers, images = share.shape[:2]
    tokens = sum(height * width for height, width in grid)
    height, width, start = _geometry(grid, location.device)
    # Levels first and corners before them, so that what broadcasts is never the innermost axis.
    x, y = location.flatten(2, 3).permute(5, 3, 0, 1, 2, 4).contiguous()  # [levels, L, B, K x heads, points]
    share = share.flatten(2, 3).permute(3, 0, 1, 2, 4).contiguous()
    columns, across = _corners(x, width)
    rows, down = _corners(y, height)  # [2 corners, levels, L, B, K x heads, points]
    image = torch.arange(layers * images, device=location.device).view(layers, images, 1, 1)
    place = (rows * width + (start + image * tokens))[:, None] + columns
    value = (down * share)[:, None] * across
    mass = value.new_zeros(layers * images * tokens)
    return mass.index_add_(0, place.flatten(), value.flatten()).view(layers, images, tokens)


def _corners(position: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two cells around each position along one axis, and the part of its share that each receives.

    Args:
        position: [levels, ...] fractions of the canvas.
        size: [levels, 1, ...] cells along this axis.

    Returns:
        [2, levels, ...] indices, inside the level, and parts: 0 for a cell that lies outside.
    """
    cell = position * size - 0.5
    low = cell.floor()
    index, part = torch.stack([low, low + 1]), cell - low
    part = torch.stack([1 - part, part]) * ((index >= 0) & (index < size))
    return torch.minimum(index.clamp(min=0), size - 1).long(), part


def _geometry(grid: Grid, device: torch.device) -> Tensor:
    """Height, width and first token of the levels: [3, levels, 1, 1, 1, 1] long."""
    areas = [height * width for height, width in grid]
    rows = [(*size, sum(areas[:level])) for level, size in enumerate(grid)]
    return constant(rows, device, torch.long).T.reshape(3, -1, 1, 1, 1, 1)


def _sample(layers: Sequence[SamplingInputs], chosen: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Sampling locations [L, B, K, heads, levels, points, 2] and attention [L, B, K, heads, levels, points].

    Recomputed in float32 from the modules' own Linears, for the ``chosen`` [L, B, K] queries alone. Levels with
    fewer points than others are filled up with points of no attention.
    """
    size = constant([(width, height) for height, width in grid], chosen.device, torch.long)[:, None]
    both = [_sample_layer(inputs, chosen[index], size) for index, inputs in enumerate(layers)]
    locations, attentions = zip(*both, strict=True)
    return torch.stack(locations), torch.stack(attentions)


def _sample_layer(inputs: SamplingInputs, chosen: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """One layer of ``_sample``; ``size`` [levels, 1, 2] is the (width, height) of the levels."""
    module, points = inputs.module, _points(inputs.module)
    rows = _take(inputs.queries, chosen).to(module.sampling_offsets.weight.dtype)  # [B, K, D]
    reference = _take(inputs.reference, chosen).float()[:, :, None, :, None]  # [B, K, 1, levels, 1, 2 or 4]
    flat = (*chosen.shape, module.n_heads, sum(points))
    offset = _by_level(module.sampling_offsets(rows).float().view(*flat, 2), points, axis=3)
    attention = _by_level(module.attention_weights(rows).float().view(flat).softmax(-1), points, axis=3)
    if reference.shape[-1] == 2:
        location = reference + offset / size
    else:  # a box: the offsets are in units of half the box, or so, divided among the points of a level
        counts = constant(points, chosen.device, torch.long)[:, None, None]
        location = reference[..., :2] + offset / counts * reference[..., 2:] * getattr(module, "offset_scale", 0.5)
    return _snapped(location, size) if _method(module) == "discrete" else location, attention


def _points(module: Any) -> tuple[int, ...]:
    """Sampling points of each level, whatever the family calls them."""
    for name in ("num_points_list", "n_points_list"):
        if hasattr(module, name):
            return tuple(getattr(module, name))
    return (module.n_points,) * module.n_levels


def _method(module: Any) -> str:
    return str(getattr(module, "method", getattr(module, "decoder_method", "default")))


def _by_level(flat: Tensor, points: tuple[int, ...], axis: int) -> Tensor:
    """An axis of all levels' points, end to end, as two: [levels, most points of a level], zeros where none are."""
    most = max(points)
    if min(points) == most:
        return flat.reshape(*flat.shape[:axis], len(points), most, *flat.shape[axis + 1 :])
    after = (0, 0) * (flat.ndim - axis - 1)
    levels = torch.split(flat, list(points), dim=axis)
    filled = [pad(level, (*after, 0, most - count)) for level, count in zip(levels, points, strict=True)]
    return torch.stack(filled, dim=axis)


def _snapped(location: Tensor, size: Tensor) -> Tensor:
    """The centre of the cell that the "discrete" method reads: never outside, and whole.

    That method rounds as if a cell's centre lay at its upper left corner.
    """
    cell = torch.minimum((location * size + 0.5).long().clamp(min=0), size - 1)
    return (cell + 0.5) / size


def _take(rows: Tensor, chosen: Tensor) -> Tensor:
    """Rows [B, Q, ...] of the chosen [B, K] queries: [B, K, ...]."""
    image = torch.arange(chosen.shape[0], device=chosen.device)[:, None]
    return rows[image, chosen]
