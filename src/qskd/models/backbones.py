"""The backbones a derived student may have: ResNets and HGNetV2s by name, others from a folder or the hub."""

from typing import Any

from transformers import AutoConfig, HGNetV2Config, ResNetConfig, RTDetrResNetConfig

from qskd.errors import ConfigError
from qskd.models.families import FAMILIES
from qskd.models.timm_backbones import INSTALL, WRAPPER, timm_config, weightless

_RESNETS: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""Block and blocks per stage. Source: He et al. 2016, table 1; stem and strides are those of Hugging Face's
ResNet, or of RT-DETR's own variant, whose stem has three convolutions."""

_WIDTHS = {"basic": (64, 128, 256, 512), "bottleneck": (256, 512, 1024, 2048)}
_WIDTH_STEP = 8  # scaled channels are multiples of it
_WITH_OWN_RESNETS = frozenset({"d_fine", "deimv2", "rt_detr", "rt_detr_v2"})
_STAGES = ("stage1", "stage2", "stage3", "stage4")


_HGNETS: dict[str, tuple[tuple[int, int], tuple[tuple[int, int, int, int, int], ...], bool]] = {
    "hgnetv2_b0": (
        (16, 16),
        ((16, 16, 64, 1, 3), (64, 32, 256, 1, 3), (256, 64, 512, 2, 3), (512, 128, 1024, 1, 3)),
        True,
    ),
    "hgnetv2_b1": (
        (24, 32),
        ((32, 32, 64, 1, 3), (64, 48, 256, 1, 3), (256, 96, 512, 2, 3), (512, 192, 1024, 1, 3)),
        True,
    ),
    "hgnetv2_b2": (
        (24, 32),
        ((32, 32, 96, 1, 4), (96, 64, 384, 1, 4), (384, 128, 768, 3, 4), (768, 256, 1536, 1, 4)),
        True,
    ),
    "hgnetv2_b4": (
        (32, 48),
        ((48, 48, 128, 1, 6), (128, 96, 512, 1, 6), (512, 192, 1024, 3, 6), (1024, 384, 2048, 1, 6)),
        False,
    ),
    "hgnetv2_b5": (
        (32, 64),
        ((64, 64, 128, 1, 6), (128, 128, 512, 2, 6), (512, 256, 1024, 5, 6), (1024, 512, 2048, 2, 6)),
        False,
    ),
}
"""Stem channels; channels in, inside and out, blocks and layers a block of every stage; affine blocks or not.
Source: PP-HGNetV2 in PaddleClas, as D-FINE uses it; D-FINE's N and S have B0, M has B2, L has B4, X has B5."""

_NAMES = (*_RESNETS, *_HGNETS)


def is_named(backbone: str) -> bool:
    """Whether the name stands for an architecture that needs no file."""
    return backbone in _NAMES


def backbone_config(backbone: str, family: str, levels: int | None) -> Any:
    """The configuration of a backbone that gives a detector its last feature maps.

    Args:
        backbone: a known name; or a folder or a hub id of a backbone, of a timm classifier, or of a detector, whose
            backbone is meant.
        family: the detector's; RT-DETR and its successors have their own ResNets.
        levels: how many maps the detector takes from it, the coarsest last; None takes those it gives.

    Raises:
        ConfigError: the name is unknown and neither a folder nor a hub id with a configuration.
    """
    if backbone in _RESNETS:
        return _resnet(backbone, family, levels)
    if backbone in _HGNETS:
        return _hgnet(backbone, levels)
    try:
        config = AutoConfig.from_pretrained(backbone)
    except ImportError as error:
        raise ConfigError(
            f"The backbone '{backbone}' cannot be read: {str(error).strip().splitlines()[0]} {INSTALL}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"No backbone '{backbone}'. Give one of {', '.join(_NAMES)}, or a folder or hub id of a Hugging Face "
            f"or timm backbone, such as timm/resnet18.a1_in1k ({str(error).strip().splitlines()[0]})"
        ) from error
    if config.model_type == WRAPPER:
        return timm_config(str(config.architecture), levels)
    if config.model_type in FAMILIES:
        config = config.backbone_config
    if config.model_type == "timm_backbone":
        return timm_config(str(config.backbone), levels)
    names = getattr(config, "stage_names", None)
    if not names:
        raise ConfigError(f"'{backbone}' is a {config.model_type}, which gives no feature maps by stage.")
    if levels is None:
        return config
    config.set_output_features_output_indices(out_features=list(names[-levels:]), out_indices=None)
    return config


