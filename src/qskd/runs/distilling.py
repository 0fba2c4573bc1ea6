"""One distillation, from options to a finished folder; `qskd distill`."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from qskd.data.dataset import DetectionDataset
from qskd.distiller import Distiller, Teacher
from qskd.errors import ConfigError
from qskd.labels import LabelMap
from qskd.lessons.cached_teacher import no_unlabeled
from qskd.losses.presets import MethodSettings, build_terms, options_of
from qskd.models.adapter import DetrAdapter
from qskd.models.loading import as_teacher, weights_fingerprint
from qskd.models.processors import in_words
from qskd.runs import building, preflight
from qskd.runs.ending import ending
from qskd.runs.folder import RunFolder, changed_options
from qskd.runs.given_teacher import GivenTeacher, LoadedTeacher
from qskd.runs.options import DataOptions, MethodOptions, PairOptions
from qskd.runs.recorded_teacher import open_recorded
from qskd.runs.starting import make_student
from qskd.runs.training import Job, RunResult, loading_processes, plain_size
from qskd.trainer import DistillationConfig, UnlabeledImages


def distill(pair: PairOptions, data: DataOptions, method: MethodOptions, config: DistillationConfig) -> RunResult:
    """Train a student under a teacher, after the preflight checks.

    Raises:
        QskdError: bad input, found before the first step; or a loss that was not finite.
    """
    _check_together(pair)
    if pair.teacher is None and pair.teacher_cache is None:
        raise building.missing_option("--teacher", "a hub id or the folder of a trained detector")
    settings = method.settings()
    folder = RunFolder(Path(config.output_dir), config.process_index == 0)
    resume = folder.open(config.resume_from_checkpoint)
    splits = building.open_splits(data)
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
        size, teacher_size = building.choose_sizes(data, pair, student, model)
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


@dataclass(frozen=True, slots=True)
class Distillation(Job):
    """A training with a teacher."""

    teacher: GivenTeacher
    settings: MethodSettings
    pair: PairOptions

    def _shared_with_validation(self, unlabeled: UnlabeledImages) -> list[str]:
        """A warning where images are learnt from, if only without labels, that AP is measured on."""
        if self.splits.val is None:
            return []
        measured = {record.path.resolve() for record in self.splits.val.images}
        shared = sum(record.path.resolve() in measured for record in unlabeled.dataset.index.images)
        return [f"warning: {shared} of the unlabelled images are validation images; AP will flatter"] if shared else []

    @property
    def is_teaching(self) -> bool:
        """Whether a training step asks the teacher anything; `--method none` only measures it."""
        weights = (self.settings.lapd.weight, self.settings.agfd.weight)
        return any(weights) or self.pair.unlabeled is not None

    def _teachers_size(self) -> str:
        return "" if self.teacher.size == self.size else f"; for the teacher {in_words(self.teacher.size)}"

    def unlabeled(self) -> UnlabeledImages | None:
        """Images without annotations, if some were given.

        Raises:
            DataError: they cannot be used.
        """
        if self.pair.unlabeled is None:
            return None
        folder = Path(self.pair.unlabeled).expanduser()
        dataset = building.unlabeled_dataset(
            folder, self.splits, self.data, self.size, self.config.seed, self.teacher.size
        )
        batch = self.pair.unlabeled_batch_size or self.config.per_device_train_batch_size
        sampled = self.pair.unlabeled_detection == "sampled"
        return UnlabeledImages(dataset, batch, self.pair.unlabeled_threshold, sampled)

    def datasets(self) -> tuple[DetectionDataset, DetectionDataset | None]:
        """Training and validation data; training images at the teacher's own size too, if it has one and is asked.

        Images are decoded as if it were, so that the student sees the same with every method.
        """
        workers = loading_processes(self.config)
        train, val = building.datasets(
            self.splits, self.data, self.size, self.config.seed, self.teacher.size, workers=workers
        )
        train = self.teacher.prepare(train)
        if not self.is_teaching:
            train.teacher_transform = None
        return train, val

    def start(self, resume: Path | None, notes: Sequence[str], *, check: bool, method: str) -> RunResult:
        """Build terms, check, train."""
        self.prepare_student()
        fingerprint = self.teacher.fingerprint()
        facts: dict[str, Any] = {"teacher": fingerprint, "method": method, **self.teacher.identity()}
        # None where there is none, so that a resumed run cannot leave out what the first one had.
        own_size = self.teacher.size != self.size
        facts["teacher image size"] = plain_size(self.teacher.size) if own_size else None
        facts |= {"unlabelled images": None, "unlabelled learning": None}
        # None for a student that never did: what a checkpoint from before configurations began so says.
        facts["inherits"] = True if self.pair.student is not None and "inherited" in self.began else None
        # The same for a derived one, which begins with the teacher's weights if nothing else is said.
        facts["begins anew"] = True if self.pair.student is None and not self.pair.inherit else None
        unlabeled = self.unlabeled()
        if unlabeled is not None:
            self.tell(*self._shared_with_validation(unlabeled))
            facts["unlabelled images"] = unlabeled.dataset.index.fingerprint()[:12]
            each_step = unlabeled.batch_size * self.config.gradient_accumulation_steps * self.config.world_size
            facts["unlabelled learning"] = [each_step, unlabeled.threshold, unlabeled.detection]
        identity = self.identity(resume, **facts, **options_of(self.settings))
        self.folder.save_json("label_map.json", self.teacher.label_map.as_dict())
        self.tell(*notes, f"images: {in_words(self.size)}" + self._teachers_size())
        begins_alike = "inherited" in self.began
        terms = build_terms(self.settings, student=self.student, teacher=self.teacher.facts, begins_alike=begins_alike)
        distiller = Distiller(
            self.student,
            self.criterion(),
            {name: term for name, (term, _) in terms.items()},
            {name: weight for name, (_, weight) in terms.items()},
            self.config.detection_weight,
        )
        cost = self.teacher.cost()  # before the copy that answers, and the student, are on the device
        teacher_side = self.teacher.side(self.settings, distiller.terms, self.size)
        teacher_side.to(self.config.device)
        found = self.preflight(distiller, teacher_side, fingerprint) if check else None
        metrics = self.measured_teacher(found)
        if not self.is_teaching:
            teacher_side.to(torch.device("cpu"))
        return self.run(
            resume,
            kind="distill",
            method=method,
            identity=identity,
            distiller=distiller,
            teacher=teacher_side if self.is_teaching else None,
            extra={
                "teacher": {
                    "metrics": metrics,
                    "cost": cost,
                    "fingerprint": fingerprint,
                    "image_size": plain_size(self.teacher.size),
                }
            },
        )

    def measured_teacher(self, found: preflight.Preflight | None) -> dict[str, Any]:
        """The teacher's metrics on the validation split, its detections kept; not twice if preflight saw all of it."""
        if self.splits.val is None:
            return {}
        if found is not None and found.teacher_found is not None and found.teacher_images == len(self.splits.val):
            metrics, kept = found.teacher_metrics, found.teacher_found
        else:
            metrics, kept, _ = self.teacher.measured(
                self.splits.val, self.config.eval_batch_size, processes=self.config.distributed_state
            )
        self.folder.save_detections(self.folder.teacher_detections, kept)
        return metrics

    def preflight(self, distiller: Distiller, teacher: Teacher, fingerprint: str) -> preflight.Preflight:
        """All checks before the first epoch; prints and saves what it found.

        Raises:
            PreflightError: the teacher is no better than nothing, or a term would teach nothing.
        """
        device = self.config.device
        distiller.to(device)
        train_data, _ = self.datasets()
        known = self.teacher.label_map.known
        found = preflight.Preflight(self.teacher.label_map, {}, 0)
        same = weights_fingerprint(self.student.model) == fingerprint
        if same:
            found.warnings.append("teacher and student have the same weights: is that what you want?")
        if not all(known):
            found.warnings.append("classes unknown to the teacher are learnt from the labels alone")
        if self.splits.val is not None:
            found.teacher_metrics, found.teacher_found, found.teacher_images = self.teacher.measured(
                self.splits.val,
                self.config.eval_batch_size,
                preflight.TEACHER_IMAGES,
                processes=self.config.distributed_state,
            )
            if found.teacher_metrics["AP50"] is None:
                found.warnings.append("no validation image holds an object: nothing can be measured")
            else:
                preflight.check_teacher(found.teacher_metrics, found.teacher_images)
        batch = preflight.sample_batch(train_data, self.config.per_device_train_batch_size, known).to(device)
        autocast = _autocast(self.config)
        asked = teacher if self.is_teaching else None
        found.terms = preflight.check_terms(
            distiller,
            asked,
            batch,
            same_weights=same,
            begins_alike="inherited" in self.began,
            autocast=contextlib.nullcontext if self.config.fp16 else autocast,  # half precision needs the loss scaler
        )
        found.warnings += [f"'{term.name}' begins at 0" for term in found.terms if not same and term.value == 0.0]
        found.seconds_per_step = self.config.gradient_accumulation_steps * preflight.time_step(
            distiller, asked, batch, autocast
        )
        found.total_steps = self.config.steps_for(len(train_data))
        found.peak_memory_gib = preflight.peak_memory_gib()
        self.folder.save_json("preflight.json", found.as_dict())
        self.tell(*found.lines())
        return found


def _autocast(config: DistillationConfig) -> Any:
    """A context manager factory that does what the trainer will do."""
    if not (config.bf16 or config.fp16):
        return contextlib.nullcontext
    dtype = torch.bfloat16 if config.bf16 else torch.float16
    return lambda: torch.autocast(config.device.type, dtype=dtype)
