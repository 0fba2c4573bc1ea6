"""Picking queries out of a view's stacked layers."""

from dataclasses import replace

import torch
from torch import Tensor

from qskd.models.view import DetrView


def listed(mask: Tensor, length: int) -> Tensor:
    """[..., Q] bool to [..., length] long: the indices where True, in order, then -1."""
    index = torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)
    slot = (mask.cumsum(-1) - 1).where(mask, length).clamp(max=length)
    slots = torch.full((*mask.shape[:-1], length + 1), -1, device=mask.device)
    return slots.scatter_(-1, slot, index)[..., :length]


def flat_rows(query: Tensor, layers: Tensor, num_queries: int) -> Tensor:
    """Rows of a [L, B, Q, ...] tensor flattened to [L B Q, ...].

    Args:
        query: [L', B, P] long; -1 (no query) gives some query's row.
        layers: [L'] long, each one's layer.
        num_queries: Q.
    """
    images = torch.arange(query.shape[1], device=query.device)
    return (layers[:, None, None] * query.shape[1] + images[:, None]) * num_queries + query.clamp(min=0)


def last_layers(view: DetrView, count: int) -> DetrView:
    """The view of the last decoder layers only."""
    if count == view.num_layers:
        return view
    no_object = None if view.no_object is None else view.no_object[-count:]
    return replace(view, logits=view.logits[-count:], boxes=view.boxes[-count:], no_object=no_object, attention=None)


def predictions_at(view: DetrView, rows: Tensor) -> dict[str, Tensor]:
    """Logits [..., C], boxes [..., 4] and, of a softmax head, no_object [...] of the given rows [...]."""
    stacks = {"logits": view.logits, "boxes": view.boxes}
    if view.no_object is not None:
        stacks["no_object"] = view.no_object[..., None]
    index = rows.flatten()
    taken = {
        name: stack.flatten(0, 2).index_select(0, index).view(*rows.shape, stack.shape[-1])
        for name, stack in stacks.items()
    }
    return {name: value.squeeze(-1) if name == "no_object" else value for name, value in taken.items()}
