"""One distillation, from options to a finished folder; `qskd distill`."""

from transformers import set_seed

from qskd.errors import ConfigError
from qskd.labels import LabelMap
from qskd.lessons.cached_teacher import no_unlabeled
from qskd.models.adapter import DetrAdapter
from qskd.models.loading import as_teacher
from qskd.runs import building, image_sizes
from qskd.runs.distillation import Distillation
from qskd.runs.ending import ending
from qskd.runs.folder import changed_options
from qskd.runs.given_teacher import GivenTeacher, LoadedTeacher
from qskd.runs.options import DataOptions, MethodOptions, PairOptions
from qskd.runs.recorded_teacher import open_recorded
from qskd.runs.starting import make_student
from qskd.runs.training import RunResult
from qskd.trainer import DistillationConfig
from qskd.trainer.refusing import check_data


def distill(pair: PairOptions, data: DataOptions, method: MethodOptions, config: DistillationConfig) -> RunResult:
    """Train a student under a teacher, after the preflight checks.

    Raises:
        QskdError: bad input, found before the first step; or a loss that was not finite.
    """
    _check_together(pair)
    if pair.teacher is None and pair.teacher_cache is None:
        raise building.missing_option("--teacher", "a hub id or the folder of a trained detector")
    settings = method.settings()
    folder = building.run_folder(config)
    resume = folder.open(config.resume_from_checkpoint)
    splits = building.open_splits(data)
    check_data(config, len(splits.train), splits.val)
    model = _open_teacher(pair) if pair.teacher is not None else None
    cached = open_recorded(pair, splits, data, settings, model) if pair.teacher_cache is not None else None
    # Again, so that the student begins as it would without a teacher.
    set_seed(config.seed)
    family = cached.facts.family if cached is not None else None
    student, notes, began = make_student(pair, model, splits.class_names, config.seed, cached_family=family)
    teacher: GivenTeacher
    if cached is not None:
        teacher, model = cached, None  # what derived the student is not needed any more
        size = cached.student_size(data, pair, student)
        notes = [*notes, *cached.notes(is_half=config.bf16 or config.fp16)]
    else:
        assert model is not None
        size, teacher_size = image_sizes.choose_sizes(data, pair, student, model)
        labels = LabelMap.between(model.id2label, splits.class_names)
        precision = None if pair.teacher_precision == "as_student" else pair.teacher_precision
        teacher = LoadedTeacher(model, labels, teacher_size, config.device, precision, config.compiling)
        model = None
    options = changed_options(pair, data, method, config)
    distillation = Distillation(folder, splits, size, student, config, data, options, began, teacher, settings, pair)
    with ending(folder):
        return distillation.start(resume, notes, check=method.preflight and resume is None, method=method.method)


def _open_teacher(pair: PairOptions) -> DetrAdapter:
    assert pair.teacher is not None
    return as_teacher(
        building.open_model(
            pair.teacher, None, box_frame=pair.teacher_box_frame, trust_remote_code=pair.trust_remote_code
        )
    )


def _check_together(pair: PairOptions) -> None:
    if pair.unlabeled is not None and pair.teacher_cache is not None:
        raise no_unlabeled()
    if pair.teacher_precision != "as_student" and pair.teacher_cache is not None:
        raise ConfigError(
            f"--teacher_precision {pair.teacher_precision} is about a teacher that runs; --teacher_cache holds answers "
            "that were given before. Leave one of them out."
        )
    if not 0 < pair.unlabeled_threshold < 1:
        raise ConfigError(f"--unlabeled_threshold is {pair.unlabeled_threshold}; give a score between 0 and 1.")
    if pair.unlabeled_batch_size is not None and pair.unlabeled_batch_size < 1:
        raise ConfigError(f"--unlabeled_batch_size is {pair.unlabeled_batch_size}; give at least 1.")
