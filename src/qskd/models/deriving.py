"""A student made from its teacher: the same family, smaller, with what weights fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from qskd.errors import ConfigError
from qskd.labels import match_names
from qskd.models.adapter import DetrAdapter
from qskd.models.backbones import (
    backbone_config,
    channels_of,
    is_resnet_name,
    load_backbone_weights,
    same_architecture,
    scaled,
)
from qskd.models.inheriting import InheritReport, Lineage, inherit_weights, layer_choice, nothing_inherited
from qskd.models.initialising import initialise_detector, thaw_backbone, train_backbone
from qskd.models.loading import build, config_with_classes

_GROUP_NORM = 32  # groups in Deformable DETR's projections


@dataclass(frozen=True, slots=True)
class StudentShape:
    """How a student differs from its teacher; None means as the teacher."""

    backbone: str | None = None  # "resnet18" to "resnet152", or a folder or hub id of a Hugging Face backbone
    backbone_weights: str | None = None  # folder or hub id with pretrained weights for a backbone given by name
    backbone_width: float | None = None  # factor on a ResNet's channels, for tiny students
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    num_queries: int | None = None
    hidden_size: int | None = None  # D of encoder and decoder, a multiple of the attention heads
    ffn_size: int | None = None  # inner width of the feed-forward layers
    hidden_expansion: float | None = None  # width of RT-DETR's fusion blocks; its small models have 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and value <= 0:
                raise ConfigError(f"{field.name} of a student is {value}, expected a positive number.")
        if self.backbone_weights and self.backbone and not is_resnet_name(self.backbone):
            raise ConfigError(f"The backbone '{self.backbone}' brings its own weights; leave backbone_weights out.")

    @property
    def changes_backbone(self) -> bool:
        """Whether the student's backbone is another than the teacher's."""
        return self.backbone is not None or self.backbone_width is not None

    @property
    def weights_source(self) -> str | None:
        """Where pretrained backbone weights come from, if from anywhere."""
        if self.backbone is not None and not is_resnet_name(self.backbone):
            return self.backbone
        return self.backbone_weights


def derive_student(
    teacher: DetrAdapter,
    shape: StudentShape,
    *,
    class_names: Sequence[str],
    inherit: bool = True,
    seed: int = 0,
) -> tuple[DetrAdapter, InheritReport]:
    """A smaller detector of the teacher's family.

    Weights are taken over where names and shapes agree. A student with fewer encoder or decoder layers gets
    the teacher's evenly spaced ones, the last among them, with their prediction heads; its queries are the
    teacher's first; head rows go by class name. Nothing is taken over inside a backbone of another
    architecture: it is pretrained (``backbone_weights``) or random. A random backbone learns whole, with
    batch norms that are not frozen, and needs far longer training; the report says so.

    Args:
        teacher: left as it is.
        shape: what is to differ.
        class_names: of the student, in the order of their indices.
        inherit: False draws every weight anew (but for ``backbone_weights``).
        seed: of the random weights; torch's global generator is not touched.

    Returns:
        The student in training mode, boxes as fractions of the image content, and what it took over.

    Raises:
        ConfigError: the shape contradicts itself or the family.
        CheckpointError: the backbone's weights cannot be read or do not fit.
    """
    config = student_config(teacher, shape, class_names)
    keeps_backbone = inherit and (
        not shape.changes_backbone or same_architecture(config.backbone_config, _config(teacher).backbone_config)
    )
    is_random = shape.weights_source is None and not keeps_backbone
    if is_random and hasattr(config, "freeze_backbone_batch_norms"):
        config.freeze_backbone_batch_norms = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
        initialise_detector(model)
    report = _fill(model, teacher, inherit=inherit, keeps_backbone=keeps_backbone, class_names=class_names)
    if is_random:
        thaw_backbone(model)
        report = replace(report, notes=(*report.notes, _random_backbone(teacher.family)))
    else:
        train_backbone(model)
    if shape.weights_source is not None:
        load_backbone_weights(model, shape.weights_source)
        report = replace(report, notes=(*report.notes, f"Backbone: pretrained weights of {shape.weights_source}."))
    student = type(teacher)(model.train(), pixel_norm=teacher.pixel_norm, box_frame="content")
    return student, report


def _random_backbone(family: str) -> str:
    return (
        f"Backbone: RANDOM weights, not pretrained; this {family} student starts from nothing there. "
        "Give backbone_weights (a folder or hub id) for one that has seen ImageNet."
    )


def _config(adapter: DetrAdapter) -> Any:
    return adapter.model.config


def _fill(
    model: nn.Module,
    teacher: DetrAdapter,
    *,
    inherit: bool,
    keeps_backbone: bool,
    class_names: Sequence[str],
) -> InheritReport:
    source: Any = _config(teacher)
    target: Any = model.config
    if not inherit:
        return nothing_inherited(model)
    lineage = Lineage(
        encoder=layer_choice(target.encoder_layers, source.encoder_layers),
        decoder=layer_choice(target.decoder_layers, source.decoder_layers),
        source_decoder_layers=source.decoder_layers,
        rows=match_names(teacher.id2label, class_names),
        source_classes=source.num_labels,
        backbone=keeps_backbone,
    )
    report = inherit_weights(model, teacher.model, lineage)
    return replace(report, notes=_notes(lineage, class_names))


def _notes(lineage: Lineage, class_names: Sequence[str]) -> tuple[str, ...]:
    fresh = [name for name, row in zip(class_names, lineage.rows, strict=True) if row < 0]
    return (
        f"Encoder layers from the teacher's {_numbers(lineage.encoder)}, "
        f"decoder layers from its {_numbers(lineage.decoder)}.",
        f"Classes the teacher has not: {', '.join(fresh) if fresh else 'none'}.",
    )


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(str(layer + 1) for layer in layers)


def student_config(teacher: DetrAdapter, shape: StudentShape, class_names: Sequence[str]) -> Any:
    """The teacher's configuration with a shape's changes and what follows from them.

    Raises:
        ConfigError: the shape contradicts itself or the family.
    """
    config = config_with_classes(_config(teacher), class_names)
    if shape.hidden_size is not None:
        _set_hidden_size(config, shape.hidden_size)
    if shape.hidden_expansion is not None:
        if config.model_type != "rt_detr":
            raise ConfigError(f"hidden_expansion is RT-DETR's; a {config.model_type} has no fusion blocks.")
        config.hidden_expansion = shape.hidden_expansion
    if shape.changes_backbone:
        _set_backbone(config, shape)
    for name, value in _plain_changes(config, shape).items():
        if value is not None:
            setattr(config, name, value)
    return config


def _plain_changes(config: Any, shape: StudentShape) -> dict[str, Any]:
    changes = {
        "encoder_layers": shape.encoder_layers,
        "decoder_layers": shape.decoder_layers,
        "num_queries": shape.num_queries,
        "encoder_ffn_dim": shape.ffn_size,
        "decoder_ffn_dim": shape.ffn_size,
    }
    if hasattr(config, "two_stage_num_proposals"):
        changes["two_stage_num_proposals"] = shape.num_queries
    return changes


def _set_hidden_size(config: Any, size: int) -> None:
    step = math.lcm(4, config.encoder_attention_heads, config.decoder_attention_heads)  # 4: sine positions
    if config.model_type == "deformable_detr":
        step = math.lcm(step, _GROUP_NORM)
    if size % step:
        near = sorted({max(size // step, 1) * step, (size // step + 1) * step})
        heads = f"{config.encoder_attention_heads} and {config.decoder_attention_heads} attention heads"
        raise ConfigError(
            f"hidden_size {size} does not fit a {config.model_type} with {heads}: it must be a multiple of "
            f"{step}, for example {' or '.join(map(str, near))}."
        )
    config.hidden_size = size  # an alias of d_model in most families
    if config.model_type == "rt_detr":
        config.encoder_hidden_dim = size
        config.decoder_in_channels = [size] * len(config.decoder_in_channels)


def _set_backbone(config: Any, shape: StudentShape) -> None:
    levels = _levels(config)
    current = config.backbone_config
    chosen = current if shape.backbone is None else backbone_config(shape.backbone, config.model_type, levels)
    if shape.backbone_width is not None:
        chosen = scaled(chosen, shape.backbone_width)
    config.backbone_config = chosen
    if config.model_type == "rt_detr":
        config.encoder_in_channels = channels_of(chosen)


def _levels(config: Any) -> int:
    """Feature maps a family takes from its backbone."""
    if config.model_type == "rt_detr":
        return len(config.encoder_in_channels)
    if config.model_type == "deformable_detr" and config.num_feature_levels > 1:
        return min(3, int(config.num_feature_levels))
    return 1
