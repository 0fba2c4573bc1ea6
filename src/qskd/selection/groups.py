"""Group Query Selection (GQS): which queries of a DETR are worth imitating."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

from qskd.data.batch import Targets
from qskd.errors import ConfigError
from qskd.models.adapter import MatchCosts
from qskd.models.view import DetrView
from qskd.selection.assignment import giou_to_objects, match_to_targets


class Role(IntEnum):
    """What a query is to the objects of its image."""

    EASY_NEGATIVE = 0
    POSITIVE = 1
    HARD_NEGATIVE = 2


@dataclass(frozen=True, slots=True)
class QueryGroups:
    """Role, owner object and GIoU of every query of every layer and image."""

    role: Tensor  # [L, B, Q] uint8, values of Role
    owner: Tensor  # [L, B, Q] long, index of the object a query belongs to; -1 without objects
    giou: Tensor  # [L, B, Q] float32, GIoU with the owner, in [-1, 1]; -1 without objects
    match: Tensor  # [L, B, N] long, the query matched to each object; -1 where there is none
    most: int | None = None  # known to the host: no layer and image has more positives and hard negatives


@dataclass(frozen=True, slots=True)
class GroupQuerySelection:
    """Parts the queries of every layer and image into positives, hard negatives and easy negatives.

    A positive is matched to an object by the detector's own bipartite matching and is owned by it. Any other
    query is owned by the object with which its GIoU u is greatest (the first of equals), and is a hard
    negative if u > ``threshold``: it looks at an object without being responsible for it.

    Args:
        threshold: in [-1, 1].
        cap: the most hard negatives of one object, those of greatest GIoU; None for no limit.
        max_hard_negatives: the most hard negatives of one image, those of greatest GIoU; None for no limit.
        class_agreement: the least score, in [0, 1], of the owner's class in a hard negative; None to not ask.
        select: "groups" as above; "positives" for no hard negatives; "all" makes every unmatched query of an
            image with objects a hard negative, and the limits above do not apply.

    Raises:
        ConfigError: a value is out of its range.

    Source: Liu et al. 2024, "Knowledge Distillation via Query Selection for Detection Transformer"
    (arXiv 2409.06443), whose abstract names the segmentation of queries by GIoU. Departures: the limits, the
    owner and the class agreement are ours; the paper's threshold is not public.
    """

    threshold: float = 0.0
    cap: int | None = 10
    max_hard_negatives: int | None = 150
    class_agreement: float | None = None
    select: Literal["groups", "positives", "all"] = "groups"

    def __post_init__(self) -> None:
        if not -1.0 <= self.threshold <= 1.0:
            raise ConfigError(f"selection.threshold is {self.threshold}; a GIoU lies in [-1, 1].")
        for name, limit in (("cap", self.cap), ("max_hard_negatives", self.max_hard_negatives)):
            if limit is not None and limit < 1:
                raise ConfigError(
                    f"selection.{name} is {limit}; give at least 1, None for no limit, or "
                    "select='positives' for no hard negatives."
                )
        if self.class_agreement is not None and not 0.0 <= self.class_agreement <= 1.0:
            raise ConfigError(f"selection.class_agreement is {self.class_agreement}; a score is in [0, 1].")
        if self.select not in ("groups", "positives", "all"):
            raise ConfigError(f"selection.select is '{self.select}'; choose groups, positives or all.")

    def __call__(self, view: DetrView, targets: Targets, costs: MatchCosts) -> QueryGroups:
        """The groups of every query, by the view's own matching."""
        giou = giou_to_objects(view.boxes, targets)
        return self.group(view, targets, match_to_targets(view, targets, costs, giou), giou)

    @torch.no_grad()
    def group(self, view: DetrView, targets: Targets, match: Tensor, giou: Tensor | None = None) -> QueryGroups:
        """The groups of every query, given the matching.

        Args:
            view: predictions of L layers and B images.
            targets: their objects.
            match: [L, B, N] long, the query matched to each object, -1 for none.
            giou: [L, B, N, Q] of objects and queries, where it is known already.
        """
        if targets.labels.shape[1] == 0:
            return _no_groups(view, match)
        giou = giou_to_objects(view.boxes, targets) if giou is None else giou
        giou = giou.masked_fill(~targets.is_object[:, :, None], -2.0)  # below every real object's
        best, owner = giou.max(2)  # [L, B, Q]
        matched = matched_object(match, view.num_queries)
        is_positive = matched >= 0
        owner = torch.where(is_positive, matched, owner)
        value = torch.where(is_positive, giou.gather(2, owner[:, :, None]).squeeze(2), best)
        has_objects = targets.is_object.any(1)[:, None]
        is_hard = self._hard_negatives(view, targets, owner, value, ~is_positive & has_objects)
        role = is_positive.to(torch.uint8) * Role.POSITIVE + is_hard.to(torch.uint8) * Role.HARD_NEGATIVE
        owner, value = owner.where(has_objects, -1), value.float().where(has_objects, -1.0)
        objects = targets.labels.shape[1]
        most = min(objects + self.most_hard_negatives(objects, view.num_queries), view.num_queries)
        return QueryGroups(role, owner, value, match, most)

    @property
    def most_per_object(self) -> int | None:
        """The most hard negatives of one object; None for no limit."""
        return None if self.select == "all" else self.cap

    @property
    def most_per_image(self) -> int | None:
        """The most hard negatives of one image; None for no limit."""
        return None if self.select == "all" else self.max_hard_negatives

    def most_hard_negatives(self, objects: int, queries: int) -> int:
        """The most hard negatives that an image of so many objects, of so many queries, can have."""
        if self.select == "positives" or objects == 0:
            return 0
        per_object = self.most_per_object
        limits = [queries, self.most_per_image, None if per_object is None else per_object * objects]
        return min(limit for limit in limits if limit is not None)

    def _hard_negatives(
        self, view: DetrView, targets: Targets, owner: Tensor, giou: Tensor, candidates: Tensor
    ) -> Tensor:
        if self.select == "positives":
            return torch.zeros_like(candidates)
        if self.select == "all":
            return candidates
        hard = candidates & (giou > self.threshold)
        if self.class_agreement is not None:
            hard &= _score_of_owner(view, targets, owner) >= self.class_agreement
        if self.cap is not None:
            hard &= rank_within(owner, giou, hard) < self.cap
        if self.max_hard_negatives is not None:
            hard &= rank_within(torch.zeros_like(owner), giou, hard) < self.max_hard_negatives
        return hard


