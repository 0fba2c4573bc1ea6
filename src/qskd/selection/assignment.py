"""Optimal one-to-one assignment, for all layers and images of a step in one go.

The costs of every layer and image are computed together on the device, travel to the host in one copy, are
solved there slice by slice (``scipy.optimize.linear_sum_assignment``) and travel back in one copy. The slices
are solved in order on one thread: scipy keeps the interpreter lock, so a pool of threads would gain nothing.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from qskd.boxes import at_least_float32, pairwise_giou
from qskd.data.batch import Targets
from qskd.models.adapter import MatchCosts
from qskd.models.view import DetrView
from qskd.selection.layerwise import by_layer

HOPELESS = 1e6  # cost of a pair whose cost is not a number: the last to be chosen, yet no crash
_TINY = 1e-8  # inside the focal cost's logarithms, as in the published detectors


@torch.no_grad()
def match_to_targets(view: DetrView, targets: Targets, costs: MatchCosts, giou: Tensor | None = None) -> Tensor:
    """The query matched to each object, by the detector's own bipartite matching, layer by layer.

    Args:
        view: predictions of L layers and B images.
        targets: their objects; more objects than queries leave the most expensive objects unmatched.
        costs: kind and weights of the costs.
        giou: [L, B, N, Q] ``giou_to_objects(view.boxes, targets)``, where it is known already.

    Returns:
        [L, B, N] long on the view's device, -1 where an object has no query and where ``targets`` is padded.

    Source: Carion et al. 2020 (DETR), section 3.1; Zhu et al. 2021 (Deformable DETR) for the focal cost.
    """
    if targets.total == 0:
        shape = (view.num_layers, view.num_images, targets.labels.shape[1])
        return torch.full(shape, -1, dtype=torch.long, device=view.logits.device)
    cost = matching_cost(view, targets, costs, giou)
    return assign(cost.masked_fill(~targets.is_object[:, :, None], torch.inf))


@torch.no_grad()
def matching_cost(view: DetrView, targets: Targets, costs: MatchCosts, giou: Tensor | None = None) -> Tensor:
    """[L, B, N, Q] float32 cost of giving each query to each object; finite, also for broken predictions."""

    def cost_of(logits: Tensor, boxes: Tensor, no_object: Tensor | None, giou: Tensor) -> Tensor:
        boxes, objects = boxes.to(giou.dtype), targets.boxes.to(giou.dtype)
        with torch.autocast(boxes.device.type, enabled=False):
            cost = torch.cdist(objects.expand(*boxes.shape[:-2], -1, -1), boxes, p=1.0).mul_(costs.box_weight)
            cost = cost.sub_(giou, alpha=costs.giou_weight)
            cost = cost.add_(_class_cost(logits, no_object, targets.labels, costs), alpha=costs.class_weight)
        return cost.nan_to_num_(HOPELESS, HOPELESS, HOPELESS).clamp_(-HOPELESS, HOPELESS)

    giou = giou_to_objects(view.boxes, targets) if giou is None else giou
    return by_layer(cost_of, view.logits, view.boxes, view.no_object, giou)


@torch.no_grad()
def giou_to_objects(boxes: Tensor, targets: Targets) -> Tensor:
    """GIoU of objects and queries: boxes [L, B, Q, 4] to [L, B, N, Q] in [-1, 1], -1 where undefined."""
    return by_layer(lambda layers: pairwise_giou(targets.boxes, layers).nan_to_num_(-1.0, -1.0, -1.0), boxes)


def assign(cost: Tensor, place: Tensor | None = None) -> Tensor:
    """The cheapest one-to-one assignment of rows to columns, of every slice.

    Args:
        cost: [..., R, K]; +inf forbids a pair. As many allowed pairs as possible are made, and among those
            assignments the cheapest is taken.
        place: [..., R, K] long, the column that each entry of a row stands for, where rows name few columns
            of many; a row names no column twice. None: entry k stands for column k.

    Returns:
        [..., R] long on the device of ``cost``: the column of each row, -1 where it has none.
    """
    *leading, num_rows, width = cost.shape
    cost = cost.detach()
    # Indices are exact in float32 up to 2^24, so one copy carries both.
    both = cost[None] if place is None else torch.stack([cost, place.to(cost.dtype)])
    on_host = both.reshape(both.shape[0], -1, num_rows, width).cpu().numpy()
    solve = _solve_dense if place is None else _solve_sparse
    assigned = np.full(on_host.shape[1:3], -1, dtype=np.int64)
    for index in range(len(assigned)):
        rows, columns = solve(*on_host[:, index])
        assigned[index, rows] = columns
    return torch.from_numpy(assigned).reshape(*leading, num_rows).to(cost.device, non_blocking=True)


def _solve_dense(cost: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pairs made in one slice [R, K]."""
    allowed = np.isfinite(cost)
    rows = np.flatnonzero(allowed.any(1))
    chosen, columns = _optimal(cost[rows], allowed[rows])
    return rows[chosen], columns


def _solve_sparse(cost: NDArray[np.floating], place: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pairs made in one slice [R, K] whose entries stand for columns ``place``."""
    allowed = np.isfinite(cost)
    rows = np.flatnonzero(allowed.any(1))
    row, entry = np.nonzero(allowed[rows])
    column = place[rows[row], entry].astype(np.intp)
    is_used = np.bincount(column) > 0
    dense = np.full((len(rows), int(is_used.sum())), np.inf)
    dense[row, (is_used.cumsum() - 1)[column]] = cost[rows[row], entry]
    chosen_rows, chosen_columns = _optimal(dense, np.isfinite(dense))
    return rows[chosen_rows], np.flatnonzero(is_used)[chosen_columns]


def _optimal(cost: NDArray[np.floating], allowed: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the most allowed pairs that can be made, the cheapest."""
    if allowed.all():
        return linear_sum_assignment(cost)
    finite = cost[allowed]
    # One forbidden pair must cost more than whatever the allowed ones could save.
    penalty = finite.max() + (finite.max() - finite.min() + 1.0) * (min(cost.shape) + 1)
    rows, columns = linear_sum_assignment(np.where(allowed, cost, penalty))
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]


def _class_cost(logits: Tensor, no_object: Tensor | None, labels: Tensor, costs: MatchCosts) -> Tensor:
    """[..., B, N, Q] cost of each object's class, without its weight; logits [..., B, Q, C], labels [B, N]."""
    index = labels[:, None].expand(*logits.shape[:-1], -1)  # [..., B, Q, N]
    logit = at_least_float32(logits.gather(-1, index)).transpose(-1, -2)
    if costs.kind == "softmax":
        return -(logit - _log_total(logits, no_object)[..., None, :]).exp()
    probability = logit.sigmoid()
    as_object = costs.alpha * (1 - probability) ** costs.gamma * -(probability + _TINY).log()
    as_nothing = (1 - costs.alpha) * probability**costs.gamma * -(1 - probability + _TINY).log()
    return as_object - as_nothing


def _log_total(logits: Tensor, no_object: Tensor | None) -> Tensor:
    """[..., Q] logarithm of the softmax's denominator."""
    total = at_least_float32(logits).logsumexp(-1)
    return total if no_object is None else torch.logaddexp(total, at_least_float32(no_object))
