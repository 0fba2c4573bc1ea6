"""One training run, from options to a finished folder; `qskd train` and `qskd distill`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import set_seed

from qskd.data.batch import Batch, Targets
from qskd.data.dataset import DetectionDataset
from qskd.data.transforms import ImageSize
from qskd.distiller import Distiller
from qskd.errors import ConfigError
from qskd.evaluation.cost import cost_of
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.adapter import DetrAdapter
from qskd.models.fingerprints import reading_of, structure_fingerprint
from qskd.models.folding import channels_last
from qskd.models.initialising import freeze_backbone_norms
from qskd.models.loading import with_class_names
from qskd.models.processors import save_model
from qskd.runs import building, image_sizes, picturing
from qskd.runs.ending import ending
from qskd.runs.evaluating import detections_on, evaluate_keeping
from qskd.runs.folder import RunFolder, changed_options, environment
from qskd.runs.options import DataOptions, TrainOptions
from qskd.runs.processes import on_this_machine
from qskd.runs.starting import start_of
from qskd.teacher import Teacher
from qskd.trainer import DistillationConfig, DistillationTrainer, UnlabeledImages, checkpoints
from qskd.trainer.refusing import best_by, check_data, follows_ap
from qskd.trainer.trainer import decays_by_name

_PICTURES = 4  # validation images shown in TensorBoard at each evaluation


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run leaves behind."""

    folder: Path  # the run folder
    model: Path  # a plain from_pretrained folder: the best weights
    metrics: dict[str, Any]  # COCO metrics of ``model`` on the validation split; empty without one
    summary: dict[str, Any]  # the content of summary.json


