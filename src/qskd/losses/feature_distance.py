"""The weighted squared distance of two feature maps, in one pass over each."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qskd.losses.blocks import blocks

_EPSILON = 1e-5  # below the variance, as in layer norm


def weighted_distance(student: Tensor, teacher: Tensor, weights: Tensor, *, normalise: bool) -> Tensor:
    """The sum over images and tokens of w ||s - t||^2, a scalar.

    Args:
        student: [B, D, S], which alone receives gradient.
        teacher: [B, D, S].
        weights: [B, S].
        normalise: compare each token's channels with their mean 0 and their variance 1, as layer norm makes them.

    The gradient of a normalised distance is linear in both maps, token by token, so means and deviations are all that
    is kept for it. On a CPU both directions work on blocks of tokens that stay in the cache.
    """
    distance: Tensor = _WeightedDistance.apply(student, teacher.detach(), weights.detach(), normalise)
    return distance


class _WeightedDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weights: Tensor, normalise: bool) -> Tensor:
        distance = torch.empty_like(weights)
        # The gradient is own (s - mean) + other (t - their_mean), token by token.
        own, other, mean, their_mean = (torch.empty_like(weights) for _ in range(4))
        compare = _normalised if normalise else _plain
        for image, tokens in _blocks(student):
            found = compare(student[image, :, tokens], teacher[image, :, tokens])
            for kept, value in zip((distance, own, other, mean, their_mean), found, strict=True):
                kept[image, tokens] = value
        ctx.save_for_backward(student, teacher, own * weights, other * weights, mean, their_mean)
        return (weights * distance).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, own, other, mean, their_mean = ctx.saved_tensors
        own, other = 2.0 * upstream * own, 2.0 * upstream * other
        gradient = torch.empty_like(student)
        for image, tokens in _blocks(student):
            ours, theirs, of_ours, of_theirs = (
                one[image, tokens].unsqueeze(-2) for one in (mean, their_mean, own, other)
            )
            out = gradient[image, :, tokens]
            torch.sub(student[image, :, tokens], ours, out=out)
            out.mul_(of_ours).addcmul_(teacher[image, :, tokens] - theirs, of_theirs)
        return gradient, None, None, None


def _blocks(maps: Tensor) -> Iterator[tuple[Any, slice]]:
    """Index of images and slice of tokens, block by block; all at once on an accelerator."""
    images = range(maps.shape[0]) if maps.device.type == "cpu" else [slice(None)]
    for image in images:
        for tokens in blocks(maps.shape[2], maps.shape[1] * maps.element_size(), maps.device):
            yield image, tokens


def _plain(student: Tensor, teacher: Tensor) -> tuple[Tensor | float, ...]:
    """Of [..., D, S]: the squared distance [..., S], the two factors of half its gradient, and the means there."""
    return (student - teacher).square_().sum(-2), 1.0, -1.0, 0.0, 0.0


def _normalised(student: Tensor, teacher: Tensor) -> tuple[Tensor | float, ...]:
    """As ``_plain`` of the normalised channels.

    With s' = (s - m) r and t' = (t - n) q, half the gradient is r (s' - t' - k s'), k = mean(s' (s' - t')): s' - t' has
    mean 0 already.
    """
    ours, mean, scale = _standardised(student)
    theirs, their_mean, their_scale = _standardised(teacher)
    difference = theirs.sub_(ours).neg_()
    kept = 1.0 - ours.mul_(difference).mean(-2)
    return difference.square_().sum(-2), scale.square() * kept, -scale * their_scale, mean, their_mean


def _standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[..., D, S] with mean 0 and variance 1 over D, the mean [..., S] and what it was multiplied by [..., S]."""
    mean = features.mean(-2, keepdim=True)
    centred = features - mean
    scale = centred.square().mean(-2, keepdim=True).add_(_EPSILON).rsqrt_()
    return centred.mul_(scale), mean.squeeze(-2), scale.squeeze(-2)
