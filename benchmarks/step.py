"""A whole distillation step: the default against the plain teacher and the student's own training.

A Conditional DETR with a ResNet-50 teaches one with a ResNet-18, random weights, 4 images of 384 pixels. All of it runs
on one thread, in seconds of the processor: several wait for each other at full load where a machine does other things.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from cached_teacher import recorded
from timing import interleaved
from transformers import ConditionalDetrConfig, ResNetConfig

from qskd.data.batch import Batch, Targets
from qskd.data.transforms import ImageSize
from qskd.distiller import Distiller
from qskd.labels import LabelMap
from qskd.losses.presets import build_terms, resolve
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.adapter import DetrAdapter
from qskd.models.folding import channels_last, inference_engine
from qskd.models.loading import as_teacher, load_model, new_model
from qskd.models.processors import save_model
from qskd.teacher import TeacherSide

NAMES = [str(number) for number in range(80)]
Surroundings = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A plain teacher, the engine made of it, a student, and what they look at."""

    plain: DetrAdapter
    engine: DetrAdapter
    student: DetrAdapter
    batch: Batch


@cache
def pair(quick: bool, device: str = "cpu", images: int = 4, side: int = 384) -> Pair:
    """Both models on the device, and a batch of noise with 7 objects an image."""
    torch.manual_seed(0)
    images, side = (1, 64) if quick else (images, side)
    teacher = as_teacher(_from_disk(_detector("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048), quick), side))
    student = _detector("basic", (2, 2, 2, 2), (64, 128, 256, 512), quick)
    batch = Batch(
        torch.rand(images, 3, side, side),
        torch.full((images, 2), side),
        Targets.from_lists(
            [torch.randint(len(NAMES), (7,)) for _ in range(images)],
            [torch.rand(7, 4) * 0.3 + 0.2 for _ in range(images)],
        ),
        tuple(range(images)),
        ((side, side),) * images,
        variations=tuple((0, position) for position in range(images)),
        padded=False,
    )
    engine = folded(teacher, batch)
    for adapter in (teacher, engine, student):
        adapter.model.to(device)
    student.model.train()
    return Pair(teacher, engine, student, batch.to(device))


def folded(teacher: DetrAdapter, batch: Batch) -> DetrAdapter:
    """The engine, made on the CPU as a run makes it: a GPU's TF32 would make it look like another model."""
    engine = inference_engine(teacher, batch)
    left = [name for name, module in engine.model.named_modules() if "BatchNorm" in type(module).__name__]
    assert not left, f"norms that were not folded: {left[:3]}"
    return engine


def _detector(layer_type: str, depths: tuple[int, ...], widths: tuple[int, ...], quick: bool) -> DetrAdapter:
    backbone = ResNetConfig(
        layer_type=layer_type, depths=list(depths), hidden_sizes=list(widths), out_features=["stage4"]
    )
    config = ConditionalDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        num_queries=50 if quick else 300,
    )
    return new_model(config, NAMES)


def _from_disk(adapter: DetrAdapter, side: int) -> DetrAdapter:
    """As a teacher is loaded: with Hugging Face's frozen batch norms, which take longer than those that learn."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(adapter, folder, size=ImageSize(square=side))
        return load_model(folder)


def distillation(
    pair: Pair, teacher: DetrAdapter, around: Surroundings = nullcontext, folder: Path | None = None
) -> Callable[[], None]:
    """One step of the default method, without optimiser; with a folder, the teacher is read from a cache in it."""
    settings = resolve("qskd")
    built = build_terms(settings, student=pair.student, teacher=teacher)
    terms = {name: term for name, (term, _) in built.items()}
    weights = {name: weight for name, (_, weight) in built.items()}
    criterion = SetPredictionLoss.from_config(pair.student.model.config)
    distiller = Distiller(pair.student, criterion, terms, weights).to(pair.batch.pixels.device)
    live = TeacherSide(teacher, LabelMap.between(teacher.id2label, NAMES), settings.selection, terms)
    side = live if folder is None else recorded(live, pair.batch, folder)

    def run() -> None:
        distiller.zero_grad()
        with around():
            teaching = side.teach(pair.batch)
            totals = distiller.totals([pair.batch], [teaching])
            loss = distiller(pair.batch, totals, teaching)["loss"]
        loss.backward()

    return run


def training(pair: Pair, around: Surroundings = nullcontext) -> Callable[[], None]:
    """One step of the student's plain training, without optimiser."""
    distiller = Distiller(pair.student, SetPredictionLoss.from_config(pair.student.model.config))

    def run() -> None:
        distiller.zero_grad()
        with around():
            loss = distiller(pair.batch, distiller.totals([pair.batch], [None]))["loss"]
        loss.backward()

    return run


def teaching(pair: Pair, teacher: DetrAdapter, around: Surroundings = nullcontext) -> Callable[[], None]:
    """The teacher's forward pass alone."""

    @torch.no_grad()
    def run() -> None:
        with around():
            teacher.read(pair.batch)

    return run


def bfloat16() -> AbstractContextManager[object]:
    """What ``--bf16`` does, on a CPU."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def default_step(quick: bool) -> float:
    """A default distillation step, as a part of the plain teacher's forward pass and the student's step."""
    models = pair(quick)
    _check(models)
    runs = [distillation(models, models.engine), teaching(models, models.plain), training(models)]
    step, teacher, student = interleaved(list(runs), _repeats(quick), time.process_time)
    return step / (teacher + student)


def bfloat16_step(quick: bool) -> float:
    """The same with ``--bf16`` and ``--channels_last``."""
    models = pair(quick)
    _check(models)
    student = channels_last(models.student.rebind(copy.deepcopy(models.student.model)))
    fast = distillation(replace(models, student=student), models.engine, bfloat16)
    runs = [fast, teaching(models, models.plain), training(models)]
    step, teacher, plain = interleaved(list(runs), _repeats(quick), time.process_time)
    return step / (teacher + plain)


def engine(quick: bool) -> float:
    """How many times longer the plain teacher takes than the engine."""
    models = pair(quick)
    _check(models)
    plain, fast = interleaved(
        [teaching(models, models.plain), teaching(models, models.engine)], _repeats(quick), time.process_time
    )
    return plain / fast


def engine_in_bfloat16(quick: bool) -> float:
    """How many times longer the plain teacher takes in float32 than the engine in bfloat16."""
    models = pair(quick)
    runs = [teaching(models, models.plain), teaching(models, models.engine, bfloat16)]
    plain, fast = interleaved(list(runs), _repeats(quick), time.process_time)
    return plain / fast


@torch.no_grad()
def _check(models: Pair) -> None:
    """The engine is as near to the teacher in double precision as the plain teacher is; random weights amplify."""
    batch = replace(models.batch, pixels=models.batch.pixels.double())
    exact = models.plain.rebind(copy.deepcopy(models.plain.model).double()).read(batch).view
    errors = []
    for adapter in (models.plain, models.engine):
        view = adapter.read(models.batch).view
        pairs = [(view.logits, exact.logits), (view.boxes, exact.boxes), (view.memory[0], exact.memory[0])]
        errors.append([float((one - other).abs().mean()) for one, other in pairs])
    for plain, fast in zip(*errors, strict=True):
        assert fast <= 2 * plain + 1e-6, errors


def _repeats(quick: bool) -> int:
    return 1 if quick else 3
