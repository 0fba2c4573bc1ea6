"""Attention-Guided Feature Distillation (AGFD): imitate memory where the teacher's selected queries look."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from qskd.boxes import at_least_float32
from qskd.errors import ConfigError
from qskd.losses.feature_distance import weighted_distance
from qskd.losses.term import Lesson, Prepared, StudentAnswer
from qskd.models.adapter import Need
from qskd.models.channels import evenly_spaced
from qskd.models.view import DetrView
from qskd.selection.groups import QueryGroups, Role

_LEAST_OMEGA = 1e-3  # of a selected query whose GIoU is -1
_TINY = 1e-6


class AttentionGuidedFeature(nn.Module):
    """Squared distance of projected student memory and teacher memory, weighted by the teacher's attention.

    With omega_q = max(1 + GIoU_q, 1e-3) on the selected queries of layer l, m_l(p) their omega-weighted
    mean attention on token p and n_l = m_l / (max_p m_l + epsilon), a token weighs W(p) = sum_l n_l(p)^power:

        sum over images and tokens of W(p) ||project(F_student)(p) - F_teacher(p)||^2 / (D_teacher * norm)

    Levels are paired by stride; others are left out. Where the grids of a pair differ, the teacher's features
    and weights are resized to the student's by cell area.

    Args:
        student_channels: D of each of the student's levels.
        teacher_channels: D of each of the teacher's levels.
        student_strides: pixels per cell of the student's levels.
        teacher_strides: pixels per cell of the teacher's levels.
        norm: what the sum is divided by: "mass", the sum of W, or "area", the number of tokens that are not
            padding in images with objects.
        projection: "auto" for none where both have the same channels and a linear map per token otherwise;
            "linear" for a linear map always, beginning as the identity where both have the same channels.
        normalise: compare features whose mean over channels is 0 and whose variance is 1, on both sides.
        norm_per_level: divide m_l by its greatest value in each level instead of over all levels. Fine levels
            spread attention over more cells and weigh little otherwise.
        epsilon: added to the greatest value; above 0.
        begins_alike: how many neighbours were kept together where the student's channels began as evenly spaced ones
            of the teacher's; a linear map then begins by putting each where it was. None: they did not, and it begins
            at random.
        power: above 0. 1 weighs by attention itself; 2 is what a mask multiplied onto both features does, and leaves
            all but the few tokens that are looked at most nearly unused.

    Raises:
        ConfigError: student and teacher have no stride in common, or an option has an unknown value.

    Source: Liu et al. 2024 (arXiv 2409.06443) name the idea; the form is that of the third-party code in TPRD
    (github.com/xingyitong1/TPRD). Departures: each layer weighs by its own attention, averaged over heads and
    none of it on padding; omega is at least 1e-3; "mass", ``projection``, ``normalise``, ``norm_per_level``,
    ``power`` other than 2, ``begins_alike`` and levels paired by stride are ours.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.MEMORY, Need.ATTENTION})
    part: ClassVar[str] = "agfd"

    def __init__(
        self,
        *,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        student_strides: Sequence[int],
        teacher_strides: Sequence[int],
        norm: Literal["mass", "area"] = "mass",
        projection: Literal["auto", "linear"] = "auto",
        normalise: bool = True,
        norm_per_level: bool = False,
        epsilon: float = 1e-6,
        power: float = 1.0,
        begins_alike: int | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 < power < math.inf:
            raise ConfigError(
                f"agfd.power is {power}; it must be above 0 and finite. agfd.mask none weighs all tokens alike."
            )
        if not 0.0 < epsilon < math.inf:
            raise ConfigError(f"agfd.epsilon is {epsilon}; it must be above 0 and finite.")
        _check_choice("norm", norm, ("mass", "area"))
        _check_choice("projection", projection, ("auto", "linear"))
        self.pairs = _pairs_of_levels(student_strides, teacher_strides)
        self.norm, self.normalise = norm, normalise
        self.norm_per_level, self.epsilon, self.power = norm_per_level, epsilon, power
        self.projections = nn.ModuleList(
            _projection(student_channels[ours], teacher_channels[theirs], projection, begins_alike)
            for ours, theirs in self.pairs
        )

    @torch.no_grad()
    def prepare(self, lesson: Lesson) -> Prepared:
        """Weight of every teacher token, and what the sum over tokens is divided by."""
        weights = self.token_weights(lesson)  # [B, S]
        levels = torch.split(weights, _level_sizes(lesson.view), dim=1)
        used = torch.stack([levels[theirs].sum(1) for _, theirs in self.pairs]).sum(0)  # [B]
        if self.norm == "area":
            valid = torch.stack([_is_valid(lesson.view, theirs).sum(1) for _, theirs in self.pairs]).sum(0)
            used = valid * (used > 0)
        return Prepared({"weights": weights}, used.sum()[None].float())

    def forward(self, student: StudentAnswer, lesson: Lesson, prepared: Prepared, total: Tensor) -> dict[str, Tensor]:
        """The one part, ``agfd``; see ``Term``."""
        weights = torch.split(prepared.tensors["weights"], _level_sizes(lesson.view), dim=1)
        levels = [
            self._level_loss(project, student, ours, lesson, theirs, weights[theirs])
            for project, (ours, theirs) in zip(self.projections, self.pairs, strict=True)
        ]
        return {self.part: torch.stack(levels).sum() / total[0].clamp(min=_TINY)}

    def _level_loss(
        self,
        project: nn.Module,
        student: StudentAnswer,
        ours: int,
        lesson: Lesson,
        theirs: int,
        weights: Tensor,
    ) -> Tensor:
        student_map, teacher_map = student.view.memory[ours], lesson.view.memory[theirs]
        projected = at_least_float32(_projected(project, student_map.flatten(2)))  # [B, D_teacher, hw]
        with torch.no_grad():
            weight_map = weights.reshape(-1, *teacher_map.shape[-2:])  # [B, h, w]
            stride = lesson.view.strides[theirs]
            extents = _extent(lesson.content, teacher_map, stride), _extent(student.content, student_map, stride)
            if teacher_map.shape[-2:] != student_map.shape[-2:] or lesson.content is not None:
                is_valid = ~lesson.view.is_padding[theirs]
                teacher_map = resize_mean(teacher_map, is_valid, student_map.shape[-2:], extents)
                weight_map = resize_sum(weight_map, student_map.shape[-2:], extents)
            target = at_least_float32(teacher_map).flatten(2)
            weights = weight_map.masked_fill(student.view.is_padding[ours], 0.0).flatten(1)
        return weighted_distance(projected, target, weights, normalise=self.normalise) / target.shape[1]

    def token_weights(self, lesson: Lesson) -> Tensor:
        """W [B, S], 0 at padding and in images without selected queries."""
        mass = lesson.view.attention_mass(query_weights(lesson.groups), lesson.groups.most)  # [L, B, S]
        is_padding = torch.cat([mask.flatten(1) for mask in lesson.view.is_padding], dim=1)
        mass = mass.masked_fill(is_padding, 0.0)
        levels = torch.split(mass, _level_sizes(lesson.view), dim=-1) if self.norm_per_level else (mass,)
        weights = torch.cat([self._peak_normalised(level) for level in levels], dim=-1)
        return (weights if self.power == 1.0 else weights.pow(self.power)).sum(0)

    def _peak_normalised(self, mass: Tensor) -> Tensor:
        return mass / (mass.amax(-1, keepdim=True) + self.epsilon)


class UnmaskedFeature(AttentionGuidedFeature):
    """The same distance with every token that is not padding weighing 1: what the attention is compared with.

    Images without objects take part: nothing here depends on objects.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.MEMORY})
    part: ClassVar[str] = "feature"

    def token_weights(self, lesson: Lesson) -> Tensor:
        """1 [B, S] for every token that is not padding."""
        return torch.cat([(~mask).flatten(1) for mask in lesson.view.is_padding], dim=1).float()


def query_weights(groups: QueryGroups) -> Tensor:
    """[L, B, Q] omega of the selected queries, 0 for others; sums to 1 per layer and image, or to 0."""
    omega = (1.0 + groups.giou).clamp(min=_LEAST_OMEGA)
    omega = omega * (groups.role != Role.EASY_NEGATIVE)
    return omega / omega.sum(-1, keepdim=True).clamp(min=_LEAST_OMEGA)


Extents = tuple[Tensor | None, Tensor | None]
"""[B, 2] parts of the old and of the new grid (height, width) that images fill; None where both models see the same."""


def resize_sum(values: Tensor, size: Sequence[int], extents: Extents = (None, None)) -> Tensor:
    """[B, ..., h, w] on another grid over the same images; each cell is shared out by area, so sums are kept.

    Args:
        values: one map or several an image.
        size: (height, width) of the new grid.
        extents: where the two grids lie on canvases that images fill unlike: an image keeps its place in both.
    """
    old, new = extents
    rows = _shares(values.shape[-2], size[0], values, *_column(old, new, 0))  # [h', h] or [B, h', h]
    columns = _shares(values.shape[-1], size[1], values, *_column(old, new, 1))  # [w', w] or [B, w', w]
    if rows.ndim == 3 and values.ndim == 4:
        rows, columns = rows[:, None], columns[:, None]
    with torch.autocast(values.device.type, enabled=False):
        return rows @ values @ columns.mT


def resize_mean(features: Tensor, is_valid: Tensor, size: Sequence[int], extents: Extents = (None, None)) -> Tensor:
    """[B, D, h, w] on another grid over the same images: means by area of valid cells, else 0."""
    valid = is_valid[:, None]
    features = at_least_float32(features).masked_fill(~valid, 0.0)
    area = resize_sum(valid.to(features.dtype), size, extents)
    return resize_sum(features, size, extents) / area.clamp(min=_TINY)


def _extent(content: Tensor | None, level: Tensor, stride: int) -> Tensor | None:
    """[B, 2] the part of a grid's height and width that each image fills; cells may reach beyond the canvas."""
    return None if content is None else content / (content.new_tensor(level.shape[-2:]) * stride)


def _column(old: Tensor | None, new: Tensor | None, axis: int) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if old is None or new is None else (old[:, axis], new[:, axis])


def _shares(before: int, after: int, like: Tensor, old: Tensor | None = None, new: Tensor | None = None) -> Tensor:
    """[after, before], or [B, after, before], the part of each old interval in each new one; columns sum to 1.

    ``old`` and ``new`` [B] are the parts of the two lines that an image fills; what lies beyond it is no part of an
    old interval.
    """
    starts = torch.arange(before + 1, device=like.device, dtype=like.dtype) / before
    ends = torch.arange(after + 1, device=like.device, dtype=like.dtype) / after
    if old is not None and new is not None:
        starts = (starts / old.to(like.dtype)[:, None]).clamp(max=1.0)  # [B, before + 1], fractions of the image
        ends = ends / new.to(like.dtype)[:, None]
    low, high = starts[..., None, :-1], starts[..., None, 1:]
    overlap = torch.minimum(high, ends[..., 1:, None]) - torch.maximum(low, ends[..., :-1, None])
    return overlap.clamp(min=0) / (high - low).clamp(min=_TINY)


def _projected(project: nn.Module, level: Tensor) -> Tensor:
    """[B, D, hw] to [B, D_teacher, hw], without turning tokens to the front."""
    if not isinstance(project, nn.Linear):
        return level
    return project.weight @ level + project.bias[:, None]


def _level_sizes(view: DetrView) -> list[int]:
    return [level.shape[-2] * level.shape[-1] for level in view.memory]


def _is_valid(view: DetrView, level: int) -> Tensor:
    """[B, hw]."""
    return (~view.is_padding[level]).flatten(1)


def _pairs_of_levels(student: Sequence[int], teacher: Sequence[int]) -> list[tuple[int, int]]:
    pairs = [(index, teacher.index(stride)) for index, stride in enumerate(student) if stride in teacher]
    if not pairs:
        raise ConfigError(
            f"The student's memory has strides {tuple(student)}, the teacher's {tuple(teacher)}: no level "
            "can be compared. Choose a student with a level of the teacher's stride, or switch the term off with "
            "--agfd_weight 0."
        )
    return pairs


def _projection(student: int, teacher: int, projection: str, begins_alike: int | None) -> nn.Module:
    if student == teacher and projection == "auto":
        return nn.Identity()
    linear = nn.Linear(student, teacher)
    if student == teacher or (begins_alike is not None and student < teacher):
        places = evenly_spaced(student, teacher, begins_alike or 1)
        with torch.no_grad():
            linear.weight.zero_()[places, torch.arange(student)] = 1.0
        nn.init.zeros_(linear.bias)
    return linear


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"agfd.{name} is '{value}'; choose one of {', '.join(choices)}.")
