"""The same criterion written as detection code usually is, to compare speeds with.

Matching by transformers' matcher, layer by layer; selection and pairing image by image; GIoU of pairs as the
diagonal of all pairs; the feature distance layer by layer. The definition is that of ``qskd``'s default method.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import generalized_box_iou

from qskd.data.batch import Targets
from qskd.models.view import DetrView

_CAP, _MOST, _FORBIDDEN = 10, 150, 1e4
Labels = list[dict[str, Tensor]]
Indices = list[tuple[Tensor, Tensor]]


def usual_loss(student: DetrView, teacher: DetrView, targets: Targets) -> Tensor:
    """LAPD plus AGFD of sigmoid models of equal depth and equal memory."""
    labels = targets.as_huggingface()
    matcher = DeformableDetrHungarianMatcher(class_cost=2.0, bbox_cost=5.0, giou_cost=2.0)
    total = student.logits.sum() * 0.0
    weights = torch.zeros(teacher.boxes.shape[:3])
    for layer in range(student.num_layers):
        ours = matcher({"logits": student.logits[layer], "pred_boxes": student.boxes[layer]}, labels)
        theirs = matcher({"logits": teacher.logits[layer], "pred_boxes": teacher.boxes[layer]}, labels)
        positives, hard = [], []
        for image, one in enumerate(labels):
            with torch.no_grad():
                role, owner, giou = _select(teacher.boxes[layer, image], one, theirs[image])
                weights[layer, image] = (1.0 + giou).clamp(min=1e-3) * (role > 0)
                positives.append(_same_object(ours[image], theirs[image]))
                hard.append(_hard_pairs(student, teacher, layer, image, one, ours[image], role, owner))
        for pairs in (positives, hard):
            total = total + _pair_loss(student, teacher, layer, pairs)
    return total + _feature_loss(student, teacher, weights)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    return generalized_box_iou(center_to_corners_format(a), center_to_corners_format(b))


def _select(boxes: Tensor, objects: dict[str, Tensor], matched: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Role (1 positive, 2 hard negative), owner and GIoU of each query of one image."""
    giou = _giou(boxes, objects["boxes"])  # [Q, N]
    best, owner = giou.max(1)
    owner[matched[0]] = matched[1]
    best[matched[0]] = giou[matched]
    role = torch.zeros(len(boxes), dtype=torch.long)
    for one in range(len(objects["boxes"])):
        member = (owner == one) & (best > 0)
        member[matched[0]] = False
        queries = member.nonzero().flatten()
        role[queries[best[queries].argsort(descending=True, stable=True)[:_CAP]]] = 2
    hard = (role == 2).nonzero().flatten()
    role[hard[best[hard].argsort(descending=True, stable=True)[_MOST:]]] = 0
    role[matched[0]] = 1
    return role, owner, best


def _same_object(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return ours[0][ours[1].argsort()], theirs[0][theirs[1].argsort()]


def _hard_pairs(
    student: DetrView,
    teacher: DetrView,
    layer: int,
    image: int,
    objects: dict[str, Tensor],
    matched: tuple[Tensor, Tensor],
    role: Tensor,
    owner: Tensor,
) -> tuple[Tensor, Tensor]:
    boxes = student.boxes[layer, image]
    own_role, own_owner, _ = _select(boxes, objects, matched)
    giou = _giou(boxes, objects["boxes"])
    wanted = (role == 2).nonzero().flatten()
    if not len(wanted):
        return wanted, wanted
    scores = teacher.logits[layer, image, wanted].sigmoid()
    logits = student.logits[layer, image]
    entropy = functional.softplus(logits).sum(-1)[None] - scores @ logits.T
    theirs = teacher.boxes[layer, image, wanted]
    cost = entropy + 5 * torch.cdist(theirs, boxes, p=1) - 2 * _giou(theirs, boxes)
    allowed = torch.zeros_like(cost, dtype=torch.bool)
    for one in owner[wanted].unique().tolist():
        rows = (owner[wanted] == one).nonzero().flatten()
        pool = (own_role == 2) & (own_owner == one)
        near = giou[:, one].masked_fill(pool | (own_role == 1), -torch.inf)
        missing = max(len(rows) - int(pool.sum()), 0)
        pool[near.argsort(descending=True)[:missing]] = True
        allowed[rows] = pool
    table = cost.masked_fill(~allowed, _FORBIDDEN).double().numpy()
    rows, columns = (torch.as_tensor(one) for one in linear_sum_assignment(table))
    kept = allowed[rows, columns]
    return columns[kept], wanted[rows[kept]]


def _pair_loss(student: DetrView, teacher: DetrView, layer: int, pairs: Indices) -> Tensor:
    images = torch.cat([torch.full_like(one, image) for image, (one, _) in enumerate(pairs)])
    ours, theirs = torch.cat([one for one, _ in pairs]), torch.cat([one for _, one in pairs])
    logits, boxes = student.logits[layer, images, ours], student.boxes[layer, images, ours]
    target, wanted = teacher.logits[layer, images, theirs].sigmoid(), teacher.boxes[layer, images, theirs]
    by_class = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    by_class = by_class - functional.binary_cross_entropy(target, target, reduction="none")
    giou = torch.diag(_giou(boxes, wanted))
    total = by_class.sum() + 5 * functional.l1_loss(boxes, wanted, reduction="sum") + 2 * (1 - giou).sum()
    return total / max(len(ours), 1)


def _feature_loss(student: DetrView, teacher: DetrView, weights: Tensor) -> Tensor:
    mass = teacher.attention_mass(weights / weights.sum(-1, keepdim=True).clamp(min=1e-9))  # [L, B, S]
    ours, theirs = (view.memory[0].flatten(2).transpose(1, 2) for view in (student, teacher))
    total, amount = ours.sum() * 0.0, 0.0
    for layer in range(teacher.num_layers):
        weight = mass[layer] / (mass[layer].amax(-1, keepdim=True) + 1e-6)  # [B, S]
        channels = ours.shape[-1:]
        distance = functional.layer_norm(ours, channels) - functional.layer_norm(theirs, channels)
        total = total + (distance.square().mean(-1) * weight).sum()
        amount = amount + weight.sum()
    return total / amount