def train(model: TrainOptions, data: DataOptions, config: DistillationConfig) -> RunResult:
    """Train one detector plainly: a teacher, or a baseline.

    Raises:
        QskdError: bad input, found before the first step; or a loss that was not finite.
    """
    if model.model is None:
        raise building.missing_option("--model", "a hub id, a folder, or a configuration (.json) to train from scratch")
    folder = building.run_folder(config)
    resume = folder.open(config.resume_from_checkpoint)
    splits = building.open_splits(data)
    check_data(config, len(splits.train), splits.val)
    set_seed(config.seed)
    adapter = building.open_model(
        model.model,
        splits.class_names,
        box_frame=model.box_frame,
        trust_remote_code=model.trust_remote_code,
        backbone_weights=model.backbone_weights,
    )
    began = start_of(model.model, adapter, model.backbone_weights)
    adapter = with_class_names(adapter, splits.class_names)
    size = image_sizes.choose_size(data, [adapter], [model.model])
    job = Job(folder, splits, size, adapter, config, data, changed_options(model, data, config), began)
    with ending(folder):
        job.prepare_student()
        return job.run(resume, kind="train", method="none", identity=job.identity(resume))


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a training needs, opened and checked."""

    folder: RunFolder
    splits: building.Splits
    size: ImageSize
    student: DetrAdapter
    config: DistillationConfig
    data: DataOptions
    options: dict[str, Any]  # what was asked for, to run it again
    began: dict[str, str]  # what the student starts from, for reports

    def tell(self, *lines: str) -> None:
        """Print lines, once for all processes."""
        if self.folder.is_main and lines:
            print("\n".join(lines), flush=True)

    def criterion(self) -> SetPredictionLoss | None:
        """The detection loss, or None for families that compute their own."""
        if self.student.trains_with == "own":
            return None
        return SetPredictionLoss.from_config(self.student.model.config)

    def datasets(self) -> tuple[DetectionDataset, DetectionDataset | None]:
        """Training and validation data."""
        workers = loading_processes(self.config)
        return building.datasets(self.splits, self.data, self.size, self.config.seed, workers=workers)

    def trainer(self, distiller: Distiller, teacher: Teacher | None, identity: dict[str, Any]) -> DistillationTrainer:
        """The trainer of this job."""
        train_data, val_data = self.datasets()
        if self.data.cache_images == "memory" and self.config.dataloader_num_workers > 0:
            self.config.dataloader_persistent_workers = True  # else every epoch would begin with empty caches
        return DistillationTrainer(
            distiller,
            self.config,
            train_data,
            val_data,
            teacher=teacher,
            identity=identity,
            save_student=lambda adapter, path: _save(adapter, path, self.size),
            unlabeled=self.unlabeled(),
            pictures=self.pictures() if "tensorboard" in (self.config.report_to or ()) else None,
        )

    def pictures(self) -> Callable[[DetrAdapter], list[tuple[str, NDArray[np.uint8]]]] | None:
        """Draws ground truth and what a model finds beside it, on a few validation images."""
        index = self.splits.val
        if index is None or not self.folder.is_main:
            return None
        positions = picturing.evenly_chosen(index, _PICTURES)
        truth = picturing.labelled(index, positions)

        def draw(adapter: DetrAdapter) -> list[tuple[str, NDArray[np.uint8]]]:
            found = picturing.detected("found", detections_on(adapter, index, self.size, positions), index, positions)
            rows = picturing.drawn(index, positions, [truth, found])
            names = [index.images.file_names[position] for position in positions]
            sheets = [np.concatenate([np.asarray(panel) for panel in row], axis=1) for row in rows]
            return list(zip(names, sheets, strict=True))

        return draw

    def unlabeled(self) -> UnlabeledImages | None:
        """Images without annotations to learn from too; none here."""
        return None

    @property
    def has_given_backbone(self) -> bool:
        """Whether the student is a configuration whose backbone began with weights from elsewhere."""
        if "student" in self.options:
            return "student_backbone_weights" in self.options
        return "backbone_weights" in self.options

    def prepare_student(self) -> None:
        """What the settings ask of the student's backbone; names and shapes stay.

        Raises:
            ConfigError: there is no norm to freeze.
        """
        if self.config.channels_last:
            channels_last(self.student)
        if self.config.compiling is not None:
            self.config.compiling.backbone(self.student, self.config.device)
        if self.config.freeze_batch_norm and freeze_backbone_norms(self.student.model) == 0:
            raise ConfigError(
                "freeze_batch_norm was given, but no batch norm of the student's backbone learns: it has none, or they "
                "are frozen already, as in most published checkpoints. Leave it out."
            )

    def identity(self, resume: Path | None, **more: Any) -> dict[str, Any]:
        """What a resumed run must share with the one that was interrupted; ``more`` comes first.

        Raises:
            CheckpointError: ``resume`` is a checkpoint of another run.
        """
        augmentation = {name: getattr(self.data, name) for name in ("flip", "crop", "zoom_out", "photometric")}
        fading = self.config.distillation_schedule
        metric = best_by(self.config)
        identity = {
            **more,
            "classes": list(self.splits.class_names),
            "student": f"{self.student.family} {structure_fingerprint(self.student.model)[:12]}",
            "student's reading": reading_of(self.student),
            "training data": self.splits.train.fingerprint()[:12],
            # The best AP so far was measured on it.
            "validation data": self.splits.val.fingerprint()[:12] if self.splits.val is not None else None,
            "image size": plain_size(self.size),
            **augmentation,
            **self.config.trajectory(),
            # None where off: what a checkpoint from before these options says of them.
            "freeze batch norm": self.config.freeze_batch_norm or None,
            "backbone weights": self.has_given_backbone or None,
            "distillation schedule": None if fading == "constant" else fading,
            "best by": None if metric == "AP" else metric,  # what best/ holds so far was chosen by it
            "evaluations": self._evaluations(),
            "channels last": self.config.channels_last or None,  # the optimiser's state lies as the weights do
            checkpoints.TRAINED: sum(one.requires_grad for one in self.student.model.parameters()),
            checkpoints.DECAYED: None if decays_by_name(self.student.model) else "matrices",
        }
        if resume is not None:
            checkpoints.check(resume, identity)
        return identity

    def _evaluations(self) -> list[Any] | None:
        """How often AP is measured, where the learning rate follows it."""
        config = self.config
        if not follows_ap(config):
            return None
        return [str(getattr(config.eval_strategy, "value", config.eval_strategy)), config.eval_steps, config.eval_delay]

    def run(
        self,
        resume: Path | None,
        *,
        kind: str,
        method: str,
        identity: dict[str, Any],
        distiller: Distiller | None = None,
        teacher: Teacher | None = None,
        extra: dict[str, Any] | None = None,
    ) -> RunResult:
        """Train, keep the last weights, measure the best ones as they lie on disk, write the summary."""
        distiller = distiller or Distiller(
            self.student, self.criterion(), detection_weight=self.config.detection_weight
        )
        trainer = self.trainer(distiller, teacher, identity)
        self.tell(*self.splits.problems())
        started = time.perf_counter()
        with self.folder.claimed(kind, self.options):
            outcome = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        seconds = time.perf_counter() - started
        trainer.keep("last")
        trainer.accelerator.wait_for_everyone()  # one process writes what all of them read
        summary = {
            "name": self.folder.path.name,
            "kind": kind,
            "method": method,
            "family": self.student.family,
            "start": self.began,
            "seed": self.config.seed,
            "steps": outcome.global_step,
            "train_seconds": round(seconds, 2),
            "resumed": resume is not None,
            "train_images": len(self.splits.train),
            "image_size": plain_size(self.size),
            "device": str(self.config.device),
            "environment": environment(),
            **(extra or {}),
        }
        return self.finish(summary)

    def finish(self, summary: dict[str, Any]) -> RunResult:
        """Measure the kept model as a user would load it, and write the summary."""
        kept = self.folder.model()
        metrics: dict[str, Any] = {}
        adapter = building.open_model(str(kept), None, box_frame=self.student.box_frame)
        adapter.model.to(self.config.device)
        if self.splits.val is not None:
            metrics, found = evaluate_keeping(
                adapter,
                self.splits.val,
                self.size,
                self.config.eval_batch_size,
                processes=self.config.distributed_state,
            )
            self.folder.save_json("eval/val.json", metrics)
            self.folder.save_detections(self.folder.detections, found)
        summary |= {"metrics": metrics, "cost": measured_cost(adapter, self.size)}
        self.folder.save_json("summary.json", summary)
        return RunResult(self.folder.path, kept, metrics, summary)


def loading_processes(config: DistillationConfig) -> int:
    """Processes of this machine that load images, of all training processes that a launcher started on it."""
    return max(config.dataloader_num_workers, 1) * on_this_machine()


def measured_cost(adapter: DetrAdapter, size: ImageSize) -> dict[str, Any]:
    """Parameters, GFLOPs and latency on one image of this size."""
    return cost_of(adapter, one_image(size).to(next(adapter.model.parameters()).device)).as_dict()


def one_image(size: ImageSize) -> Batch:
    """A batch of one image of noise, as large as one of 480 x 640 pixels becomes."""
    height, width = size.of(480, 640)
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    content = torch.tensor([[height, width]])
    targets = Targets.from_lists([torch.zeros(0, dtype=torch.long)], [torch.zeros(0, 4)])
    return Batch(pixels, content, targets, (0,), ((height, width),))


def _save(adapter: DetrAdapter, path: Path, size: ImageSize) -> None:
    save_model(adapter, path, size=size)


def plain_size(size: ImageSize) -> list[int]:
    """[side] of a square, or [shortest edge, longest edge], in pixels."""
    if size.square is not None:
        return [size.square]
    return [edge for edge in (size.shortest_edge, size.longest_edge) if edge is not None]
