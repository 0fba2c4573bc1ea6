import math

import pytest
import torch
from torch import Tensor

from qskd.losses.class_divergence import class_divergence, pairwise_cross_entropy, say_for_head

ALL = torch.tensor([True, True, True, True])
SOME = torch.tensor([True, False, True, True])


def random_logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def no_object_of(logits: Tensor, softmax: bool) -> Tensor | None:
    return logits.roll(1, 0)[..., 0] if softmax else None


def target_of(logits: Tensor, no_object: Tensor | None, known: Tensor, softmax: bool) -> Tensor:
    """Straight from the definition, with probabilities."""
    if no_object is None:
        p = logits.sigmoid() * known
        if not softmax:
            return p
        greatest = p.max(-1, keepdim=True).values
        return torch.cat([greatest * p / p.sum(-1, keepdim=True), 1 - greatest], dim=-1)
    powers = torch.cat([logits.exp() * known, no_object.exp()[..., None]], dim=-1)
    q = powers / powers.sum(-1, keepdim=True)
    return q if softmax else q[..., :-1]


def divergence_of(student: Tensor, no_object: Tensor | None, target: Tensor, known: Tensor) -> Tensor:
    if no_object is not None:
        p = target_of(student, no_object, known, True)
        kept = torch.cat([known, torch.tensor([True])])
        target, p = target[..., kept], p[..., kept]
        return (target * (target / p).log()).sum(-1)
    target, p = target[..., known], student[..., known].sigmoid()
    return (target * (target / p).log() + (1 - target) * ((1 - target) / (1 - p)).log()).sum(-1)


@pytest.mark.parametrize("known", [ALL, SOME], ids=["all-known", "some-known"])
@pytest.mark.parametrize("student_softmax", [False, True], ids=["to-sigmoid", "to-softmax"])
@pytest.mark.parametrize("teacher_softmax", [False, True], ids=["from-sigmoid", "from-softmax"])
def test_divergence_equals_its_definition_in_value_and_gradient(
    teacher_softmax: bool, student_softmax: bool, known: Tensor
) -> None:
    student, teacher = random_logits(0, 20).requires_grad_(), random_logits(1, 20)
    ours, theirs = no_object_of(student, student_softmax), no_object_of(teacher, teacher_softmax)
    divergence = class_divergence(
        say_for_head(student, ours, known, softmax=student_softmax),
        say_for_head(teacher, theirs, known, softmax=student_softmax),
        softmax=student_softmax,
    )
    expected = divergence_of(student, ours, target_of(teacher, theirs, known, student_softmax), known)
    torch.testing.assert_close(divergence, expected, rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    (wanted,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-9)


def test_bernoulli_divergence_by_hand() -> None:
    # p = 3/4, s = 1/2, one class: 3/4 log(3/2) + 1/4 log(1/2).
    divergence = class_divergence(torch.zeros(1, 1), torch.full((1, 1), math.log(3)), softmax=False)
    assert divergence.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


def test_softmax_divergence_by_hand() -> None:
    # t = (3/4, 1/4), s = (1/2, 1/2), the same number for two outcomes that exclude each other.
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    divergence = class_divergence(student, teacher, softmax=True)
    assert divergence.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


def test_a_sigmoid_teacher_shares_its_greatest_probability_by_hand() -> None:
    # p = (3/4, 1/4): f = 3/4 is shared 3 : 1, no-object gets 1/4.
    logits = torch.tensor([math.log(3), -math.log(3)])
    said = say_for_head(logits, None, torch.tensor([True, True]), softmax=True)
    assert said.exp().tolist() == pytest.approx([9 / 16, 3 / 16, 1 / 4], abs=1e-6)


def test_a_softmax_teacher_keeps_its_class_probabilities_by_hand() -> None:
    # Powers 1, 2 and no-object 1: probabilities 1/4 and 1/2.
    logits, nothing = torch.tensor([0.0, math.log(2)]), torch.tensor(0.0)
    said = say_for_head(logits, nothing, torch.tensor([True, True]), softmax=False)
    assert said.sigmoid().tolist() == pytest.approx([0.25, 0.5], abs=1e-6)


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equal_predictions_diverge_by_exactly_nothing(softmax: bool, temperature: float) -> None:
    logits = random_logits(0, 50).float() * 10
    divergence = class_divergence(logits, logits.clone(), softmax=softmax, temperature=temperature)
    assert (divergence == 0).all()


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
def test_temperature_softens_both_sides_and_is_squared(softmax: bool) -> None:
    student, teacher = random_logits(0, 5), random_logits(1, 5)
    warm = class_divergence(student, teacher, softmax=softmax, temperature=2.0)
    torch.testing.assert_close(warm, 4 * class_divergence(student / 2, teacher / 2, softmax=softmax))


@pytest.mark.parametrize("student_softmax", [False, True], ids=["to-sigmoid", "to-softmax"])
@pytest.mark.parametrize("teacher_softmax", [False, True], ids=["from-sigmoid", "from-softmax"])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_stay_finite(teacher_softmax: bool, student_softmax: bool, size: float) -> None:
    student = (random_logits(0, 20).sign().float() * size).requires_grad_()
    teacher = random_logits(1, 20).sign().float() * size
    divergence = class_divergence(
        say_for_head(student, no_object_of(student, student_softmax), ALL, softmax=student_softmax),
        say_for_head(teacher, no_object_of(teacher, teacher_softmax), ALL, softmax=student_softmax),
        softmax=student_softmax,
    )
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("missing", [float("-inf"), float("nan"), -100.0])
@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
def test_whatever_stands_for_an_unknown_class_is_ignored(softmax: bool, missing: float) -> None:
    student, teacher = random_logits(0, 5).float().requires_grad_(), random_logits(1, 5).float()
    teacher[:, 1] = missing
    divergence = class_divergence(
        say_for_head(student, no_object_of(student, softmax), SOME, softmax=softmax),
        say_for_head(teacher, no_object_of(teacher, softmax), SOME, softmax=softmax),
        softmax=softmax,
    )
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    assert divergence.isfinite().all()
    assert (gradient[:, 1] == 0).all()
    assert gradient[:, 2].abs().sum() > 0


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
def test_cross_entropy_of_all_pairs_is_divergence_and_entropy(softmax: bool) -> None:
    student, teacher = random_logits(0, 7), random_logits(1, 5)
    pairs = pairwise_cross_entropy(student, teacher, softmax=softmax)
    p = teacher.softmax(-1) if softmax else teacher.sigmoid()
    entropy = torch.special.entr(p).sum(-1) + (0 if softmax else torch.special.entr(1 - p).sum(-1))
    kl = class_divergence(student[None].expand(5, -1, -1), teacher[:, None].expand(-1, 7, -1), softmax=softmax)
    torch.testing.assert_close(pairs, kl + entropy[:, None])


def test_autocast_does_not_coarsen_the_costs() -> None:
    student, teacher = random_logits(0, 7).float(), random_logits(1, 5).float()
    expected = pairwise_cross_entropy(student, teacher, softmax=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pairwise_cross_entropy(student, teacher, softmax=False), expected)
