"""Any detector teaches any other: one distillation step of every ordered pair of families, tiny and random."""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from builders import MODELS, NUM_CLASSES, random_batch
from qskd.data.batch import Batch
from qskd.distiller import Distiller, StepTotals
from qskd.errors import ConfigError
from qskd.labels import LabelMap
from qskd.losses.presets import MethodSettings, build_terms, resolve
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.adapter import DetrAdapter
from qskd.models.families import FAMILIES, adapter_class
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.initialising import initialise_detector
from qskd.models.loading import as_teacher
from qskd.teacher import TeacherSide, Teaching

TEACHER_NAMES = {index: f"class {index}" for index in range(NUM_CLASSES)}
STUDENT_NAMES = ["class 3", "class 0", "class 1", "class 4", "new"]  # another order, and one the teacher lacks
LABELS = LabelMap.between(TEACHER_NAMES, STUDENT_NAMES)
PAIRS = [
    pytest.param(teacher, student, id=f"{teacher} teaches {student}")
    for teacher in sorted(FAMILIES)
    for student in sorted(FAMILIES)
]


@cache
def teacher_of(family: str) -> tuple[DetrAdapter, str]:
    """A teacher and the fingerprint of its weights, made once."""
    torch.manual_seed(1)
    thawed = {"freeze_backbone_batch_norms": False} if family.startswith("rt_detr") else {}
    model = MODELS[family](**thawed)
    if thawed:
        initialise_detector(model)  # Hugging Face's first weights are so small that nothing comes through
    teacher = as_teacher(with_live_norms(adapter_class(family)(model)))
    return teacher, weights_fingerprint(teacher.model)


def with_live_norms(adapter: DetrAdapter) -> DetrAdapter:
    """Batch norms that have seen the images: those of a random model would shrink them to nothing, layer by layer."""
    norms = [module for module in adapter.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    adapter.model.train()
    for norm in norms:
        norm.momentum = None  # the mean of all that was seen
    with torch.no_grad():
        adapter.read(images())
    return adapter


@cache
def student_of(family: str) -> DetrAdapter:
    """A student with fewer layers and queries than its teachers; a step here leaves its weights as they are."""
    torch.manual_seed(2)
    model = MODELS[family](decoder_layers=2, num_queries=8)
    return adapter_class(family)(model.train().requires_grad_(True))


@cache
def images() -> Batch:
    """Squares that every family reads; one holds no object."""
    return random_batch(((64, 64),) * 3, (3, 0, 2))


def settings_of(teacher: DetrAdapter, student: DetrAdapter) -> MethodSettings:
    """All that a pair can imitate: no features where no level has the same stride."""
    if set(teacher.strides) & set(student.strides):
        return resolve("qskd")
    with pytest.raises(ConfigError, match=r"has strides .* no level can be compared"):
        build_terms(resolve("qskd"), student=student, teacher=teacher)
    return resolve("predictions")


@dataclass(frozen=True)
class Pair:
    """A teacher, a student and what one step needs of them."""

    teaching: Teaching
    distiller: Distiller

    @classmethod
    def of(cls, teacher: DetrAdapter, student: DetrAdapter) -> "Pair":
        settings = settings_of(teacher, student)
        built = build_terms(settings, student=student, teacher=teacher)
        terms = {name: term for name, (term, _) in built.items()}
        teaching = TeacherSide(teacher, LABELS, settings.selection, terms).teach(images())
        criterion = SetPredictionLoss.from_config(student.model.config) if student.trains_with != "own" else None
        weights = {name: weight for name, (_, weight) in built.items()}
        return cls(teaching, Distiller(student, criterion, terms, weights))

    @property
    def totals(self) -> StepTotals:
        return self.distiller.totals([images()], [self.teaching])

    def step(self) -> dict[str, Tensor]:
        return self.distiller(images(), self.totals, self.teaching)

    def distil_alone(self) -> Tensor:
        """The sum of the distillation terms, without the student's own loss."""
        names = self.distiller.terms
        return sum(self.distiller.one_term(images(), self.totals, self.teaching, name) for name in names)


def gradient_of(loss: Tensor, model: nn.Module) -> float:
    """Sum of the absolute gradient over all of a model's weights."""
    model.zero_grad()
    loss.backward()
    return sum(float(value.grad.abs().sum()) for value in model.parameters() if value.grad is not None)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_teachers_memory_is_no_constant(family: str) -> None:
    view = teacher_of(family)[0].read(images()).view
    assert all(float(level.std(dim=1).mean()) > 0.05 for level in view.memory)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_one_step_of_a_pair(teacher: str, student: str) -> None:
    (teaching, before), learning = teacher_of(teacher), student_of(student)
    pair = Pair.of(teaching, learning)

    parts = pair.step()

    assert all(part.isfinite() for part in parts.values())
    distilled = [part for name, part in parts.items() if name.startswith(("lapd", "agfd"))]
    assert distilled
    assert all(part > 0 for part in distilled)
    if "agfd" in parts:
        lesson = pair.teaching.lesson
        blank = tuple(torch.zeros_like(level) for level in lesson.view.memory)
        other = replace(lesson, view=replace(lesson.view, memory=blank))
        unlike = replace(pair, teaching=replace(pair.teaching, lesson=other)).step()
        assert unlike["agfd"].item() != pytest.approx(parts["agfd"].item(), rel=1e-4)
    assert 0 < gradient_of(parts["loss"], learning.model) < float("inf")
    assert 0 < gradient_of(pair.distil_alone(), learning.model) < float("inf")
    assert weights_fingerprint(teaching.model) == before
    assert all(parameter.grad is None for parameter in teaching.model.parameters())
