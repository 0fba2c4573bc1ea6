"""How far a student's class predictions are from a teacher's, for sigmoid and softmax heads alike.

The teacher's logits are first said in the words of the student's head (``say_for_head``); from then on both
heads are the same kind. Writing A for a head's log-partition (sum of softplus for a sigmoid head, log-sum-exp
for a softmax head) and p for its probabilities, the Kullback-Leibler divergence of student logits s from
teacher logits t is the Bregman divergence of A,

    KL(t || s) = A(s) - A(t) - p(t) . (s - t),

which needs no logarithm of a probability and is exactly 0 when both agree. Soft cross-entropy is the same
without the teacher's entropy.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qskd.boxes import at_least_float32
from qskd.losses.blocks import blocks

_OUT = -1e4  # logit of a class left out: its probability is 0 in any floating type, and nothing is infinite
_CERTAIN = -1e-7  # log-probabilities nearer 0 than this are one in float32


def say_for_head(logits: Tensor, no_object: Tensor | None, known_classes: Tensor, *, softmax: bool) -> Tensor:
    """Logits of any head as logits of a softmax or of a sigmoid head, without classes left out.

    - sigmoid to sigmoid, softmax to softmax: unchanged.
    - softmax to sigmoid: log-odds of each class's probability; the mass of no-object disappears.
    - sigmoid to softmax: with f the greatest class probability, the classes share f in proportion to their
      probabilities and no-object gets 1 - f.

    Args:
        logits: [..., C].
        no_object: [...] for a softmax head, None for a sigmoid head.
        known_classes: [C] bool; False leaves a class out.
        softmax: the kind of head to speak for.

    Returns:
        [..., C] for a sigmoid head, [..., C + 1] with no-object last for a softmax head; at least float32. A
        class left out has probability 0 and gets no gradient.
    """
    logits = at_least_float32(logits).masked_fill(~known_classes, _OUT)
    if no_object is None:
        return _sigmoid_as_softmax(logits) if softmax else logits
    whole = torch.cat([logits, at_least_float32(no_object)[..., None]], dim=-1)
    return whole if softmax else _softmax_as_sigmoid(whole).masked_fill(~known_classes, _OUT)


def class_divergence(student: Tensor, teacher: Tensor, *, softmax: bool, temperature: float = 1.0) -> Tensor:
    """KL divergence of the student's class distribution from the teacher's.

    Args:
        student: [..., K] logits from ``say_for_head``; gradient flows.
        teacher: [..., K] logits from ``say_for_head`` with the same ``softmax``.
        softmax: one distribution over K outcomes; otherwise K Bernoulli distributions, summed.
        temperature: divides both logits; the result is multiplied by its square (Hinton et al. 2015).

    Returns:
        [...] at least 0 up to rounding, 0 for equal logits.
    """
    if temperature != 1.0:
        student, teacher = student / temperature, teacher / temperature
    teacher = teacher.detach()
    if softmax:
        target = teacher.softmax(-1)
        excess = student.logsumexp(-1) - teacher.logsumexp(-1) - (target * (student - teacher)).sum(-1)
    else:
        excess = _BernoulliDivergence.apply(student, teacher)
    return excess * temperature**2


def pairwise_cross_entropy(student: Tensor, teacher: Tensor, *, softmax: bool) -> Tensor:
    """Soft cross-entropy of every teacher query with every student query, as one matrix product.

    Args:
        student: [..., Q, K] logits from ``say_for_head``.
        teacher: [..., T, K] logits from ``say_for_head`` with the same ``softmax``.
        softmax: as in ``class_divergence``.

    Returns:
        [..., T, Q] at least 0: the sum over classes of binary cross-entropies, or the cross-entropy.
    """
    with torch.autocast(student.device.type, enabled=False):
        if softmax:
            return student.logsumexp(-1)[..., None, :] - teacher.softmax(-1) @ student.transpose(-1, -2)
        return _softplus(student).sum(-1)[..., None, :] - teacher.sigmoid() @ student.transpose(-1, -2)


class _BernoulliDivergence(torch.autograd.Function):
    """Sum over the last axis of KL between Bernoulli distributions; its gradient is sigmoid(s) - sigmoid(t).

    Written out because the gradient is simpler than what autograd would derive, and needs one tensor only.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        difference = torch.empty_like(student, memory_format=torch.contiguous_format)
        excess = student.new_empty(student.shape[:-1])
        rows = (student.flatten(0, -2), teacher.flatten(0, -2), difference.flatten(0, -2), excess.flatten())
        for block in blocks(len(rows[0]), student.shape[-1] * student.element_size(), student.device):
            ours, theirs = rows[0][block], rows[1][block]
            target = theirs.sigmoid()
            torch.sub(ours.sigmoid(), target, out=rows[2][block])
            gap = _softplus(ours).sub_(_softplus(theirs)).sub_(target.mul_(ours - theirs))
            torch.sum(gap, -1, out=rows[3][block])
        ctx.save_for_backward(difference)
        return excess

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return grad[..., None] * difference, None


def _softplus(logits: Tensor) -> Tensor:
    """log(1 + exp(x)) to 1e-7 absolute; PyTorch's own is to 1e-7 relative and ten times slower on a CPU."""
    return logits.abs().neg_().exp_().add_(1).log_().add_(logits.clamp(min=0))


def _softmax_as_sigmoid(whole: Tensor) -> Tensor:
    log_probability = whole.log_softmax(-1)[..., :-1].clamp(max=_CERTAIN)
    return log_probability - (-torch.expm1(log_probability)).log()


def _sigmoid_as_softmax(logits: Tensor) -> Tensor:
    log_probability = torch.nn.functional.logsigmoid(logits)
    greatest = logits.max(-1, keepdim=True).values
    log_share = log_probability - log_probability.logsumexp(-1, keepdim=True)
    classes = torch.nn.functional.logsigmoid(greatest) + log_share
    return torch.cat([classes, torch.nn.functional.logsigmoid(-greatest)], dim=-1)
