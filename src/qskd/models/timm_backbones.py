"""Backbones of the timm library: their configurations, their pretrained weights, and what transformers does to them."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoBackbone, TimmBackboneConfig
from transformers.utils import cached_file, is_timm_available

from qskd.errors import ConfigError
from qskd.models.adapter import PixelNorm
from qskd.models.processors import checked_norm

WRAPPER = "timm_wrapper"  # what transformers calls the configuration of a timm classifier
WRAPPED = "_backbone."  # what it puts before the names of a backbone's weights
INSTALL = "`pip install timm`."
_STRIDE = 32  # of the last map, in pixels
_PROBES = (64, 96)  # heights of images that a backbone must take


def timm_config(name: str, levels: int | None) -> Any:
    """The configuration of a timm backbone that gives a detector its last feature maps.

    Args:
        name: of the architecture.
        levels: how many maps, the coarsest last; None takes one.

    Raises:
        ConfigError: timm is not installed, does not know the architecture, or this one gives no maps that a
            detector can take: of images of any size, channels first, each twice as coarse as the one before and the
            last of stride 32.
    """
    if not is_timm_available():
        raise ConfigError(f"The backbone '{name}' is one of timm's. {INSTALL}")
    config = TimmBackboneConfig(backbone=name, out_indices=list(range(-(levels or 1), 0)))
    try:
        backbone = weightless(config).eval()
        maps = [backbone(torch.empty(1, 3, side, 2 * side, device="meta")).feature_maps for side in _PROBES]
    except (RuntimeError, ValueError, IndexError, AssertionError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"timm's '{name}' gives no feature maps of images of any size: {_first_line(error)}"
        ) from error
    strides = [_STRIDE >> step for step in reversed(range(levels or 1))]
    for side, found in zip(_PROBES, maps, strict=True):
        shapes = [tuple(one.shape[1:]) for one in found]
        wanted = [
            (channels, side // stride, 2 * side // stride)
            for channels, stride in zip(backbone.channels, strides, strict=True)
        ]
        if shapes != wanted:
            raise ConfigError(
                f"The maps of timm's '{name}' are {shapes} for an image of {side} x {2 * side}, expected {wanted} "
                "(channels, height, width). Take another one."
            )
    return config


def drops_activations(config: Any) -> bool:
    """Whether transformers would lose a backbone's activations where it freezes the norms.

    Its detectors put layers of their own in the place of every ``BatchNorm2d``; timm's ``BatchNormAct2d`` is one that
    ends in an activation.

    Args:
        config: a detector's.
    """
    backbone = getattr(config, "backbone_config", None)
    if getattr(backbone, "model_type", None) != "timm_backbone" or not is_timm_available():
        return False
    norms = (module for module in weightless(backbone).modules() if isinstance(module, nn.BatchNorm2d))
    return any(not isinstance(getattr(norm, "act", nn.Identity()), nn.Identity) for norm in norms)


def keep_activations(config: Any) -> None:
    """Ask transformers to leave the norms of such a backbone as they are; for other backbones nothing is changed.

    Args:
        config: a detector's, changed in place.

    Raises:
        ConfigError: the family has no such setting.
    """
    if not drops_activations(config):
        return
    if not hasattr(config, "freeze_backbone_batch_norms"):
        raise ConfigError(
            f"transformers freezes the batch norms of every {config.model_type}, and the activations inside those of "
            f"timm's '{config.backbone_config.backbone}' would be lost. Take a backbone without them (a ResNet, a "
            "ConvNeXt, ...), or a family of RT-DETR's kind."
        )
    config.freeze_backbone_batch_norms = False


def pretrained_state(source: str, classifier: Any, config: Any) -> tuple[dict[str, Tensor], PixelNorm | None]:
    """The weights of a pretrained timm classifier's backbone, under timm's names.

    Args:
        source: hub id or folder with a ``model.safetensors``; pickled weights are not read.
        classifier: its configuration.
        config: that of the detector's backbone.

    Returns:
        The weights, and the normalisation of the pixels that they were trained with, where the classifier says it.

    Raises:
        OSError: there is no such file.
        SafetensorError: the file is damaged.
        ValueError: the detector's backbone is none of timm's or another one, or weights are absent or not finite.
    """
    if config.model_type != "timm_backbone":
        raise ValueError(f"it is one of timm's, the detector's backbone is a {config.model_type} of transformers.")
    path = cached_file(source, "model.safetensors")
    assert path is not None
    # The wrapper that gives feature maps calls layers of layers by one name: stages_0 for stages.0.
    given = {name.replace(".", "_"): tensor for name, tensor in load_file(path).items()}
    state: dict[str, Tensor] = {}
    for name, like in weightless(config)._backbone.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        tensor = given.get(name.removeprefix("model.").replace(".", "_"))
        if tensor is None or tensor.shape != like.shape:
            found = "is absent" if tensor is None else f"has the shape {tuple(tensor.shape)}, not {tuple(like.shape)}"
            raise ValueError(f"the weight {name} of a {config.backbone} {found} there ({classifier.architecture}).")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the weight {name} is not finite.")
        state[name] = tensor.float()
    return state, _pixels(getattr(classifier, "pretrained_cfg", None) or {})


def _pixels(settings: Mapping[str, Any]) -> PixelNorm | None:
    mean, std = settings.get("mean"), settings.get("std")
    if mean is None or std is None:
        return None
    return checked_norm("its pretrained_cfg", list(mean), list(std), names=("mean", "std"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def weightless(config: Any) -> Any:
    """A backbone that holds no numbers, from its configuration: names, shapes and channels."""
    with torch.device("meta"):
        return AutoBackbone.from_config(config)
