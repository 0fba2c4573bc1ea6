"""What sets hard negatives apart from other queries: overlap, scores and attention by role, batch after batch.

Nothing is kept but counts and sums, so a data set of any size can be read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qskd.data.batch import Targets
from qskd.models.view import DetrView
from qskd.selection.foreground import Foreground
from qskd.selection.groups import QueryGroups, Role

GIOU_BINS = 200
"""Of [-1, 1]: quantiles of a GIoU are known to 0.005."""

SCORE_BINS = 200
"""Of [0, 1]."""

_LEVELS = {"p10": 0.1, "median": 0.5, "p90": 0.9}


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and quantiles of a value; quantiles are the middle of the bin that they fall into."""

    mean: float
    p10: float
    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class RoleNumbers:
    """The queries of one role in one decoder layer; None where there are none."""

    queries: int
    giou: Spread | None  # with their owner
    score: Spread | None  # the best of any class
    agreement: float | None  # share whose best class is their owner's
    foreground: float | None  # share of their attention that lies within objects


@dataclass(frozen=True, slots=True)
class LayerNumbers:
    """One decoder layer."""

    roles: Mapping[Role, RoleNumbers]
    hard_per_object: tuple[int, ...]  # how many objects have 0, 1, 2, ... hard negatives
    joint: NDArray[np.int64]  # [3, GIOU_BINS, SCORE_BINS] queries by role, GIoU and score

    @property
    def mean_hard(self) -> float | None:
        """Hard negatives of an object, on average."""
        objects = sum(self.hard_per_object)
        return self.roles[Role.HARD_NEGATIVE].queries / objects if objects else None