def smaller_backbones(config: Any) -> list[str]:
    """Names of backbones of the same kind with fewer weights, from large to small; none for other kinds.

    Args:
        config: a detector's.
    """
    current = config.backbone_config
    names = _HGNETS if current.model_type == "hgnet_v2" else _RESNETS if "resnet" in current.model_type else ()
    limit = _weights_in(current)
    sizes = {name: _weights_in(backbone_config(name, config.model_type, len(current.out_features))) for name in names}
    return sorted((name for name, size in sizes.items() if size < limit), key=lambda name: -sizes[name])


def _weights_in(config: Any) -> int:
    return sum(parameter.numel() for parameter in weightless(config).parameters())


def _resnet(name: str, family: str, levels: int | None) -> Any:
    block, depths = _RESNETS[name]
    kind = RTDetrResNetConfig if family in _WITH_OWN_RESNETS else ResNetConfig
    return kind(
        layer_type=block,
        depths=list(depths),
        hidden_sizes=list(_WIDTHS[block]),
        out_features=_last(levels),
    )


def _hgnet(name: str, levels: int | None) -> Any:
    stem, stages, affine = _HGNETS[name]
    inputs, inner, outputs, blocks, layers = (list(values) for values in zip(*stages, strict=True))
    return HGNetV2Config(
        stem_channels=[3, *stem],
        stage_in_channels=inputs,
        stage_mid_channels=inner,
        stage_out_channels=outputs,
        hidden_sizes=outputs,
        stage_num_blocks=blocks,
        stage_numb_of_layers=layers,
        use_learnable_affine_block=affine,
        out_features=_last(levels),
    )


def _last(levels: int | None) -> list[str]:
    return list(_STAGES[-levels:] if levels else _STAGES)


def scaled(config: Any, width: float) -> Any:
    """A configuration with its channels times ``width``, rounded to multiples of 8.

    Raises:
        ConfigError: the width is not positive, or the backbone is neither a Hugging Face ResNet nor an HGNetV2.
    """
    if width <= 0:
        raise ConfigError(f"backbone_width is {width}, expected a positive factor such as 0.5.")
    if config.model_type not in _SCALED_FIELDS:
        raise ConfigError(
            f"backbone_width scales ResNets and HGNetV2s, not a {config.model_type}. Leave it out, and take fewer "
            "layers or queries, or another checkpoint as the student."
        )
    narrow = type(config).from_dict(config.to_dict())
    narrow.embedding_size = _scaled_channels(config.embedding_size, width)
    for field in _SCALED_FIELDS[config.model_type]:
        setattr(narrow, field, [_scaled_channels(channels, width) for channels in getattr(config, field)])
    if hasattr(config, "stem_channels"):
        narrow.stem_channels[0] = config.stem_channels[0]  # those of the image
    return narrow


_SCALED_FIELDS: dict[str, tuple[str, ...]] = {
    "resnet": ("hidden_sizes",),
    "rt_detr_resnet": ("hidden_sizes",),
    "hgnet_v2": ("hidden_sizes", "stem_channels", "stage_in_channels", "stage_mid_channels", "stage_out_channels"),
}


def _scaled_channels(channels: int, width: float) -> int:
    return max(round(channels * width / _WIDTH_STEP) * _WIDTH_STEP, _WIDTH_STEP)


def channels_of(config: Any) -> list[int]:
    """Channels of the maps a backbone gives, fine to coarse."""
    return list(weightless(config).channels)


def same_architecture(first: Any, second: Any) -> bool:
    """Whether the weights of one backbone, given by its configuration, fit the other: names and shapes."""
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in weightless(config).state_dict().items()}
        for config in (first, second)
    ]
    return shapes[0] == shapes[1]
