"""Views, targets and groups made of random tensors: what losses and selection see, without any model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qskd.data.batch import Targets
from qskd.losses.term import Lesson, Prepared, StudentAnswer, Term
from qskd.models.adapter import MatchCosts, Need
from qskd.models.view import DetrView
from qskd.selection.assignment import match_to_targets
from qskd.selection.groups import GroupQuerySelection

FOCAL = MatchCosts("focal", class_weight=2.0, box_weight=5.0, giou_weight=2.0)
SOFTMAX = MatchCosts("softmax", class_weight=1.0, box_weight=5.0, giou_weight=2.0)


@dataclass(frozen=True)
class AttentionMatrix:
    """An attention reader that holds all of [L, B, Q, S]."""

    matrix: Tensor

    def __call__(self, weights: Tensor, most: int | None = None) -> Tensor:
        return torch.einsum("lbq,lbqs->lbs", weights.to(self.matrix.dtype), self.matrix)


@dataclass(frozen=True)
class Facts:
    """What ``build_terms`` asks of an adapter."""

    family: str = "imaginary"
    provides: frozenset[Need] = frozenset(Need)
    num_layers: int = 2
    num_queries: int = 12
    memory_channels: tuple[int, ...] = (6,)
    strides: tuple[int, ...] = (32,)


def facts_of(view: DetrView) -> Facts:
    channels = tuple(level.shape[1] for level in view.memory)
    return Facts(
        num_layers=view.num_layers,
        num_queries=view.num_queries,
        memory_channels=channels,
        strides=view.strides,
    )


def random_boxes(*shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """[*shape, 4] cxcywh: big enough to overlap often, inside the image mostly."""
    centre = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    size = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 0.4 + 0.1
    return torch.cat([centre, size], dim=-1).to(dtype)


def random_targets(counts: Sequence[int] = (3, 2), *, classes: int = 5, seed: int = 100) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(0, classes, (count,), generator=generator) for count in counts]
    return Targets.from_lists(labels, [random_boxes(count, generator=generator) for count in counts])


def random_view(
    seed: int = 0,
    *,
    layers: int = 2,
    images: int = 2,
    queries: int = 12,
    classes: int = 5,
    channels: Sequence[int] = (6,),
    grids: Sequence[tuple[int, int]] = ((3, 4),),
    strides: Sequence[int] = (32,),
    content: Sequence[tuple[float, float]] | None = None,
    softmax: bool = False,
    dtype: torch.dtype = torch.float32,
) -> DetrView:
    """A view of random numbers; equal seeds give equal numbers in any dtype.

    Args:
        content: (height, width) of each image's content, as fractions of the canvas; the rest is padding.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    is_padding = tuple(_padding(grid, content or [(1.0, 1.0)] * images) for grid in grids)
    logits = normal(layers, images, queries, classes) * 1.5 - 1.0
    no_object = normal(layers, images, queries).to(dtype) if softmax else None
    boxes = random_boxes(layers, images, queries, generator=generator, dtype=dtype)
    memory = tuple(normal(images, depth, *grid).to(dtype) for depth, grid in zip(channels, grids, strict=True))
    tokens = torch.cat([mask.flatten(1) for mask in is_padding], dim=1)
    attention = (2.0 * normal(layers, images, queries, tokens.shape[1])).masked_fill(tokens[:, None], -torch.inf)
    matrix = attention.softmax(-1)
    matrix = matrix if dtype == torch.float64 else matrix.float()
    return DetrView(logits.to(dtype), no_object, boxes, memory, is_padding, tuple(strides), AttentionMatrix(matrix))


def _padding(grid: tuple[int, int], content: Sequence[tuple[float, float]]) -> Tensor:
    height, width = torch.tensor(content, dtype=torch.float64).reshape(-1, 2, 1).unbind(1)  # [B, 1]
    rows = torch.arange(grid[0]) >= height * grid[0]
    columns = torch.arange(grid[1]) >= width * grid[1]
    return rows[:, :, None] | columns[:, None, :]


def leaves(view: DetrView) -> list[Tensor]:
    """Every tensor of a view that could receive a gradient."""
    optional = [] if view.no_object is None else [view.no_object]
    return [view.logits, view.boxes, *view.memory, *optional]


def with_gradient(view: DetrView) -> DetrView:
    """A copy whose tensors record gradients."""
    no_object = None if view.no_object is None else view.no_object.clone().requires_grad_()
    return replace(
        view,
        logits=view.logits.clone().requires_grad_(),
        boxes=view.boxes.clone().requires_grad_(),
        memory=tuple(level.clone().requires_grad_() for level in view.memory),
        no_object=no_object,
    )


def reorder_queries(view: DetrView, order: Tensor) -> DetrView:
    """The same predictions, listed in another order [Q]."""
    matrix = view.attention.matrix  # type: ignore[union-attr]
    return replace(
        view,
        logits=view.logits[:, :, order],
        boxes=view.boxes[:, :, order],
        no_object=None if view.no_object is None else view.no_object[:, :, order],
        attention=AttentionMatrix(matrix[:, :, order]),
    )


def take_images(view: DetrView, images: Sequence[int]) -> DetrView:
    index = torch.tensor(images)
    return replace(
        view,
        logits=view.logits[:, index],
        boxes=view.boxes[:, index],
        no_object=None if view.no_object is None else view.no_object[:, index],
        memory=tuple(level[index] for level in view.memory),
        is_padding=tuple(mask[index] for mask in view.is_padding),
        attention=AttentionMatrix(view.attention.matrix[:, index]),  # type: ignore[union-attr]
    )


def take_targets(targets: Targets, images: Sequence[int]) -> Targets:
    counts = [targets.counts[image] for image in images]
    return Targets.from_lists(
        [targets.labels[image, :count] for image, count in zip(images, counts, strict=True)],
        [targets.boxes[image, :count] for image, count in zip(images, counts, strict=True)],
    )


def costs_for(view: DetrView) -> MatchCosts:
    return FOCAL if view.no_object is None else SOFTMAX


def lesson_of(
    teacher: DetrView,
    targets: Targets,
    selection: GroupQuerySelection | None = None,
    known: Sequence[bool] | None = None,
) -> Lesson:
    groups = (selection or GroupQuerySelection())(teacher, targets, costs_for(teacher))
    return Lesson(teacher, groups, targets, torch.tensor(known or [True] * teacher.num_classes))


def answer_of(student: DetrView, targets: Targets) -> StudentAnswer:
    return StudentAnswer(student, match_to_targets(student, targets, costs_for(student)))


def run_term(
    term: Term, student: DetrView, lesson: Lesson, total: Tensor | None = None
) -> tuple[dict[str, Tensor], Prepared]:
    """A term's parts on one micro-batch; alone in its step unless ``total`` is given."""
    with torch.no_grad():
        prepared = term.prepare(lesson)
    answer = answer_of(student, lesson.targets)
    given = replace(lesson, view=lesson.view.without_attention())
    return term(answer, given, prepared, prepared.amount if total is None else total), prepared
