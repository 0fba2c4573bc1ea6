"""A student made from its teacher: the same family, smaller, with what weights fit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from qskd.errors import ConfigError
from qskd.labels import match_names
from qskd.models.adapter import DetrAdapter
from qskd.models.backbone_weights import load_backbone_weights
from qskd.models.backbones import same_architecture
from qskd.models.channels import kept_together
from qskd.models.inheriting import InheritReport, inherit_weights, nothing_inherited
from qskd.models.initialising import initialise_detector, thaw_backbone, train_backbone
from qskd.models.lineage import NOWHERE, Lineage, layer_choice, mixed_maps
from qskd.models.loading import build
from qskd.models.shaping import StudentShape, student_config
from qskd.models.timm_backbones import keep_activations


def derive_student(
    teacher: DetrAdapter,
    shape: StudentShape,
    *,
    class_names: Sequence[str],
    inherit: bool = True,
    seed: int = 0,
) -> tuple[DetrAdapter, InheritReport]:
    """A smaller detector of the teacher's family.

    Weights are taken over where names agree; a layer that is narrower than the teacher's takes evenly spaced channels
    of it. A student with fewer encoder or decoder layers gets
    the teacher's evenly spaced ones, the last among them, with their prediction heads; its queries are the
    teacher's first; head rows go by class name. A backbone of other blocks takes nothing over:
    it is pretrained (``backbone_weights``) or random. A backbone that is not the teacher's in shape learns whole, with
    batch norms that are not frozen; a random one needs far longer training, and the report says so.

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
    if not keeps_backbone:  # else it is to be what it is in the teacher
        keep_activations(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
        initialise_detector(model)
    report = nothing_inherited(model)
    if inherit:
        has_kin = keeps_backbone or same_blocks(config.backbone_config, _config(teacher).backbone_config)
        lineage = _lineage(model, teacher, class_names, backbone=has_kin and shape.weights_source is None)
        report = _inherited(model, teacher, lineage, class_names)
    if is_random:
        thaw_backbone(model)
        taken = next(group for group in report.groups if group.name == "backbone").inherited
        report = report if taken else replace(report, notes=(*report.notes, _random_backbone(teacher.family)))
    else:
        train_backbone(model)
    if shape.weights_source is not None:
        load_backbone_weights(model, shape.weights_source, teacher.pixel_norm)
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


def select_weights(
    student: DetrAdapter, teacher: DetrAdapter, class_names: Sequence[str], *, backbone: bool = True
) -> InheritReport:
    """Let a student from a configuration begin with its teacher's weights: evenly spaced channels of wider layers.

    Args:
        student: of the teacher's family; changed in place.
        teacher: left as it is.
        class_names: of the student, in the order of their indices.
        backbone: whether the backbone's weights are taken over too, where it is built of the same blocks.

    Raises:
        ConfigError: the families differ.
    """
    if student.family != teacher.family:
        raise ConfigError(
            f"A student takes weights of a teacher of its own family; the teacher is a {teacher.family}, the student a "
            f"{student.family}."
        )
    is_alike = same_blocks(_config(student).backbone_config, _config(teacher).backbone_config)
    lineage = _lineage(student.model, teacher, class_names, backbone=backbone and is_alike)
    finer, coarser = _missing_maps(student.strides, teacher.strides)
    mixed = mixed_maps(_config(student), _config(teacher), finer)
    lineage = replace(lineage, finer=finer, coarser=coarser, mixed_maps=mixed)
    return _inherited(student.model, teacher, lineage, class_names)


def _missing_maps(mine: Sequence[int], theirs: Sequence[int]) -> tuple[int, int]:
    """How many finer and how many coarser maps the teacher has; beyond all where its maps are not the student's."""
    begin = theirs.index(mine[0]) if mine[0] in theirs else len(theirs)
    if tuple(theirs[begin : begin + len(mine)]) != tuple(mine):
        return NOWHERE, NOWHERE
    return begin, len(theirs) - begin - len(mine)


def _lineage(model: nn.Module, teacher: DetrAdapter, class_names: Sequence[str], *, backbone: bool) -> Lineage:
    source: Any = _config(teacher)
    target: Any = model.config
    groups = [getattr(config, "group_detr", 1) for config in (source, target)]
    return Lineage(
        encoder=layer_choice(getattr(target, "encoder_layers", 0), getattr(source, "encoder_layers", 0)),
        decoder=layer_choice(target.decoder_layers, source.decoder_layers),
        source_decoder_layers=source.decoder_layers,
        rows=match_names(teacher.id2label, class_names),
        source_classes=source.num_labels,
        backbone=backbone,
        query_groups=(groups[1], groups[0]),
        together=kept_together(teacher.family),
    )


def same_blocks(mine: Any, theirs: Any) -> bool:
    """Whether two backbones are built of the same blocks, if of other sizes."""
    kinds = [(config.model_type, getattr(config, "layer_type", None)) for config in (mine, theirs)]
    if mine.model_type == theirs.model_type == "timm_backbone":
        return bool(mine.backbone == theirs.backbone)
    return kinds[0] == kinds[1]


def _inherited(model: nn.Module, teacher: DetrAdapter, lineage: Lineage, class_names: Sequence[str]) -> InheritReport:
    report = inherit_weights(model, teacher.model, lineage)
    return replace(report, notes=_notes(lineage, class_names))


def _notes(lineage: Lineage, class_names: Sequence[str]) -> tuple[str, ...]:
    fresh = [name for name, row in zip(class_names, lineage.rows, strict=True) if row < 0]
    layers = f"decoder layers from the teacher's {_numbers(lineage.decoder)}."
    if lineage.encoder:
        layers = f"encoder layers from the teacher's {_numbers(lineage.encoder)}, {layers}"
    return (
        layers[0].upper() + layers[1:],
        f"Classes the teacher has not: {', '.join(fresh) if fresh else 'none'}.",
    )


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(str(layer + 1) for layer in layers)
