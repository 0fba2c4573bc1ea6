"""The student of a distillation, and what is said of the weights that it began with."""

from collections.abc import Sequence
from dataclasses import replace

from qskd.errors import ConfigError
from qskd.models.adapter import DetrAdapter
from qskd.models.deriving import derive_student, select_weights
from qskd.models.fingerprints import configuration_fingerprint, weights_fingerprint
from qskd.models.inheriting import InheritReport
from qskd.models.loading import with_class_names
from qskd.models.shaping import StudentShape
from qskd.runs import building
from qskd.runs.options import PairOptions

_DIGITS = 12  # of a fingerprint, in the summary


def make_student(
    pair: PairOptions,
    teacher: DetrAdapter | None,
    class_names: Sequence[str],
    seed: int,
    *,
    cached_family: str | None = None,
) -> tuple[DetrAdapter, list[str], dict[str, str]]:
    """The student that the options ask for, what to tell the user about it, and what it starts from.

    A student that is derived from the teacher, and one from a configuration (.json) of the teacher's family, begin with
    the teacher's weights, unless ``pair.inherit`` is False; a folder or hub id brings its own.

    Args:
        pair: the options.
        teacher: None where its answers are cached.
        class_names: of the data, in the order of their indices.
        seed: of a derived student's random weights; a configuration's are those of torch's generator.
        cached_family: of the teacher whose answers are cached.

    Returns:
        The student; lines to print; what it starts from: "weights" and "configuration" in short, and "inherited", the
        share of its weights that are the teacher's, where some are.

    Raises:
        ConfigError: both a checkpoint and a shape were given, or neither; or the teacher's weights are not at hand.
    """
    shape = _shape_of(pair)
    if pair.student is not None:
        if replace(shape, backbone_weights=None) != StudentShape():
            raise ConfigError("Give either --student, or --student_backbone and the like to derive one; not both.")
        return _opened(pair, pair.student, teacher, class_names, cached_family)
    if shape == StudentShape():
        raise ConfigError(
            "No student: give --student (a hub id, folder or configuration), or say how it is smaller than the "
            "teacher: --student_backbone resnet18, --student_decoder_layers 3, --student_hidden_size 128, ..."
        )
    if teacher is None:
        raise ConfigError(
            "A student is derived from the teacher's configuration, which no cache holds: give --teacher beside "
            "--teacher_cache (it is let go of before training), or --student."
        )
    student, report = derive_student(teacher, shape, class_names=class_names, inherit=pair.inherit, seed=seed)
    notes = ["the student, derived from the teacher", *report.as_table().splitlines()]
    return student, notes, _taken(pair, student, teacher, report)


def _shape_of(pair: PairOptions) -> StudentShape:
    return StudentShape(
        backbone=pair.student_backbone,
        backbone_weights=pair.student_backbone_weights,
        backbone_width=pair.student_backbone_width,
        encoder_layers=pair.student_encoder_layers,
        decoder_layers=pair.student_decoder_layers,
        num_queries=pair.student_num_queries,
        hidden_size=pair.student_hidden_size,
        ffn_size=pair.student_ffn_size,
        hidden_expansion=pair.student_hidden_expansion,
    )


def _opened(
    pair: PairOptions,
    source: str,
    teacher: DetrAdapter | None,
    class_names: Sequence[str],
    cached_family: str | None,
) -> tuple[DetrAdapter, list[str], dict[str, str]]:
    """A student of a checkpoint or a configuration."""
    weights = pair.student_backbone_weights
    student = building.open_model(
        source,
        class_names,
        box_frame="content",
        trust_remote_code=pair.trust_remote_code,
        backbone_weights=weights,
    )
    began = start_of(source, student, weights)
    family = cached_family if teacher is None else teacher.family
    if not (pair.inherit and source.endswith(".json") and family == student.family):
        return with_class_names(student, class_names), [], began
    if teacher is None:
        raise ConfigError(
            f"A {family} student begins with the weights of a {family} teacher, which no cache holds: give --teacher "
            "beside --teacher_cache (it is let go of before training), or --no_inherit for random weights."
        )
    report = select_weights(student, teacher, class_names, backbone=weights is None)
    if weights is None:  # its backbone expects the pixels that the teacher's was trained with
        student = type(student)(student.model, pixel_norm=teacher.pixel_norm, box_frame=student.box_frame)
    notes = ["the student, begun with the teacher's weights", *report.as_table().splitlines()]
    return student, notes, _taken(pair, student, teacher, report)


def start_of(source: str, opened: DetrAdapter, backbone: str | None = None) -> dict[str, str]:
    """The start of a student opened from a source; the same for all seeds.

    Args:
        source: a hub id, a folder, or a configuration (.json).
        opened: as it was opened, before the rows of its class head were changed.
        backbone: what the weights of its backbone were taken from, if from anywhere.
    """
    random = source.endswith(".json")
    weights = "random weights" if random else f"weights {weights_fingerprint(opened.model)[:_DIGITS]}"
    return _start(weights + _backbone(backbone), opened)


def _taken(pair: PairOptions, student: DetrAdapter, teacher: DetrAdapter, report: InheritReport) -> dict[str, str]:
    """The start of a student that was derived from its teacher, or took its weights; the same for all seeds."""
    theirs = f"weights of teacher {weights_fingerprint(teacher.model)[:_DIGITS]}"
    weights = theirs if report.inherited else "random weights"
    share = {"inherited": f"{report.inherited / report.total:.4f}"} if report.inherited else {}
    return _start(weights + _backbone(pair.student_backbone_weights), student) | share


def _backbone(source: str | None) -> str:
    return "" if source is None else f" and backbone {source}"


def _start(weights: str, student: DetrAdapter) -> dict[str, str]:
    return {"weights": weights, "configuration": configuration_fingerprint(student.model)[:_DIGITS]}
