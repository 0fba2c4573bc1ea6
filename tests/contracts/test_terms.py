"""What every distillation term must fulfil, in every preset that uses it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders_views import (
    AttentionMatrix,
    facts_of,
    leaves,
    lesson_of,
    random_targets,
    random_view,
    reorder_queries,
    run_term,
    take_images,
    take_targets,
    with_gradient,
)
from qskd.losses import TERMS
from qskd.losses.presets import PRESETS, MethodSettings, build_terms
from qskd.losses.term import Lesson, Term
from qskd.models.adapter import Need
from qskd.models.view import DetrView

CASES = [
    (preset, name)
    for preset, settings in PRESETS.items()
    for name in build_terms(settings, student=facts_of(random_view()), teacher=facts_of(random_view()))
]
OTHER_SHAPE: dict[str, Any] = {
    "layers": 3,
    "queries": 17,
    "channels": (4, 9),
    "grids": ((4, 6), (2, 3)),
    "strides": (16, 32),
}

every_term = pytest.mark.parametrize(("preset", "name"), CASES, ids=["-".join(case) for case in CASES])
softmax_or_not = pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])


def built(preset: str, name: str, student: DetrView, teacher: DetrView) -> tuple[Term, MethodSettings]:
    torch.manual_seed(0)
    settings = PRESETS[preset]
    terms = build_terms(settings, student=facts_of(student), teacher=facts_of(teacher))
    return terms[name][0], settings


def loss_of(preset: str, name: str, student: DetrView, teacher: DetrView, targets: Any) -> Tensor:
    term, settings = built(preset, name, student, teacher)
    parts, _ = run_term(term, student, lesson_of(teacher, targets, settings.selection))
    return torch.stack(list(parts.values())).sum()


def pairs_by_number(preset: str, name: str) -> bool:
    """Whether the order of queries is all that pairs them."""
    return (preset, name) == ("index_aligned", "lapd")


def test_every_term_is_used_by_some_preset() -> None:
    assert {name for _, name in CASES} == set(TERMS)


@every_term
@softmax_or_not
def test_a_student_equal_to_its_teacher_costs_nothing(preset: str, name: str, softmax: bool) -> None:
    view = with_gradient(random_view(softmax=softmax))
    loss = loss_of(preset, name, view, random_view(softmax=softmax), random_targets())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    # Boxes have a corner there (|x| and GIoU), so only the smooth parts must be still.
    for tensor in (view.logits, *view.memory):
        assert tensor.grad is None or tensor.grad.abs().max() < 1e-6


@every_term
@softmax_or_not
def test_gradient_reaches_student_and_projections_but_never_the_teacher(preset: str, name: str, softmax: bool) -> None:
    student = with_gradient(random_view(1, softmax=softmax, **OTHER_SHAPE))
    teacher = with_gradient(random_view(2, softmax=softmax))
    term, settings = built(preset, name, student, teacher)
    parts, _ = run_term(term, student, lesson_of(teacher, random_targets(), settings.selection))
    torch.stack(list(parts.values())).sum().backward()
    assert all(tensor.grad is None for tensor in leaves(teacher))
    reached = [tensor for tensor in leaves(student) if tensor.grad is not None and tensor.grad.any()]
    wanted = 1 if Need.MEMORY in term.needs else 3 if softmax else 2  # the level in common, or the predictions
    assert len(reached) == wanted
    if isinstance(term, nn.Module):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in term.parameters())


@every_term
@softmax_or_not
def test_the_order_of_student_queries_does_not_matter(preset: str, name: str, softmax: bool) -> None:
    student, teacher = random_view(1, softmax=softmax), random_view(2, softmax=softmax)
    order = torch.randperm(student.num_queries, generator=torch.Generator().manual_seed(0))
    expected = loss_of(preset, name, student, teacher, random_targets())
    again = loss_of(preset, name, reorder_queries(student, order), teacher, random_targets())
    assert (again.item() == pytest.approx(expected.item(), rel=1e-5)) is not pairs_by_number(preset, name)
    assert expected > 0


@every_term
def test_the_order_of_teacher_queries_does_not_matter(preset: str, name: str) -> None:
    student, teacher = random_view(1), random_view(2)
    order = torch.randperm(teacher.num_queries, generator=torch.Generator().manual_seed(0))
    expected = loss_of(preset, name, student, teacher, random_targets())
    again = loss_of(preset, name, student, reorder_queries(teacher, order), random_targets())
    assert (again.item() == pytest.approx(expected.item(), rel=1e-5)) is not pairs_by_number(preset, name)


@every_term
def test_the_order_of_images_does_not_matter(preset: str, name: str) -> None:
    student, teacher = random_view(1, images=3), random_view(2, images=3)
    targets, order = random_targets((3, 0, 2)), [2, 0, 1]
    expected = loss_of(preset, name, student, teacher, targets)
    turned = (take_images(student, order), take_images(teacher, order), take_targets(targets, order))
    assert loss_of(preset, name, *turned).item() == pytest.approx(expected.item(), rel=1e-5)


@every_term
def test_what_is_in_the_padding_does_not_matter(preset: str, name: str) -> None:
    content = [(1.0, 0.5), (0.67, 1.0)]
    views = [random_view(seed, content=content) for seed in (1, 2)]
    expected = loss_of(preset, name, *views, random_targets())
    again = loss_of(preset, name, *[with_noise_in_padding(view) for view in views], random_targets())
    assert again.item() == pytest.approx(expected.item(), rel=1e-6)


def with_noise_in_padding(view: DetrView) -> DetrView:
    memory = tuple(
        torch.where(mask[:, None], 1e3, level) for level, mask in zip(view.memory, view.is_padding, strict=True)
    )
    tokens = torch.cat([mask.flatten(1) for mask in view.is_padding], dim=1)
    matrix = torch.where(tokens[:, None], 10.0, view.attention.matrix)  # type: ignore[union-attr]
    return replace(view, memory=memory, attention=AttentionMatrix(matrix))


@every_term
def test_images_without_objects_change_nothing(preset: str, name: str) -> None:
    if name == "feature":
        pytest.skip("compares all images, whatever is in them")
    student, teacher = random_view(1, images=3), random_view(2, images=3)
    with_empty = loss_of(preset, name, student, teacher, random_targets((3, 0, 2)))
    kept = [0, 2]
    without = loss_of(
        preset,
        name,
        take_images(student, kept),
        take_images(teacher, kept),
        take_targets(random_targets((3, 0, 2)), kept),
    )
    assert with_empty.item() == pytest.approx(without.item(), rel=1e-5)


@every_term
@softmax_or_not
def test_a_batch_without_any_object_costs_nothing_and_keeps_the_graph(preset: str, name: str, softmax: bool) -> None:
    student = with_gradient(random_view(1, softmax=softmax, channels=(4,)))
    teacher = random_view(2, softmax=softmax)
    term, settings = built(preset, name, student, teacher)
    parts, prepared = run_term(term, student, lesson_of(teacher, random_targets((0, 0)), settings.selection))
    loss = torch.stack(list(parts.values())).sum()
    loss.backward()
    if name != "feature":
        assert loss.item() == 0.0
        assert (prepared.amount == 0).all()
    assert loss.isfinite()
    assert any(tensor.grad is not None for tensor in leaves(student))
    if isinstance(term, nn.Module):
        assert all(parameter.grad is not None for parameter in term.parameters())


@every_term
@softmax_or_not
def test_bfloat16_under_autocast_is_finite_and_near(preset: str, name: str, softmax: bool) -> None:
    student, teacher = random_view(1, softmax=softmax, channels=(4,)), random_view(2, softmax=softmax)
    expected = loss_of(preset, name, student, teacher, random_targets())
    half = with_gradient(random_view(1, softmax=softmax, channels=(4,), dtype=torch.bfloat16))
    half = replace(half, boxes=student.boxes.clone().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(preset, name, half, teacher, random_targets())
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.2)
    assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in leaves(half))


@every_term
@pytest.mark.parametrize("turned", [False, True], ids=["student-bigger", "teacher-bigger"])
@pytest.mark.parametrize("mixed", [False, True], ids=["same-heads", "other-heads"])
def test_shapes_and_heads_may_differ(preset: str, name: str, turned: bool, mixed: bool) -> None:
    views = [random_view(1, **OTHER_SHAPE), random_view(2, softmax=mixed)]
    student, teacher = reversed(views) if turned else views
    loss = loss_of(preset, name, student, teacher, random_targets())
    assert loss.isfinite()
    assert loss > 0


@every_term
def test_grids_of_one_stride_may_differ(preset: str, name: str) -> None:
    student, teacher = random_view(1, grids=((3, 5),)), random_view(2, grids=((4, 4),))
    loss = loss_of(preset, name, student, teacher, random_targets())
    assert loss.isfinite()
    assert loss > 0


@every_term
def test_micro_batches_add_up_to_the_batch(preset: str, name: str) -> None:
    # One object an image and boxes alike: every pair of queries that is sought is found.
    teacher = random_view(2, images=4, queries=30)
    student = replace(random_view(1, images=4, queries=30), boxes=teacher.boxes)
    targets = random_targets((1, 0, 1, 1))
    term, settings = built(preset, name, student, teacher)
    whole, prepared = run_term(term, student, lesson_of(teacher, targets, settings.selection))
    summed = dict.fromkeys(whole, 0.0)
    amounts = []
    for images in ([0, 1], [2, 3]):
        lesson = lesson_of(take_images(teacher, images), take_targets(targets, images), settings.selection)
        parts, part = run_term(term, take_images(student, images), lesson, prepared.amount)
        amounts.append(part.amount)
        summed = {key: value + parts[key].item() for key, value in summed.items()}
    torch.testing.assert_close(torch.stack(amounts).sum(0), prepared.amount)
    assert summed == pytest.approx({key: value.item() for key, value in whole.items()}, rel=1e-5)
    assert summed != pytest.approx({key: value.item() * 2 for key, value in whole.items()})


@every_term
def test_a_larger_total_makes_the_loss_smaller_in_proportion(preset: str, name: str) -> None:
    student, teacher = random_view(1), random_view(2)
    term, settings = built(preset, name, student, teacher)
    lesson = lesson_of(teacher, random_targets(), settings.selection)
    alone, prepared = run_term(term, student, lesson)
    shared, _ = run_term(term, student, lesson, prepared.amount * 3)
    for key, value in alone.items():
        assert shared[key].item() == pytest.approx(value.item() / 3, rel=1e-5)


@every_term
def test_preparing_records_no_gradient_and_takes_all_the_attention_it_needs(preset: str, name: str) -> None:
    teacher = with_gradient(random_view(2))
    student = random_view(1)
    term, settings = built(preset, name, student, teacher)
    lesson: Lesson = lesson_of(teacher, random_targets(), settings.selection)
    if Need.ATTENTION not in term.needs:
        lesson = replace(lesson, view=teacher.without_attention())
    with torch.no_grad():
        prepared = term.prepare(lesson)
    assert not any(tensor.requires_grad for tensor in (*prepared.tensors.values(), prepared.amount))
    assert prepared.amount.dtype == torch.float32
    assert prepared.amount.dim() == 1