@dataclass(frozen=True, slots=True)
class Numbers:
    """A data set as a teacher's queries see it. Images without objects have no roles, and are only counted."""

    images: int
    images_with_objects: int
    objects: int  # whose class the teacher knows
    object_area: float | None  # share of an image within objects, mean of images with objects; None if not known
    layers: tuple[LayerNumbers, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; histograms in 40 bins of equal width."""
        return {
            "images": self.images,
            "images_with_objects": self.images_with_objects,
            "objects": self.objects,
            "object_area": self.object_area,
            "layers": [_layer_as_dict(position, layer) for position, layer in enumerate(self.layers, start=1)],
        }


class QueryStatistics:
    """Adds up what ``Numbers`` tells.

    Args:
        num_layers: L of the views.
    """

    def __init__(self, num_layers: int) -> None:
        self._images = self._filled = self._objects = 0
        self._area = 0.0
        self._joint = np.zeros((num_layers, len(Role), GIOU_BINS, SCORE_BINS), dtype=np.int64)
        self._sums = np.zeros((3, num_layers, len(Role)))  # GIoU, score, agreement
        self._attention = np.zeros((2, num_layers, len(Role)))  # within objects, everywhere
        self._per_object = [np.zeros(0, dtype=np.int64) for _ in range(num_layers)]

    @torch.no_grad()
    def add(self, view: DetrView, groups: QueryGroups, targets: Targets, foreground: Foreground | None = None) -> None:
        """Count one batch.

        Args:
            view: of the teacher, in the classes of ``targets``; with attention where ``foreground`` is given.
            groups: of its queries.
            targets: the objects that own them.
            foreground: of all objects, also of those that are not among ``targets``; None to leave attention out.
        """
        has_objects = (
            targets.is_object.any(1) if targets.labels.shape[1] else targets.is_object.new_zeros(len(targets.counts))
        )
        self._images += view.num_images
        self._filled += sum(count > 0 for count in targets.counts)
        self._objects += targets.total
        if targets.total:
            is_role = torch.stack([groups.role == role for role in Role], dim=1) & has_objects[:, None]  # [L, 3, B, Q]
            self._add_values(view, groups, targets, is_role)
            self._add_hard_negatives(groups, targets)
            if foreground is not None:
                self._add_attention(view, is_role, foreground)
                self._area += float(foreground.area[has_objects].sum())

    def numbers(self) -> Numbers:
        """What was found so far."""
        area = self._area / self._filled if self._area else None
        layers = tuple(self._layer(layer) for layer in range(len(self._joint)))
        return Numbers(self._images, self._filled, self._objects, area, layers)

    def _add_values(self, view: DetrView, groups: QueryGroups, targets: Targets, is_role: Tensor) -> None:
        score, best = view.scores().nan_to_num(0.0).max(-1)  # [L, B, Q]
        label = targets.labels.expand(view.num_layers, -1, -1).gather(-1, groups.owner.clamp(min=0))
        values = torch.stack([groups.giou.double(), score.double(), (best == label).double()])
        self._sums += torch.einsum("vlbq,lrbq->vlr", values, is_role.double()).cpu().numpy()
        cell = _bin((values[0] + 1) / 2, GIOU_BINS) * SCORE_BINS + _bin(values[1], SCORE_BINS)
        for layer in range(view.num_layers):
            for role in Role:
                chosen = cell[layer][is_role[layer, role]].cpu().numpy()
                counts = np.bincount(chosen, minlength=GIOU_BINS * SCORE_BINS)
                self._joint[layer, role] += counts.reshape(GIOU_BINS, SCORE_BINS)

    def _add_hard_negatives(self, groups: QueryGroups, targets: Targets) -> None:
        is_hard = (groups.role == Role.HARD_NEGATIVE).long()
        counts = torch.zeros_like(groups.match).scatter_add_(2, groups.owner.clamp(min=0), is_hard)  # [L, B, N]
        for layer, found in enumerate(counts):
            new = np.bincount(found[targets.is_object].cpu().numpy())
            old = self._per_object[layer]
            new, old = (np.pad(one, (0, max(len(new), len(old)) - len(one))) for one in (new, old))
            self._per_object[layer] = new + old

    def _add_attention(self, view: DetrView, is_role: Tensor, foreground: Foreground) -> None:
        for role in Role:
            mass = view.attention_mass(is_role[:, role].float()).double()  # [L, B, S]
            self._attention[0, :, role] += (mass * foreground.tokens[None]).sum((1, 2)).cpu().numpy()
            self._attention[1, :, role] += mass.sum((1, 2)).cpu().numpy()

    def _layer(self, layer: int) -> LayerNumbers:
        roles = {role: self._role(layer, role) for role in Role}
        return LayerNumbers(roles, tuple(self._per_object[layer].tolist()), self._joint[layer].copy())

    def _role(self, layer: int, role: Role) -> RoleNumbers:
        joint = self._joint[layer, role]
        count = int(joint.sum())
        if not count:
            return RoleNumbers(0, None, None, None, None)
        giou, score, agreement = (float(total) for total in self._sums[:, layer, role] / count)
        within, everywhere = self._attention[:, layer, role]
        return RoleNumbers(
            count,
            _spread(giou, joint.sum(1), -1.0, 1.0),
            _spread(score, joint.sum(0), 0.0, 1.0),
            agreement,
            float(within / everywhere) if everywhere else None,
        )


def _bin(value: Tensor, bins: int) -> Tensor:
    """The bin of values in [0, 1]; the last one holds 1, too."""
    return (value * bins).long().clamp(0, bins - 1)


def _spread(mean: float, counts: NDArray[np.int64], low: float, high: float) -> Spread:
    """Quantiles of a histogram over [low, high]: the lowest bin up to which that share of values lies."""
    reached = counts.cumsum() / counts.sum()
    width = (high - low) / len(counts)
    found = {name: low + (int(np.argmax(reached >= level)) + 0.5) * width for name, level in _LEVELS.items()}
    return Spread(mean, **found)


def _layer_as_dict(position: int, layer: LayerNumbers) -> dict[str, Any]:
    return {
        "layer": position,
        "hard_negatives_per_object": {"mean": layer.mean_hard, "objects_with_0_1_2_more": list(layer.hard_per_object)},
        "roles": {
            role.name.lower(): _role_as_dict(numbers, layer.joint[role]) for role, numbers in layer.roles.items()
        },
    }


def _role_as_dict(numbers: RoleNumbers, joint: NDArray[np.int64]) -> dict[str, Any]:
    spreads = {"giou": numbers.giou, "score": numbers.score}
    return {
        "queries": numbers.queries,
        **{
            name: None if spread is None else {key: getattr(spread, key) for key in ("mean", *_LEVELS)}
            for name, spread in spreads.items()
        },
        "agreement": numbers.agreement,
        "attention_within_objects": numbers.foreground,
        "giou_histogram": joint.sum(1).reshape(40, -1).sum(1).tolist(),
        "score_histogram": joint.sum(0).reshape(40, -1).sum(1).tolist(),
    }
