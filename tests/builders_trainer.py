"""Trainers of tiny models on the drawn scenes, without the checks and measurements of a whole run."""

from pathlib import Path
from typing import Any

import torch

import builders
from builders_runs import NAMES, tiny_run
from qskd.data.dataset import DetectionDataset
from qskd.data.sources import open_source
from qskd.data.transforms import Augmentation, ImageSize, build_transform
from qskd.distiller import Distiller
from qskd.labels import LabelMap
from qskd.losses.presets import build_terms, resolve
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.adapter import DetrAdapter
from qskd.models.families import adapter_class
from qskd.models.loading import as_teacher
from qskd.models.processors import save_model
from qskd.teacher import TeacherSide
from qskd.trainer import DistillationConfig, DistillationTrainer

CLASSES: dict[str, Any] = {
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: index for index, name in enumerate(NAMES)},
    "num_labels": len(NAMES),
}


def adapter_of(name: str, **changes: Any) -> DetrAdapter:
    """One of ``builders.MODELS`` with the scenes' classes, read by its family's adapter."""
    torch.manual_seed(7)
    model = builders.MODELS[name](**(CLASSES | changes))
    return adapter_class(model.config.model_type)(model)


def dataset(scenes: Path, split: str, *, size: int = 64, train: bool | None = None) -> DetectionDataset:
    """A split of the scenes, augmented if it is the training split."""
    augment = Augmentation(zoom_out=0.0)
    is_train = split == "train" if train is None else train
    return DetectionDataset(
        open_source(scenes).load(split, class_names=NAMES),
        build_transform(ImageSize(square=size), train=is_train, augment=augment),
    )


def trainer_of(
    folder: Path,
    scenes: Path,
    student: DetrAdapter,
    teacher: DetrAdapter | None = None,
    *,
    method: str = "qskd",
    size: int = 64,
    has_val: bool = True,
    **options: Any,
) -> DistillationTrainer:
    """A trainer as ``runs`` makes it; options are those of ``DistillationConfig``."""
    settings = resolve(method)
    built = build_terms(settings, student=student, teacher=teacher) if teacher is not None else {}
    terms = {name: term for name, (term, _) in built.items()}
    weights = {name: weight for name, (_, weight) in built.items()}
    given = {
        name: value
        for name, value in tiny_run(folder, scenes, **options).items()
        if name in DistillationConfig.__dataclass_fields__
    }
    config = DistillationConfig(**given)
    criterion = None if student.trains_with == "own" else SetPredictionLoss.from_config(student.model.config)
    side = None
    if teacher is not None:
        side = TeacherSide(as_teacher(teacher), LabelMap.between(teacher.id2label, NAMES), settings.selection, terms)
    return DistillationTrainer(
        Distiller(student, criterion, terms, weights, config.detection_weight),
        config,
        dataset(scenes, "train", size=size),
        dataset(scenes, "val", size=size) if has_val else None,
        teacher=side,
        identity={"classes": list(NAMES), "method": method},
        save_student=lambda adapter, path: save_model(adapter, path, size=ImageSize(square=size)),
    )
