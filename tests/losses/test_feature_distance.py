"""The weighted distance against layer norm and autograd, however it is cut into blocks."""

import pytest
import torch
from torch.nn.functional import layer_norm

from qskd.losses import blocks
from qskd.losses.feature_distance import weighted_distance


def maps(dtype=torch.float64, images=3, channels=7, tokens=29):
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(images, channels, tokens, generator=random, dtype=dtype) for _ in range(2))
    weights = torch.rand(images, tokens, generator=random, dtype=dtype)
    weights[0, :5] = 0.0
    return (3.0 * student + 5.0).requires_grad_(), teacher - 2.0, weights


def obvious(student, teacher, weights, normalise):
    ours, theirs = student.transpose(1, 2), teacher.transpose(1, 2)
    if normalise:
        ours, theirs = (layer_norm(side, side.shape[-1:]) for side in (ours, theirs))
    return (weights * (ours - theirs).square().sum(-1)).sum()


@pytest.mark.parametrize("block_bytes", [1, 400, 2**18], ids=["token-by-token", "some", "whole"])
@pytest.mark.parametrize("normalise", [False, True], ids=["raw", "normalised"])
def test_value_and_gradient_are_those_of_layer_norm(monkeypatch, normalise, block_bytes):
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", block_bytes)
    student, teacher, weights = maps()
    found, wanted = weighted_distance(student, teacher, weights, normalise=normalise), obvious(*maps(), normalise)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    theirs = maps()[0]
    (mine,) = torch.autograd.grad(2.5 * found, student)
    (other,) = torch.autograd.grad(2.5 * obvious(theirs, teacher, weights, normalise), theirs)
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("normalise", [False, True], ids=["raw", "normalised"])
def test_other_memory_layouts_give_the_same(normalise):
    """As from a channels-last network on one side."""
    student, teacher, weights = maps()
    turned = student.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    one, other = (weighted_distance(side, teacher, weights, normalise=normalise) for side in (student, turned))
    assert one.item() == pytest.approx(other.item(), rel=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(v, s)[0] for v, s in ((one, student), (other, turned))))


def test_features_far_from_zero_lose_no_digits_in_float32():
    """Sums of squares would: the mean is a thousand deviations."""
    student, teacher, weights = maps()
    student, teacher = student.detach() + 3e3, teacher + 1e3
    found = []
    for dtype in (torch.float64, torch.float32):
        ours = student.to(dtype).requires_grad_()
        loss = weighted_distance(ours, teacher.to(dtype), weights.to(dtype), normalise=True)
        found.append((loss.double(), torch.autograd.grad(loss, ours)[0].double()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_equal_features_have_no_distance_and_no_gradient():
    student, _, weights = maps()
    loss = weighted_distance(student, student.detach().clone(), weights, normalise=True)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-12


def test_a_token_whose_channels_are_all_equal_is_finite():
    student, teacher, weights = maps()
    flat = torch.ones_like(student).requires_grad_()
    loss = weighted_distance(flat, teacher, weights, normalise=True)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, flat)[0]).all()
