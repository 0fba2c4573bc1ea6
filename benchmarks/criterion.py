"""The distillation criterion: selection, matching, AGFD, LAPD; forward and backward.

Two Conditional-DETR-like models of 6 layers, 300 queries, 80 classes and 256 channels. Queries sit near the
objects, as those of trained models do; the student's are the teacher's with noise.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from memory import peak_bytes
from timing import interleaved, ratio
from torch import Tensor
from usual_criterion import usual_loss

from qskd.data.batch import Targets
from qskd.losses.attention_guided_feature import AttentionGuidedFeature
from qskd.losses.local_alignment_prediction import LocalAlignmentPrediction
from qskd.losses.term import Lesson, StudentAnswer
from qskd.models.adapter import MatchCosts
from qskd.models.attention_dense import CrossAttention, DenseAttentionMass
from qskd.models.view import DetrView
from qskd.selection.assignment import match_to_targets
from qskd.selection.groups import GroupQuerySelection

LAYERS, QUERIES, CLASSES, CHANNELS, HEADS = 6, 300, 80, 256, 8
COSTS = MatchCosts(kind="focal", class_weight=2.0, box_weight=5.0, giou_weight=2.0)


@dataclass(frozen=True, slots=True)
class Step:
    """What a criterion is given in one step."""

    teacher: DetrView
    student: DetrView
    targets: Targets
    learnt: tuple[Tensor, ...]  # the student's tensors that receive gradient


def random_step(images: int, tokens: int, objects: int, seed: int = 0) -> Step:
    """Predictions of both models on ``images`` images of ``objects`` objects and a square map of tokens."""
    random = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    side = round(tokens**0.5)
    shape = (LAYERS, images, QUERIES)
    centres = torch.rand(images, objects, 2, generator=random) * 0.8 + 0.1
    sizes = torch.rand(images, objects, 2, generator=random) * 0.25 + 0.05
    targets = Targets.from_lists(
        list(torch.randint(CLASSES, (images, objects), generator=random)),
        list(torch.cat([centres, sizes], -1)),
    )
    near = torch.randint(objects, (1, images, QUERIES, 1), generator=random).expand(*shape, 4)
    boxes = targets.boxes[None].expand(LAYERS, -1, -1, -1).gather(2, near)
    teacher_boxes = (boxes + 0.05 * noise(*shape, 4)).clamp(0.02, 0.98)
    student_boxes = (teacher_boxes + 0.03 * noise(*shape, 4)).clamp(0.02, 0.98).requires_grad_()
    teacher_logits = 2 * noise(*shape, CLASSES) - 4
    student_logits = (teacher_logits + noise(*shape, CLASSES)).requires_grad_()
    teacher_memory = noise(images, CHANNELS, side, side)
    student_memory = (teacher_memory + noise(images, CHANNELS, side, side)).requires_grad_()
    is_padding = torch.zeros(images, side, side, dtype=torch.bool)
    mass = torch.rand(LAYERS, images, side * side, generator=random)

    def attention(weights: Tensor, most: int | None = None) -> Tensor:
        return mass * weights.sum(-1, keepdim=True)  # what a model's attention costs is a row of its own

    return Step(
        DetrView(teacher_logits, None, teacher_boxes, (teacher_memory,), (is_padding,), (32,), attention),
        DetrView(student_logits, None, student_boxes, (student_memory,), (is_padding,), (32,)),
        targets,
        (student_logits, student_boxes, student_memory),
    )


def criterion_of(step: Step) -> Callable[[], list[Tensor]]:
    """One run of the method's criterion, boxes of hard negatives included: its loss, then its gradients."""
    selection = GroupQuerySelection()
    lapd = LocalAlignmentPrediction(
        num_student_layers=LAYERS, num_student_queries=QUERIES, selection=selection, hard_negative_box_weight=1.0
    )
    agfd = AttentionGuidedFeature(
        student_channels=(CHANNELS,),
        teacher_channels=(CHANNELS,),
        student_strides=(32,),
        teacher_strides=(32,),
    )
    known = torch.ones(CLASSES, dtype=torch.bool)

    def run() -> list[Tensor]:
        with torch.no_grad():
            groups = selection(step.teacher, step.targets, COSTS)
            lesson = Lesson(step.teacher, groups, step.targets, known)
            prepared = [term.prepare(lesson) for term in (lapd, agfd)]
        match = match_to_targets(step.student, step.targets, COSTS)
        answer = StudentAnswer(step.student, match)
        parts: list[Tensor] = []
        for term, one in zip((lapd, agfd), prepared, strict=True):
            parts.extend(term(answer, lesson, one, one.amount).values())
        loss = torch.stack(parts).sum()
        return [loss.detach(), *torch.autograd.grad(loss, step.learnt)]

    return run


