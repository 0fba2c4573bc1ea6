"""A frozen model made faster without being changed: what its layers compute with fewer operations.

A batch norm that does not learn is a factor and a shift of each channel, so the convolution before it can do its work.
"""

import copy
import itertools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from qskd.data.batch import Batch
from qskd.models.adapter import DetrAdapter

_log = logging.getLogger(__name__)

_FROZEN_EPSILON = 1e-5  # written into Hugging Face's FrozenBatchNorm2d classes
_SAME_MEMORY, _SAME_ANSWER = 1e-3, 0.05  # mean differences above which it is another model that speaks; see below


def inference_engine(adapter: DetrAdapter, probe: Batch) -> DetrAdapter:
    """The same frozen detector, faster: norms folded into convolutions, which work on channels-last memory.

    Args:
        adapter: in evaluation mode; left as it is, since the answer holds a copy.
        probe: an image on the model's device (best a CPU, which does not shorten float32), on which both must say the
            same; where they do not (a backbone that calls its layers in another order than it lists them), the copy is
            not folded.
    """
    engine = adapter.rebind(copy.deepcopy(adapter.model))
    fold_norms(engine.model)
    merge_branches(engine.model)
    if not _same_answers(adapter, engine, probe):
        _log.warning("The teacher's norms could not be folded into its convolutions; it runs as it is, only slower.")
        engine = adapter.rebind(copy.deepcopy(adapter.model))
    return channels_last(engine)


def channels_last(adapter: DetrAdapter) -> DetrAdapter:
    """The same adapter, the weights of its convolutions in channels-last memory; what they compute follows."""
    for module in adapter.model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return adapter


def fold_norms(model: nn.Module) -> int:
    """Fold every batch norm that follows a convolution in its parent module into it; how many there were.

    Norms are taken to be frozen: ``nn.BatchNorm2d`` as in evaluation mode, Hugging Face's ``...FrozenBatchNorm2d``, and
    timm's ``BatchNormAct2d``, whose activation stays in its place.
    """
    count = 0
    for parent in list(model.modules()):
        children = list[tuple[str, Any]](parent.named_children())
        for (name, _), (norm_name, norm) in itertools.pairwise(children):
            owner, name, convolution = _last_layer(parent, name)
            if _is_plain(convolution, nn.Conv2d) and _is_norm_of(norm, convolution):
                setattr(owner, name, _folded(convolution, norm))
                setattr(parent, norm_name, norm.act if _is_timms(norm) else nn.Identity())
                count += 1
    return count


def _last_layer(parent: nn.Module, name: str) -> tuple[nn.Module, str, Any]:
    """A layer, or the last one of a sequence of layers (a stem of several convolutions), and what holds it."""
    layer = getattr(parent, name)
    while isinstance(layer, nn.Sequential) and len(layer):
        parent, name = layer, next(reversed(layer._modules))
        layer = layer[-1]
    return parent, name, layer


def merge_branches(model: nn.Module) -> int:
    """Make one convolution of the two that RepVGG blocks add up, once norms are folded; how many blocks there were."""
    count = 0
    for parent in list(model.modules()):
        for name, block in list[tuple[str, Any]](parent.named_children()):
            branches = _branches(block)
            if branches is not None:
                setattr(parent, name, nn.Sequential(_merged(*branches), block.activation))
                count += 1
    return count


def _is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether a layer computes what PyTorch's does, and is no subclass that does something else."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def _is_timms(norm: Any) -> bool:
    """Whether it is timm's norm with an activation inside, and without the dropout that may stand between them."""
    kind = type(norm)
    named = kind.__name__ == "BatchNormAct2d" and kind.__module__.partition(".")[0] == "timm"
    return named and isinstance(norm.drop, nn.Identity)


def _is_norm_of(norm: Any, convolution: Any) -> bool:
    if isinstance(norm, nn.BatchNorm2d):
        known = (_is_plain(norm, nn.BatchNorm2d) or _is_timms(norm)) and norm.track_running_stats
        return known and norm.num_features == convolution.out_channels
    frozen: Any = norm
    return type(norm).__name__.endswith("FrozenBatchNorm2d") and len(frozen.weight) == convolution.out_channels


@torch.no_grad()
def _folded(convolution: nn.Conv2d, norm: Any) -> nn.Conv2d:
    """A convolution that answers as both: computed in double precision, rounded once."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + getattr(norm, "eps", _FROZEN_EPSILON)).rsqrt()
    shift = -mean * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    if convolution.bias is not None:
        shift = shift + scale * convolution.bias.double()
    return _with_weights(convolution, convolution.weight.double() * scale[:, None, None, None], shift)


def _with_weights(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    changed = copy.deepcopy(convolution)
    like, trained = convolution.weight, convolution.weight.requires_grad
    changed.weight = nn.Parameter(weight.to(like.dtype), requires_grad=trained)
    changed.bias = nn.Parameter(bias.to(like.dtype), requires_grad=trained)
    return changed


def _branches(block: Any) -> tuple[nn.Conv2d, nn.Conv2d] | None:
    """The 3 x 3 and the 1 x 1 convolution of RT-DETR's ``RepVggBlock`` and its copies."""
    if not type(block).__name__.endswith("RepVggBlock"):
        return None
    large, small = getattr(block.conv1, "conv", None), getattr(block.conv2, "conv", None)
    if not isinstance(large, nn.Conv2d) or not isinstance(small, nn.Conv2d):
        return None
    alike = large.groups == small.groups and large.stride == small.stride == (1, 1)
    kernels = (large.kernel_size, large.padding, small.kernel_size, small.padding)
    folded = isinstance(block.conv1.norm, nn.Identity) and isinstance(block.conv2.norm, nn.Identity)
    plain = isinstance(block.conv1.activation, nn.Identity) and isinstance(block.conv2.activation, nn.Identity)
    fits = alike and folded and plain and kernels == ((3, 3), (1, 1), (1, 1), (0, 0))
    return (large, small) if fits else None


@torch.no_grad()
def _merged(large: nn.Conv2d, small: nn.Conv2d) -> nn.Conv2d:
    """One convolution for their sum: the 1 x 1 kernel is added in the middle of the 3 x 3 one."""
    assert large.bias is not None
    assert small.bias is not None
    weight = large.weight.double() + nn.functional.pad(small.weight.double(), (1, 1, 1, 1))
    return _with_weights(large, weight, large.bias.double() + small.bias.double())


@torch.no_grad()
def _same_answers(plain: DetrAdapter, folded: DetrAdapter, probe: Batch) -> bool:
    one, other = plain.read(probe).view, folded.read(probe).view
    # Two-stage models may choose another of two proposals of the same score, so the order of queries tells nothing.
    logits = one.logits.sort(2).values, other.logits.sort(2).values
    return _differ(*logits) < _SAME_ANSWER and all(
        _differ(*maps) < _SAME_MEMORY for maps in zip(one.memory, other.memory, strict=True)
    )


def _differ(one: Tensor, other: Tensor) -> float:
    """Mean difference, of the mean size."""
    return float((one - other).abs().mean() / one.abs().mean())