def matched_object(match: Tensor, num_queries: int) -> Tensor:
    """The inverse of a matching: query of each object [..., N] to object of each query [..., Q], -1: none."""
    objects = torch.arange(match.shape[-1], device=match.device).expand_as(match)
    slots = match.where(match >= 0, num_queries)  # objects without a query go to a slot of their own
    inverse = torch.full((*match.shape[:-1], num_queries + 1), -1, device=match.device)
    return inverse.scatter_(-1, slots, objects)[..., :-1]


def rank_within(owner: Tensor, value: Tensor, member: Tensor) -> Tensor:
    """Rank of every member among the members of the same owner, greatest value first, from 0.

    Args:
        owner: [..., Q] long.
        value: [..., Q]; equal values rank by index.
        member: [..., Q] bool; the rank of others means nothing.
    """
    by_value = value.argsort(dim=-1, descending=True, stable=True)
    key = owner.where(member, -1).gather(-1, by_value)
    key, by_owner = key.sort(dim=-1, stable=True)
    order = by_value.gather(-1, by_owner)
    position = torch.arange(owner.shape[-1], device=owner.device).expand_as(owner)
    is_first = torch.ones_like(member)
    is_first[..., 1:] = key[..., 1:] != key[..., :-1]
    start = position.where(is_first, 0).cummax(-1).values
    return torch.empty_like(owner).scatter_(-1, order, position - start)


def _score_of_owner(view: DetrView, targets: Targets, owner: Tensor) -> Tensor:
    """[L, B, Q] score that each query gives to the class of its owner."""
    label = targets.labels.expand(view.num_layers, -1, -1).gather(-1, owner)
    return view.scores().gather(-1, label[..., None]).squeeze(-1)


def _no_groups(view: DetrView, match: Tensor) -> QueryGroups:
    shape, device = view.boxes.shape[:3], view.boxes.device
    return QueryGroups(
        role=torch.full(shape, int(Role.EASY_NEGATIVE), dtype=torch.uint8, device=device),
        owner=torch.full(shape, -1, device=device),
        giou=torch.full(shape, -1.0, device=device),
        match=match,
        most=0,
    )