def _usual_of(step: Step) -> Callable[[], list[Tensor]]:
    """The same, written as detection code usually is."""

    def run() -> list[Tensor]:
        loss = usual_loss(step.student, step.teacher, step.targets)
        return [loss.detach(), *torch.autograd.grad(loss, step.learnt)]

    return run


def against_usual(quick: bool, images: int = 8) -> float:
    """How many times longer the criterion takes when written as usual; values and gradients are equal."""
    step = random_step(images // 4 if quick else images, 400 if quick else 1600, 30)
    ours, usual = criterion_of(step), _usual_of(step)
    for one, other in zip(ours(), usual(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    return ratio(usual, ours, 1 if quick else 5)


def against_usual_in_large_batches(quick: bool) -> float:
    """The same with 16 images."""
    return against_usual(quick, 16)


def memory_against_usual(quick: bool) -> float:
    """How many times more memory the criterion takes at its peak when written as usual, batch 8."""
    step = random_step(2 if quick else 8, 400 if quick else 1600, 30)
    return peak_bytes(_usual_of(step)) / peak_bytes(criterion_of(step))


def growth_with_batch(quick: bool) -> float:
    """Exponent of the time in the number of images, 8 to 16: 1 is proportional."""
    return _exponent((4, 400, 30), (8, 400, 30), 2, quick) if quick else _exponent(*_BATCHES, 2, quick)


def growth_with_objects(quick: bool) -> float:
    """Exponent of the time in the number of objects, 30 to 60."""
    return _exponent((4, 400, 30), (4, 400, 60), 2, quick) if quick else _exponent(*_OBJECTS, 2, quick)


def growth_with_tokens(quick: bool) -> float:
    """Exponent of the time in the number of memory tokens, 1600 to 12996."""
    if quick:
        return _exponent((2, 400, 30), (2, 1600, 30), 4, quick)
    return _exponent(*_TOKENS, _TOKENS[1][1] / _TOKENS[0][1], quick)


_BATCHES = ((8, 1600, 30), (16, 1600, 30))
_OBJECTS = ((8, 1600, 30), (8, 1600, 60))
_TOKENS = ((8, 1600, 30), (8, 114**2, 30))


def _exponent(small: tuple[int, int, int], large: tuple[int, int, int], factor: float, quick: bool) -> float:
    runs = [criterion_of(random_step(*small)), criterion_of(random_step(*large))]
    first, second = interleaved(list(runs), 3 if quick else 7, time.process_time)
    return log(second / first) / log(factor)


def attention_of_selected(quick: bool) -> float:
    """Attention mass of 60 queries an image, against the map of all queries, as eager attention makes it."""
    images, tokens, chosen = (2, 400, 60) if quick else (8, 1600, 60)
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(images, QUERIES, CHANNELS, generator=random)
    keys = torch.randn(images, tokens, CHANNELS, generator=random)
    layer = CrossAttention((queries,), (keys,), HEADS, (CHANNELS // HEADS) ** -0.5)
    reader = DenseAttentionMass((layer,), torch.zeros(images, tokens, dtype=torch.bool))
    weights = torch.zeros(1, images, QUERIES)
    weights[..., torch.randperm(QUERIES, generator=random)[:chosen]] = 1.0

    def whole() -> Tensor:
        split = [one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (queries, keys)]  # [B, H, T, D / H]
        attention = (split[0] * layer.scaling @ split[1].mT).softmax(-1).mean(1)  # [B, Q, S]
        return torch.einsum("bq,bqs->bs", weights[0], attention)[None]

    torch.testing.assert_close(reader(weights), whole(), rtol=1e-4, atol=1e-5)
    return ratio(whole, lambda: reader(weights), 3 if quick else 9)
