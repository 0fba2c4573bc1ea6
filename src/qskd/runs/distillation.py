"""A training with a teacher: its terms, its checks before the first step, what is written of it."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qskd.data.batch import collate
from qskd.data.dataset import DetectionDataset
from qskd.distiller import Distiller
from qskd.errors import ConfigError
from qskd.losses.presets import MethodSettings, build_terms, options_of
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.processors import in_words
from qskd.runs import building, preflight
from qskd.runs.given_teacher import GivenTeacher
from qskd.runs.options import PairOptions
from qskd.runs.training import Job, RunResult, loading_processes, plain_size
from qskd.teacher import Teacher, Unlabeled
from qskd.trainer import DistillationConfig, UnlabeledImages


@dataclass(frozen=True, slots=True)
class Distillation(Job):
    """A training with a teacher."""

    teacher: GivenTeacher
    settings: MethodSettings
    pair: PairOptions
    _opened: list[UnlabeledImages] = field(default_factory=list)  # once: there may be millions

    def _check_unlabeled(self) -> list[str]:
        """What to tell of the way that unlabelled images are learnt from.

        Raises:
            ConfigError: they would teach nothing.
        """
        if not (self._detects_on_unlabeled or self.settings.weights):
            raise ConfigError(
                "--unlabeled images would teach nothing: the method has no distillation term, and the detection loss "
                "does not see them (--unlabeled_detection off, or the teacher lacks a class). Leave them out."
            )
        if self.pair.unlabeled_detection == "off" or self._detects_on_unlabeled:
            return []
        return [
            "warning: the teacher lacks a class, whose objects would be background on unlabelled images: the detection "
            "loss does not see them (--unlabeled_detection off)"
        ]

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
        return bool(self.settings.weights) or self.pair.unlabeled is not None

    def _teachers_size(self) -> str:
        return "" if self.teacher.size == self.size else f"; for the teacher {in_words(self.teacher.size)}"

    def unlabeled(self) -> UnlabeledImages | None:
        """Images without annotations, if some were given.

        Raises:
            DataError: they cannot be used.
        """
        if self.pair.unlabeled is None or self._opened:
            return self._opened[0] if self._opened else None
        folder = Path(self.pair.unlabeled).expanduser()
        dataset = building.unlabeled_dataset(
            folder, self.splits, self.data, self.size, self.config.seed, self.teacher.size
        )
        batch = self.pair.unlabeled_batch_size or self.config.per_device_train_batch_size
        self._opened.append(UnlabeledImages(dataset, batch, self.pair.unlabeled_threshold, self._detects_on_unlabeled))
        return self._opened[0]

    @property
    def _detects_on_unlabeled(self) -> bool:
        """Whether the student's detection loss sees unlabelled images: not where the teacher lacks a class.

        Its objects would be background there.
        """
        return self.pair.unlabeled_detection == "sampled" and all(self.teacher.label_map.known)

    def datasets(self) -> tuple[DetectionDataset, DetectionDataset | None]:
        """Training and validation data; training images at the teacher's own size too, if it has one and is asked.

        Images are decoded as if it were, so that the student sees the same with every method.
        """
        workers = loading_processes(self.config)
        train, val = building.datasets(
            self.splits, self.data, self.size, self.config.seed, self.teacher.size, workers=workers
        )
        train = self.teacher.prepare(train)
        if not self.settings.weights:
            train.teacher_transform = None
        return train, val

    def start(self, resume: Path | None, notes: Sequence[str], *, check: bool, method: str) -> RunResult:
        """Build terms, check, train."""
        self.prepare_student()
        fingerprint = self.teacher.fingerprint()
        facts = {"teacher": fingerprint, "method": method, **self.shared_facts(), **options_of(self.settings)}
        identity = self.identity(resume, **facts)
        self.folder.save_json("label_map.json", self.teacher.label_map.as_dict())
        self.tell(*notes, f"images: {in_words(self.size)}" + self._teachers_size())
        distiller = self.distiller()
        cost = self.teacher.cost()  # before the copy that answers, and the student, are on the device
        side = self.teacher.side(self.settings, distiller.terms, self.size)
        side.to(self.config.device)
        found = self.preflight(distiller, side, fingerprint) if check else None
        told = {"metrics": self.measured_teacher(found), "cost": cost, "fingerprint": fingerprint}
        if not self.is_teaching:
            side.to(torch.device("cpu"))
        return self.run(
            resume,
            kind="distill",
            method=method,
            identity=identity,
            distiller=distiller,
            teacher=side if self.is_teaching else None,
            extra={"teacher": told | {"image_size": plain_size(self.teacher.size)}},
        )

    def shared_facts(self) -> dict[str, Any]:
        """What has to be the same in a run that goes on, beside the teacher, the method and its options.

        What a run does without is told as None, so that a resumed run cannot leave out what the first one had; None is
        also what a checkpoint from before an option says of it. Unlabelled images are read, and told of if AP is
        measured on them.

        Raises:
            DataError: the unlabelled images cannot be used.
        """
        facts: dict[str, Any] = dict(self.teacher.identity())
        own_size = self.teacher.size != self.size
        facts["teacher image size"] = plain_size(self.teacher.size) if own_size else None
        facts |= self._unlabeled_facts()
        # A student of its own configuration may begin with the teacher's weights; a derived one does by default.
        facts["inherits"] = True if self.pair.student is not None and self.begins_alike else None
        facts["begins anew"] = True if self.pair.student is None and not self.pair.inherit else None
        return facts

    def _unlabeled_facts(self) -> dict[str, Any]:
        unlabeled = self.unlabeled()
        if unlabeled is None:
            return {"unlabelled images": None, "unlabelled learning": None}
        self.tell(*self._check_unlabeled(), *self._shared_with_validation(unlabeled))
        each_step = unlabeled.batch_size * self.config.gradient_accumulation_steps * self.config.world_size
        return {
            "unlabelled images": unlabeled.dataset.index.fingerprint()[:12],
            "unlabelled learning": [each_step, unlabeled.threshold, unlabeled.detection],
        }

    @property
    def begins_alike(self) -> bool:
        """Whether the student began with weights of the teacher."""
        return "inherited" in self.began

    def distiller(self) -> Distiller:
        """The student with its detection loss and the terms of the method."""
        terms = build_terms(
            self.settings, student=self.student, teacher=self.teacher.facts, begins_alike=self.begins_alike
        )
        return Distiller(
            self.student,
            self.criterion(),
            {name: term for name, (term, _) in terms.items()},
            {name: weight for name, (_, weight) in terms.items()},
            self.config.detection_weight,
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

    def _labelling(self, teacher: Teacher) -> Callable[[], Unlabeled] | None:
        """Labels a batch of the images without annotations, if some were given, as every step does."""
        given = self.unlabeled()
        if given is None:
            return None
        batch = collate([given.dataset[number] for number in range(given.batch_size)]).to(self.config.device)
        sample = torch.Generator().manual_seed(0) if given.detection else None
        return lambda: teacher.label(batch, given.threshold, sample=sample)

    def _teacher_checked(self, same: bool) -> preflight.Preflight:
        """What can be said of the teacher: its classes, its detections; `same` if its weights are the student's."""
        found = preflight.Preflight(self.teacher.label_map, {}, 0)
        if same:
            found.warnings.append("teacher and student have the same weights: is that what you want?")
        if not all(self.teacher.label_map.known):
            found.warnings.append("classes unknown to the teacher are learnt from the labels alone")
        if self.splits.val is None:
            return found
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
        return found

    def preflight(self, distiller: Distiller, teacher: Teacher, fingerprint: str) -> preflight.Preflight:
        """All checks before the first epoch; prints and saves what it found.

        Raises:
            PreflightError: the teacher is no better than nothing, or a term would teach nothing.
        """
        distiller.to(self.config.device)
        train_data, _ = self.datasets()
        same = weights_fingerprint(self.student.model) == fingerprint
        found = self._teacher_checked(same)
        known = self.teacher.label_map.known
        batch = preflight.sample_batch(train_data, self.config.per_device_train_batch_size, known)
        batch = batch.to(self.config.device)
        autocast = _autocast(self.config)
        asked = teacher if self.is_teaching else None
        found.terms = preflight.check_terms(
            distiller,
            asked,
            batch,
            same_weights=same,
            begins_alike=self.begins_alike,
            autocast=contextlib.nullcontext if self.config.fp16 else autocast,  # half precision needs the loss scaler
        )
        found.warnings += [f"'{term.name}' begins at 0" for term in found.terms if not same and term.value == 0.0]
        found.seconds_per_step = self.config.gradient_accumulation_steps * preflight.time_step(
            distiller, asked, batch, autocast, self._labelling(teacher)
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
