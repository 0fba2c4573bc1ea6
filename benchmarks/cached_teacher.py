"""A distillation step whose teacher is read from a cache, against the student's step alone."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import interleaved
from transformers import ConditionalDetrConfig, ResNetConfig

from qskd.data.batch import Batch, Targets
from qskd.distiller import Distiller
from qskd.labels import LabelMap
from qskd.lessons.cache import CacheContent, TeacherCache, write_index
from qskd.lessons.cached_teacher import CachedTeacher
from qskd.lessons.facts import TeacherFacts
from qskd.lessons.record import Record, records_of
from qskd.lessons.shards import write_shard
from qskd.losses.presets import build_terms, resolve
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.adapter import DetrAdapter, Need
from qskd.models.loading import as_teacher, new_model
from qskd.teacher import TeacherSide

_BATCH, _OBJECTS, _CLASSES = 8, 10, 80


def step_against_student_alone(quick: bool) -> float:
    """Conditional DETR, the student on ResNet-18, 8 images of 256 px (quick: 2 of 128), in processor seconds."""
    images, side, layers = (2, 128, 2) if quick else (_BATCH, 256, 6)
    names = [f"class {index}" for index in range(_CLASSES)]
    torch.manual_seed(0)
    teacher = as_teacher(_model(names, layers, [1, 1, 1, 1]))
    student = _model(names, layers, [2, 2, 2, 2])
    settings = resolve("qskd")
    built = build_terms(settings, student=student, teacher=teacher)
    terms = {name: term for name, (term, _) in built.items()}
    weights = {name: weight for name, (_, weight) in built.items()}
    distiller = Distiller(student, SetPredictionLoss.from_config(student.model.config), terms, weights).train()
    label_map = LabelMap.between(teacher.id2label, names)
    batch = _batch(images, side)
    with tempfile.TemporaryDirectory() as folder:
        cached = recorded(TeacherSide(teacher, label_map, settings.selection, terms), batch, Path(folder))

        def distilled() -> None:
            teaching = cached.teach(batch)
            distiller(batch, distiller.totals([batch], [teaching]), teaching)["loss"].backward()

        def alone() -> None:
            distiller(batch, distiller.totals([batch], []))["loss"].backward()

        whole, plain = interleaved([distilled, alone], 1 if quick else 3, time.process_time)
    return whole / plain


def recorded(side: TeacherSide, batch: Batch, folder: Path) -> CachedTeacher:
    """The teacher's answers to a batch of images without padding, in float16, read from a folder."""
    read = side.read(batch, capture_attention=True)
    records = records_of(read, batch.content, set(Need), torch.float16)
    return CachedTeacher(_cache(folder, side.adapter, records), side.label_map, side.terms)


def _model(names: list[str], layers: int, depths: list[int]) -> DetrAdapter:
    backbone = ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=depths, layer_type="basic", out_features=["stage4"]
    )
    changes: dict[str, Any] = {"encoder_layers": layers, "decoder_layers": layers, "num_queries": 300}
    return new_model(ConditionalDetrConfig(backbone_config=backbone, **changes), names)


def _batch(images: int, side: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    labels = [torch.randint(_CLASSES, (_OBJECTS,), generator=generator) for _ in range(images)]
    boxes = [torch.rand(_OBJECTS, 4, generator=generator) * 0.3 + 0.2 for _ in range(images)]
    pixels = torch.rand(images, 3, side, side, generator=generator)
    content = torch.full((images, 2), side)
    shown = tuple((0, position) for position in range(images))
    ids, sizes = tuple(range(images)), ((side, side),) * images
    return Batch(pixels, content, Targets.from_lists(labels, boxes), ids, sizes, variations=shown)


def _cache(folder: Path, teacher: DetrAdapter, records: list[Record]) -> TeacherCache:
    count = len(records)
    content = CacheContent(
        {}, {}, frozenset(Need), TeacherFacts.of(teacher), {}, {}, count, count, tuple(records[0]), []
    )
    content.save(folder)
    write_shard(folder, "epoch000-00000", dict(enumerate(records)))
    write_index(folder, content, 1)
    return TeacherCache.open(folder)
