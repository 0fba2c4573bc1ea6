"""How a student differs from its teacher, as a configuration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from qskd.errors import ConfigError
from qskd.models.adapter import DetrAdapter
from qskd.models.backbones import backbone_config, channels_of, is_named, scaled
from qskd.models.loading import config_with_classes

_GROUP_NORM = 32  # groups in Deformable DETR's projections


@dataclass(frozen=True, slots=True)
class StudentShape:
    """How a student differs from its teacher; None means as the teacher."""

    backbone: str | None = None  # "resnet18" to "resnet152", "hgnetv2_b0" to "_b5", or a folder or hub id
    backbone_weights: str | None = None  # folder or hub id with pretrained weights for a backbone given by name
    backbone_width: float | None = None  # factor on the channels of a ResNet or HGNetV2, for tiny students
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    num_queries: int | None = None
    hidden_size: int | None = None  # D of encoder and decoder, a multiple of the attention heads
    ffn_size: int | None = None  # inner width of the feed-forward layers
    hidden_expansion: float | None = None  # width of fusion blocks, or a projector; small models have 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not 0 < value < math.inf:
                raise ConfigError(f"{field.name} of a student is {value}, expected a positive number.")
        if self.backbone_weights and self.backbone and not is_named(self.backbone):
            raise ConfigError(f"The backbone '{self.backbone}' brings its own weights; leave backbone_weights out.")

    @property
    def changes_backbone(self) -> bool:
        """Whether the student's backbone is another than the teacher's."""
        return self.backbone is not None or self.backbone_width is not None

    @property
    def weights_source(self) -> str | None:
        """Where pretrained backbone weights come from, if from anywhere."""
        if self.backbone is not None and not is_named(self.backbone):
            return self.backbone
        return self.backbone_weights


def student_config(teacher: DetrAdapter, shape: StudentShape, class_names: Sequence[str]) -> Any:
    """The teacher's configuration with a shape's changes and what follows from them.

    Raises:
        ConfigError: the shape contradicts itself or the family.
    """
    config = config_with_classes(teacher.model.config, class_names)
    if shape.hidden_size is not None:
        _set_hidden_size(config, shape.hidden_size)
    if shape.hidden_expansion is not None:
        _set_hidden_expansion(config, shape.hidden_expansion)
    if shape.changes_backbone:
        _set_backbone(config, shape)
    for option, names in _FIELDS.items():
        _set_fields(config, option, names, getattr(shape, option))
    _check_layers(config)
    return config


def _set_hidden_expansion(config: Any, expansion: float) -> None:
    if not hasattr(config, "hidden_expansion"):
        raise ConfigError(
            f"hidden_expansion is of RT-DETR and its successors, LW-DETR and RF-DETR; a {config.model_type} has none."
        )
    width = getattr(config, "encoder_hidden_dim", None) or config.d_model
    if int(width * expansion) < 2:  # D-FINE halves it once more
        raise ConfigError(f"hidden_expansion {expansion} of {width} channels leaves too few: give a greater one.")
    config.hidden_expansion = expansion


_FIELDS: dict[str, tuple[str, ...]] = {
    "encoder_layers": ("encoder_layers",),
    "decoder_layers": ("decoder_layers",),
    "num_queries": ("num_queries", "two_stage_num_proposals"),
    "ffn_size": ("encoder_ffn_dim", "decoder_ffn_dim"),
}
"""Options and the fields of configurations they stand for, where a family has them."""


def _set_fields(config: Any, option: str, names: Sequence[str], value: int | None) -> None:
    if value is None:
        return
    known = [name for name in names if hasattr(config, name)]
    if not known:
        raise ConfigError(f"{option} of a student is {value}, but a {config.model_type} has nothing of the kind.")
    for name in known:
        setattr(config, name, value)


_TWO_LAYERS = frozenset({"deformable_detr", "rt_detr_v2", "d_fine", "deimv2"})


def _check_layers(config: Any) -> None:
    if hasattr(config, "eval_idx"):
        config.eval_idx = -1
    if config.model_type in _TWO_LAYERS and config.decoder_layers < 2 and not getattr(config, "two_stage", False):
        raise ConfigError(
            f"A {config.model_type} has at least 2 decoder layers: transformers names one of its heads after the other."
        )


def _is_hybrid(config: Any) -> bool:
    """Whether an encoder of its own width mixes the backbone's maps, as in RT-DETR and its successors."""
    return hasattr(config, "encoder_in_channels")


_HEADS = (
    "encoder_attention_heads",
    "decoder_attention_heads",
    "decoder_self_attention_heads",
    "decoder_cross_attention_heads",
)


def _set_hidden_size(config: Any, size: int) -> None:
    heads = [getattr(config, name) for name in _HEADS if hasattr(config, name)]
    step = math.lcm(4, *heads)  # 4: sine positions
    if config.model_type == "deformable_detr":
        step = math.lcm(step, _GROUP_NORM)
    if size % step:
        near = sorted({max(size // step, 1) * step, (size // step + 1) * step})
        raise ConfigError(
            f"hidden_size {size} does not fit a {config.model_type} with {' and '.join(map(str, heads))} attention "
            f"heads: it must be a multiple of {step}, for example {' or '.join(map(str, near))}."
        )
    if hasattr(config, "d_model"):
        config.d_model = size
    else:
        config.hidden_size = size
    if hasattr(config, "head_dim"):
        config.head_dim = size // config.decoder_attention_heads
    if _is_hybrid(config):
        config.encoder_hidden_dim = size
        config.decoder_in_channels = [size] * len(config.decoder_in_channels)
    if hasattr(config, "projector_in_channels"):
        config.projector_in_channels = [size] * len(config.projector_in_channels)
        config.projector_out_channels = size


def _set_backbone(config: Any, shape: StudentShape) -> None:
    current = config.backbone_config
    is_own = hasattr(config, "group_detr")  # LW-DETR's and RF-DETR's backbones belong to them
    chosen = current
    if shape.backbone is not None and is_named(shape.backbone):
        _check_stride(config, shape.backbone)
    if shape.backbone is not None:
        chosen = backbone_config(shape.backbone, config.model_type, None if is_own else _levels(config))
    if is_own and chosen.model_type != current.model_type:
        raise ConfigError(
            f"The backbone of a {config.model_type} is a {current.model_type}, but '{shape.backbone}' is a "
            f"{chosen.model_type}. Give a folder or hub id of a smaller {config.model_type}."
        )
    if shape.backbone_width is not None:
        chosen = scaled(chosen, shape.backbone_width)
    config.backbone_config = chosen
    if _is_hybrid(config):
        config.encoder_in_channels = channels_of(chosen)


def _check_stride(config: Any, backbone: str) -> None:
    """Backbones by name end at stride 32; refuse them where the model's ends at 16."""
    is_lite = getattr(config, "encoder_type", "") == "lite"
    if is_lite or getattr(config, "dilation", False):
        raise ConfigError(
            f"The backbone of this {'lite' if is_lite else 'dilated'} {config.model_type} ends at stride 16, that of "
            f"'{backbone}' at 32. Keep it and take fewer layers or queries, or scale it with backbone_width."
        )


def _levels(config: Any) -> int:
    """Feature maps a family takes from its backbone."""
    if _is_hybrid(config):
        return len(config.encoder_in_channels)
    if config.model_type == "deformable_detr" and config.num_feature_levels > 1:
        return min(3, int(config.num_feature_levels))
    return 1
