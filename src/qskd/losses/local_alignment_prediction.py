"""Local Alignment Prediction Distillation (LAPD): imitate what the teacher's selected queries predict."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from qskd.boxes import aligned_giou, at_least_float32
from qskd.errors import ConfigError
from qskd.losses.class_divergence import class_divergence, say_for_head
from qskd.losses.hard_negative_alignment import align_hard_negatives
from qskd.losses.query_rows import flat_rows, last_layers, listed, predictions_at
from qskd.losses.term import Lesson, Prepared, StudentAnswer
from qskd.models.adapter import Need
from qskd.models.host import constant, most_selected
from qskd.selection.groups import GroupQuerySelection, Role

_TINY = 1e-6


class LocalAlignmentPrediction(nn.Module):
    """Class divergence, L1 and GIoU distance between paired queries of student and teacher.

    Positives are paired through the object they are matched to. Hard negatives are paired by the cheapest
    assignment among the queries around the same object (``align_hard_negatives``). Each student layer learns
    from one teacher layer, the last from the last. Per layer,

        L = (1 / P) sum over pairs of positives of l + (omega / H) sum over pairs of hard negatives of l,
        l = class_weight * KL + beta * (box_weight * |b_student - b_teacher|_1 + giou_weight * (1 - GIoU)),

    with P and H the numbers of pairs, at least 1, and beta 1 for positives; layers are summed. When a step has
    several micro-batches or processes, each takes the mean over its own pairs and weighs it by its part of all pairs
    sought, which the teacher's side alone tells.

    Args:
        num_student_layers: decoder layers of the student's views.
        num_student_queries: Q of the student's views.
        selection: how the teacher's hard negatives were found; the student's are found in the same way, but
            without class agreement.
        scope: pair hard negatives around the same object ("group") or of the same image ("image"); or ("index") pair
            every selected query, positives too, with the student's of the same number, as one would without any
            alignment. The teacher's queries beyond the student's last have no partner then.
        top_up: where a student has fewer hard negatives than the teacher, take its next nearest queries.
        layers: "all" student layers, or only the "last".
        class_weight, box_weight, giou_weight: weights within a pair.
        hard_negative_weight: omega.
        hard_negative_box_weight: beta of hard negatives; 0 leaves their boxes to the student.
        weight_by_giou: multiply each hard negative by its teacher query's max(GIoU, 0).
        temperature: of the class divergence.
        single_mean: one mean over positives and hard negatives together, dividing by P + H.

    Raises:
        ConfigError: an option has an unknown value.

    Source: Liu et al. 2024 (arXiv 2409.06443) name the idea; pairs, costs and weights 1, 5, 2 are those of
    the third-party code in TPRD (github.com/xingyitong1/TPRD), which is scope="image", top_up=False,
    single_mean=True and hard_negative_box_weight=1. Departures: scope "group", the top-up, two means, no boxes of
    hard negatives, KL in place of cross-entropy (equal gradients, 0 for equal predictions).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PREDICTIONS})

    def __init__(
        self,
        *,
        num_student_layers: int,
        num_student_queries: int,
        selection: GroupQuerySelection | None = None,
        scope: Literal["group", "image", "index"] = "group",
        top_up: bool = True,
        layers: Literal["all", "last"] = "all",
        class_weight: float = 1.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        hard_negative_weight: float = 1.0,
        hard_negative_box_weight: float = 0.0,
        weight_by_giou: bool = False,
        temperature: float = 1.0,
        single_mean: bool = False,
    ) -> None:
        super().__init__()
        if scope not in ("group", "image", "index") or layers not in ("all", "last"):
            raise ConfigError(
                f"lapd.scope is '{scope}' (choose group, image or index), lapd.layers '{layers}' (all or last)."
            )
        if not 0.0 < temperature < math.inf:
            raise ConfigError(f"lapd.temperature is {temperature}; it must be above 0 and finite.")
        self.num_student_layers, self.num_student_queries = num_student_layers, num_student_queries
        self.num_layers = num_student_layers if layers == "all" else 1
        self.selection = replace(selection or GroupQuerySelection(), class_agreement=None)
        self.scope, self.top_up = scope, top_up
        self.part_weights = (class_weight, box_weight, giou_weight)
        self.hard_negative_weight, self.weight_by_giou = hard_negative_weight, weight_by_giou
        self.hard_negative_box_weight = hard_negative_box_weight
        self.temperature, self.single_mean = temperature, single_mean

    @torch.no_grad()
    def prepare(self, lesson: Lesson) -> Prepared:
        """The teacher's selected queries, for every student layer that learns, and how many pairs are sought.

        ``amount`` is [2 L']: for each of the L' learning layers the pairs of positives sought, then those of
        hard negatives.
        """
        view, groups = lesson.view, lesson.groups
        layers = constant(self.teacher_layers(view.num_layers), view.logits.device, torch.long)  # [L']
        positives = groups.match[layers]  # [L', B, N]
        is_hard = groups.role[layers] == Role.HARD_NEGATIVE  # [L', B, Q]
        hard = listed(is_hard, self._most_hard_negatives(lesson, is_hard))  # [L', B, T]
        query = torch.cat([positives, hard], dim=-1)  # [L', B, P]
        rows = flat_rows(query, layers, view.num_queries)
        tensors = predictions_at(view, rows) | {
            "query": query,
            "owner": groups.owner.flatten()[rows],
            "giou": groups.giou.flatten()[rows],
        }
        return Prepared(tensors, self._pairs_sought(positives, is_hard, lesson))

    def forward(self, student: StudentAnswer, lesson: Lesson, prepared: Prepared, total: Tensor) -> dict[str, Tensor]:
        """Parts ``lapd_class``, ``lapd_box`` and ``lapd_giou``, inner weights applied; see ``Term``."""
        view, teacher = last_layers(student.view, self.num_layers), prepared.tensors
        query = self.partners(student, lesson, prepared)  # [L', B, P]
        is_pair = (query >= 0) & (teacher["query"] >= 0)
        weight = self._pair_weights(is_pair, student.match.shape[-1], teacher["giou"], prepared.amount, total)
        layers = torch.arange(view.num_layers, device=query.device)
        ours = predictions_at(view, flat_rows(query, layers, view.num_queries))
        divergence = self._class_losses(ours, teacher, lesson.known_classes)
        distances = self._box_losses(ours["boxes"], teacher["boxes"], weight, student.match.shape[-1])
        parts = {"lapd_class": (divergence * weight).sum(), **distances}
        return {name: inner * part for inner, (name, part) in zip(self.part_weights, parts.items(), strict=True)}

    @torch.no_grad()
    def partners(self, student: StudentAnswer, lesson: Lesson, prepared: Prepared) -> Tensor:
        """The student query that stands for each of the teacher's selected queries.

        Returns:
            [L', B, N + T] long, beside ``prepared.tensors["query"]``: of each learning layer and image those of the N
            positives, then those of the hard negatives. It is a pair where neither is -1.
        """
        if self.scope == "index":
            query = prepared.tensors["query"]
            return query.where(query < self.num_student_queries, -1)
        match = student.match[-self.num_layers :]
        partner = align_hard_negatives(
            last_layers(student.view, self.num_layers),
            match,
            lesson,
            prepared.tensors,
            self.selection,
            scope=self.scope,
            top_up=self.top_up,
            taken=None if student.taken is None else student.taken[-self.num_layers :],
        )
        return torch.cat([match, partner], dim=-1)

    def _class_losses(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], known_classes: Tensor
    ) -> Tensor:
        """[L', B, P] of each pair."""
        softmax = "no_object" in student
        ours, theirs = (
            say_for_head(side["logits"], side.get("no_object"), known_classes, softmax=softmax)
            for side in (student, teacher)
        )
        return class_divergence(ours, theirs, softmax=softmax, temperature=self.temperature)

    def _box_losses(self, ours: Tensor, theirs: Tensor, weight: Tensor, num_objects: int) -> dict[str, Tensor]:
        """Weighted sums over boxes [L', B, P, 4]; of the positives alone where those of hard negatives do not count."""
        positive, hard = torch.split(weight, [num_objects, weight.shape[-1] - num_objects], dim=-1)
        if self.hard_negative_box_weight:
            weight = torch.cat([positive, hard * self.hard_negative_box_weight], dim=-1)
        else:
            weight, ours, theirs = positive, ours[..., :num_objects, :], theirs[..., :num_objects, :]
        distance = (at_least_float32(ours) - at_least_float32(theirs)).abs().sum(-1)
        overlap = aligned_giou(ours, theirs)
        return {"lapd_box": (weight * distance).sum(), "lapd_giou": (weight * (1.0 - overlap)).sum()}

    def _pair_weights(self, is_pair: Tensor, num_objects: int, giou: Tensor, sought: Tensor, total: Tensor) -> Tensor:
        """[L', B, P] what each pair's loss is multiplied by; 0 where there is no pair."""
        kinds = torch.split(is_pair, [num_objects, is_pair.shape[-1] - num_objects], dim=-1)
        found = torch.stack([kind.sum((1, 2)) for kind in kinds])  # [2, L']
        share = torch.stack([sought, total]).view(2, 2, -1)  # sought and total, each [2, L']
        if self.single_mean:
            found, share = found.sum(0, keepdim=True), share.sum(1, keepdim=True)
        scale = share[0] / (share[1].clamp(min=_TINY) * found.clamp(min=1))
        positive, hard = scale.expand(2, -1)[:, :, None, None]  # [L', 1, 1]
        hard = hard * self.hard_negative_weight
        if self.weight_by_giou:
            hard = hard * giou[..., num_objects:].clamp(min=0.0)
        return torch.cat([kinds[0] * positive, kinds[1] * hard], dim=-1)

    def teacher_layers(self, num_teacher_layers: int) -> list[int]:
        """The teacher layer, from 0, of each learning student layer l of L, from 1: round(l L_t / L) - 1."""
        chosen = [
            int(layer * num_teacher_layers / self.num_student_layers + 0.5)
            for layer in range(1, self.num_student_layers + 1)
        ]
        return [max(layer, 1) - 1 for layer in chosen[-self.num_layers :]]

    def _most_hard_negatives(self, lesson: Lesson, is_hard: Tensor) -> int:
        """T: the most hard negatives of a layer and image; exact on a CPU, else what the selection allows."""
        allowed = self.selection.most_hard_negatives(lesson.targets.labels.shape[1], lesson.view.num_queries)
        return most_selected(is_hard, allowed)

    def _pairs_sought(self, positives: Tensor, is_hard: Tensor, lesson: Lesson) -> Tensor:
        """[2 L'] float32 summed over images."""
        ours = self.num_student_queries
        if self.scope == "index":
            has_partner = positives.where(positives < ours, -1)
            return torch.cat([(kind.sum((1, 2))) for kind in (has_partner >= 0, is_hard[..., :ours])]).float()
        matched = (positives >= 0).sum(-1).clamp(max=ours)  # [L', B]
        objects = lesson.targets.is_object.sum(-1) + (0 if lesson.others is None else lesson.others)  # [B]
        free = ours - objects.clamp(max=ours)  # [B]
        hard = torch.minimum(is_hard.sum(-1), free)
        return torch.cat([matched.sum(-1), hard.sum(-1)]).float()
