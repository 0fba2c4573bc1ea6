"""Which of the student's queries stands for each of the teacher's hard negatives."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from qskd.boxes import aligned_giou, at_least_float32, pairwise_giou
from qskd.data.batch import Targets
from qskd.losses.class_divergence import pairwise_cross_entropy, say_for_head
from qskd.losses.term import Lesson
from qskd.models.view import DetrView
from qskd.selection.assignment import HOPELESS, assign, giou_to_objects
from qskd.selection.groups import GroupQuerySelection, QueryGroups, Role, matched_object
from qskd.selection.layerwise import by_layer

_CLASS_COST, _BOX_COST, _GIOU_COST = 1.0, 5.0, 2.0
_COCO_CLASSES = 80  # the balance of the costs was found with that many binary cross-entropies


@torch.no_grad()
def align_hard_negatives(
    student: DetrView,
    match: Tensor,
    lesson: Lesson,
    teacher: Mapping[str, Tensor],
    selection: GroupQuerySelection,
    *,
    scope: Literal["group", "image"],
    top_up: bool,
    taken: Tensor | None = None,
) -> Tensor:
    """The student query paired with each of the teacher's hard negatives.

    Candidates for a teacher query are the student's own hard negatives around the same object, found by the
    same rule as the teacher's. Where they are fewer than the teacher's and ``top_up`` is set, the student's
    unmatched queries of next greatest GIoU with the object join them. Of every layer and image the cheapest
    assignment is made, of as many pairs as possible; a student query is used once, a student positive never.

    Args:
        student: [L', B, Q] queries.
        match: [L', B, N] the student query matched to each object, -1 for none.
        lesson: the teacher's view is not used.
        teacher: "logits", "boxes", "owner", "query" (-1 for none) and for softmax heads "no_object" of the
            teacher's queries [L', B, N + T], positives first.
        selection: finds the student's hard negatives.
        scope: "group" as above; "image" lets a query stand for any hard negative of the image.
        top_up: as above; with scope "image" the next are those of greatest GIoU with any object.
        taken: [L', B, Q] bool, the student's queries matched to any object, also to those that ``match`` leaves
            out; None for exactly those in ``match``.

    Returns:
        [L', B, T] long, -1 where a teacher query gets no partner.

    Source of the cost, binary cross-entropy + 5 L1 - 2 GIoU: Chang et al. 2023 (DETRDistill). Departure: the
    cross-entropy is multiplied by 80 / classes for sigmoid heads, to keep the balance it has on COCO.
    """
    hard = {name: value[:, :, match.shape[-1] :] for name, value in teacher.items()}
    is_hard = hard["query"] >= 0  # [L', B, T]
    if is_hard.numel() == 0:
        return torch.full(is_hard.shape, -1, device=match.device)
    if taken is None:
        taken = matched_object(match, student.num_queries) >= 0
    place, usable = _candidates(student, match, taken, lesson.targets, hard["owner"], is_hard, selection, scope, top_up)
    cost = _pair_cost(student, hard, place, lesson.known_classes)
    return assign(cost.nan_to_num(HOPELESS, HOPELESS, HOPELESS).masked_fill(~usable, torch.inf), place)


def _candidates(
    student: DetrView,
    match: Tensor,
    taken: Tensor,
    targets: Targets,
    owner: Tensor,
    is_hard: Tensor,
    selection: GroupQuerySelection,
    scope: str,
    top_up: bool,
) -> tuple[Tensor | None, Tensor]:
    """[L', B, T, K] student queries that may stand for each teacher query, and which places hold one.

    Without a limit of candidates, every query has a place, its own: the first is None, and K is Q.
    """
    giou = giou_to_objects(student.boxes, targets)  # [L', B, N, Q]
    groups = selection.group(student, targets, match, giou)
    if scope == "image":
        giou = giou.masked_fill(~targets.is_object[:, :, None], -1.0).amax(2, keepdim=True)  # [L', B, 1, Q]
        owner = torch.zeros_like(owner)
    owner = owner.clamp(min=0)  # [L', B, T]
    wanted = _count_by_owner(owner, is_hard & top_up, giou.shape[2])  # [L', B, G]
    priority, size = _priorities(groups, taken, giou, wanted, scope)
    in_order = torch.arange(giou.shape[-1], device=giou.device)
    if scope == "group" and selection.most_per_object is not None:
        pool = priority.topk(min(selection.most_per_object, giou.shape[-1]), dim=-1).indices
        place = _of_owner(pool, owner)
        size = size.gather(2, owner)[..., None]
        return place, (in_order[: place.shape[-1]] < size) & is_hard[..., None]
    order = priority.argsort(dim=-1, descending=True, stable=True)
    in_pool = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, in_order < size[..., None])
    return None, _of_owner(in_pool, owner) & is_hard[..., None]


def _priorities(groups: QueryGroups, taken: Tensor, giou: Tensor, wanted: Tensor, scope: str) -> tuple[Tensor, Tensor]:
    """[L', B, G, Q] the order in which queries become candidates of an object, and [L', B, G] how many do."""
    is_free = ~taken[:, :, None]  # [L', B, 1, Q]
    is_own = (groups.role == Role.HARD_NEGATIVE)[:, :, None] & is_free
    if scope == "group":
        objects = torch.arange(giou.shape[2], device=giou.device)
        is_own = is_own & (groups.owner[:, :, None] == objects[:, None])  # [L', B, N, Q]
    size = torch.maximum(is_own.sum(-1), wanted).minimum(is_free.sum(-1))
    # GIoU lies in [-1, 1]: own hard negatives come first, then other free queries, then positives.
    return giou + 4.0 * is_own - 4.0 * ~is_free, size


def _of_owner(groups: Tensor, owner: Tensor) -> Tensor:
    """[L', B, G, K] of objects to [L', B, T, K] of the queries they own."""
    return groups.gather(2, owner[..., None].expand(-1, -1, -1, groups.shape[-1]))


def _count_by_owner(owner: Tensor, is_hard: Tensor, num_groups: int) -> Tensor:
    counts = torch.zeros((*owner.shape[:2], num_groups), dtype=torch.long, device=owner.device)
    return counts.scatter_add_(-1, owner, is_hard.long())


def _pair_cost(student: DetrView, teacher: Mapping[str, Tensor], place: Tensor | None, known_classes: Tensor) -> Tensor:
    """[L', B, T, K] cost of each teacher query with each of its candidates."""
    softmax = student.no_object is not None
    balance = 1.0 if softmax else _COCO_CLASSES / known_classes.sum().clamp(min=1)

    def cost_of(
        ours: Tensor,
        no_object: Tensor | None,
        boxes: Tensor,
        theirs: Tensor,
        their_no_object: Tensor | None,
        target: Tensor,
        place: Tensor | None,
    ) -> Tensor:
        ours = say_for_head(ours, no_object, known_classes, softmax=softmax)
        theirs = say_for_head(theirs, their_no_object, known_classes, softmax=softmax)
        cost = pairwise_cross_entropy(ours, theirs, softmax=softmax)
        cost = (cost if place is None else cost.gather(-1, place)).mul_(_CLASS_COST * balance)
        return cost + _box_cost(at_least_float32(boxes), at_least_float32(target), place)

    return by_layer(
        cost_of,
        student.logits,
        student.no_object,
        student.boxes,
        teacher["logits"],
        teacher.get("no_object"),
        teacher["boxes"],
        place,
    )


def _box_cost(boxes: Tensor, target: Tensor, place: Tensor | None) -> Tensor:
    """[..., T, K] of boxes [..., Q, 4] and the teacher's [..., T, 4]."""
    if place is None:
        return _BOX_COST * torch.cdist(target, boxes, p=1.0) - _GIOU_COST * pairwise_giou(target, boxes)
    boxes, target = _boxes_at(boxes, place), target[..., None, :]  # [..., T, K, 4]
    return _BOX_COST * (boxes - target).abs().sum(-1) - _GIOU_COST * aligned_giou(boxes, target)


def _boxes_at(boxes: Tensor, place: Tensor) -> Tensor:
    """[..., Q, 4] at [..., T, K] to [..., T, K, 4]."""
    flat = place.flatten(-2)[..., None].expand(*place.shape[:-2], -1, 4)
    return boxes.gather(-2, flat).view(*place.shape, 4)
