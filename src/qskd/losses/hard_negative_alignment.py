"""Which of the student's queries stands for each of the teacher's hard negatives."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from qskd.boxes import aligned_giou, at_least_float32
from qskd.data.batch import Targets
from qskd.losses.class_divergence import pairwise_cross_entropy, say_for_head
from qskd.losses.term import Lesson
from qskd.models.view import DetrView
from qskd.selection.assignment import assign, giou_to_objects
from qskd.selection.groups import GroupQuerySelection, QueryGroups, Role

_CLASS_COST, _BOX_COST, _GIOU_COST = 1.0, 5.0, 2.0
_COCO_CLASSES = 80  # the balance of the costs was found with that many binary cross-entropies
_HOPELESS = 1e6  # cost of a pair whose cost is not a number


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
        top_up: as above.

    Returns:
        [L', B, T] long, -1 where a teacher query gets no partner.

    Source of the cost, binary cross-entropy + 5 L1 - 2 GIoU: Chang et al. 2023 (DETRDistill). Departure: the
    cross-entropy is multiplied by 80 / classes for sigmoid heads, to keep the balance it has on COCO.
    """
    hard = {name: value[:, :, match.shape[-1] :] for name, value in teacher.items()}
    is_hard = hard["query"] >= 0  # [L', B, T]
    shape = (*is_hard.shape, student.num_queries)
    if 0 in shape:
        return torch.full(shape[:3], -1, device=match.device)
    place, usable = _candidates(
        student, match, lesson.targets, hard["owner"], is_hard, selection, scope, top_up
    )
    cost = _pair_cost(student, hard, place, lesson.known_classes)
    cost = cost.nan_to_num(_HOPELESS, _HOPELESS, _HOPELESS).masked_fill(~usable, torch.inf)
    dense = torch.full(shape, torch.inf, dtype=cost.dtype, device=cost.device)
    return assign(dense.scatter_(-1, place, cost))


def _candidates(
    student: DetrView,
    match: Tensor,
    targets: Targets,
    owner: Tensor,
    is_hard: Tensor,
    selection: GroupQuerySelection,
    scope: str,
    top_up: bool,
) -> tuple[Tensor, Tensor]:
    """[L', B, T, K] student queries that may stand for each teacher query, and which places hold one."""
    giou = giou_to_objects(student.boxes, targets)  # [L', B, N, Q]
    groups = selection.group(student, targets, match, giou)
    if scope == "image":
        giou = giou.masked_fill(~targets.is_object[:, :, None], -1.0).amax(2, keepdim=True)  # [L', B, 1, Q]
        owner = torch.zeros_like(owner)
    wanted = _count_by_owner(owner, is_hard, giou.shape[2])  # [L', B, G]
    most = selection.most_per_object if scope == "group" else None
    pool, size = _pools(groups, giou, wanted if top_up else torch.zeros_like(wanted), scope, most)
    index = owner.clamp(min=0)  # [L', B, T]
    place = pool.gather(2, index[..., None].expand(-1, -1, -1, pool.shape[-1]))
    count = size.gather(2, index)[..., None] * is_hard[..., None]
    return place, torch.arange(pool.shape[-1], device=place.device) < count


def _pools(
    groups: QueryGroups, giou: Tensor, wanted: Tensor, scope: str, most: int | None
) -> tuple[Tensor, Tensor]:
    """[L', B, G, K] candidates around each object, best first, and [L', B, G] how many of them count."""
    is_own = (groups.role == Role.HARD_NEGATIVE)[:, :, None]  # [L', B, 1, Q]
    if scope == "group":
        objects = torch.arange(giou.shape[2], device=giou.device)
        is_own = is_own & (groups.owner[:, :, None] == objects[:, None])  # [L', B, N, Q]
    is_free = (groups.role != Role.POSITIVE)[:, :, None]
    size = torch.maximum(is_own.sum(-1), wanted).minimum(is_free.sum(-1))
    # GIoU lies in [-1, 1]: own hard negatives come first, then other free queries, then positives.
    priority = giou + 4.0 * is_own - 4.0 * ~is_free
    num_places = min(giou.shape[-1], most or giou.shape[-1])
    return priority.topk(num_places, dim=-1).indices, size


def _count_by_owner(owner: Tensor, is_hard: Tensor, num_groups: int) -> Tensor:
    counts = torch.zeros((*owner.shape[:2], num_groups), dtype=torch.long, device=owner.device)
    return counts.scatter_add_(-1, owner.clamp(min=0), is_hard.long())


def _pair_cost(
    student: DetrView, teacher: Mapping[str, Tensor], place: Tensor, known_classes: Tensor
) -> Tensor:
    """[L', B, T, K] cost of each teacher query with each of its candidates."""
    softmax = student.no_object is not None
    ours = say_for_head(student.logits, student.no_object, known_classes, softmax=softmax)
    theirs = say_for_head(teacher["logits"], teacher.get("no_object"), known_classes, softmax=softmax)
    cost = _CLASS_COST * pairwise_cross_entropy(ours, theirs, softmax=softmax).gather(-1, place)
    if not softmax:
        cost = cost * (_COCO_CLASSES / known_classes.sum().clamp(min=1))
    boxes = _boxes_at(at_least_float32(student.boxes), place)  # [L', B, T, K, 4]
    target = at_least_float32(teacher["boxes"])[:, :, :, None]
    distance = (boxes - target).abs().sum(-1)
    return cost + _BOX_COST * distance - _GIOU_COST * aligned_giou(boxes, target)


def _boxes_at(boxes: Tensor, place: Tensor) -> Tensor:
    """[L', B, Q, 4] at [L', B, T, K] to [L', B, T, K, 4]."""
    flat = place.flatten(2)[..., None].expand(-1, -1, -1, 4)
    return boxes.gather(2, flat).view(*place.shape, 4)
