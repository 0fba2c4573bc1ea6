"""Backbones of the timm library: their configurations, their pretrained weights, and what transformers does to them."""

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoBackbone, TimmBackboneConfig
from transformers.utils import cached_file, is_timm_available

from qskd.errors import ConfigError
from qskd.models.adapter import PixelNorm

WRAPPER = "timm_wrapper"  # what transformers calls the configuration of a timm classifier
WRAPPED = "_backbone."  # what it puts before the names of a backbone's weights
_STRIDE = 32  # of the last map, in pixels


def timm_config(classifier: Any, levels: int | None) -> Any:
    """The configuration of a timm backbone that gives a detector its last feature maps.

    Args:
        classifier: the configuration of the timm model, as ``AutoConfig`` reads it from a hub id or folder.
        levels: how many maps, the coarsest last; None takes one.

    Raises:
        ConfigError: timm is not installed, does not know the architecture, or this one gives no maps of the
            strides that detectors take, each twice the one before and the last 32.
    """
    name = str(classifier.architecture)
    if not is_timm_available():
        raise ConfigError(f"The backbone '{name}' is one of timm's: `pip install timm` (or qskd's extra `timm`).")
    config = TimmBackboneConfig(backbone=name, out_indices=list(range(-(levels or 1), 0)))
    try:
        strides = _weightless(config)._backbone.feature_info.reduction()
    except (RuntimeError, ValueError, IndexError, AssertionError, AttributeError) as error:
        raise ConfigError(f"timm's '{name}' gives no feature maps by stage: {error}") from error
    wanted = [_STRIDE >> step for step in reversed(range(len(strides)))]
    if strides != wanted:
        raise ConfigError(f"The maps of timm's '{name}' have strides {strides}, expected {wanted}. Take another one.")
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
    norms = (module for module in _weightless(backbone).modules() if isinstance(module, nn.BatchNorm2d))
    return any(not isinstance(getattr(norm, "act", nn.Identity()), nn.Identity) for norm in norms)


def keep_activations(config: Any) -> bool:
    """Ask transformers to leave the norms of such a backbone as they are; whether anything had to be changed.

    Raises:
        ConfigError: the family has no such setting.
    """
    if not drops_activations(config):
        return False
    if not hasattr(config, "freeze_backbone_batch_norms"):
        raise ConfigError(
            f"transformers freezes the batch norms of every {config.model_type}, and the activations inside those of "
            f"timm's '{config.backbone_config.backbone}' would be lost. Take a backbone without them (a ResNet, a "
            "ConvNeXt, ...), or a family of RT-DETR's kind."
        )
    config.freeze_backbone_batch_norms = False
    return True


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
        ValueError: the detector's backbone is none of timm's.
        RuntimeError: the weights are of another architecture.
    """
    if config.model_type != "timm_backbone":
        raise ValueError(f"it is one of timm's, the detector's backbone is a {config.model_type} of transformers.")
    import timm

    path = cached_file(source, "model.safetensors")
    assert path is not None
    overlay = {"state_dict": load_file(path), "num_classes": classifier.num_labels}
    backbone = timm.create_model(
        str(classifier.architecture),
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        features_only=True,
        out_indices=tuple(config.out_indices),
    )
    cfg = getattr(classifier, "pretrained_cfg", None) or {}
    pixels = PixelNorm(tuple(cfg["mean"]), tuple(cfg["std"])) if {"mean", "std"} <= cfg.keys() else None
    return dict(backbone.state_dict()), pixels


def _weightless(config: Any) -> Any:
    with torch.device("meta"):
        return AutoBackbone.from_config(config)
