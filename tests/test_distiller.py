"""Teacher's side, student's side, and what a step is divided by; models of 5 classes, in evaluation mode."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import builders
from builders import image_of, random_batch
from builders_deformable import joined_batch
from qskd.data.batch import Batch, Targets
from qskd.distiller import Distiller, StepTotals
from qskd.labels import LabelMap
from qskd.losses.presets import build_terms, resolve
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.losses.term import Lesson, Prepared, StudentAnswer
from qskd.models.adapter import DetrAdapter, Need
from qskd.models.families import adapter_class
from qskd.models.loading import as_teacher
from qskd.selection.assignment import match_to_targets
from qskd.selection.groups import GroupQuerySelection
from qskd.teacher import TeacherSide, Teaching

NAMES = ["ant", "bee", "cat", "dog", "elk"]
DISTILLED = ("lapd", "agfd")


def adapter_of(name: str, **changes: Any) -> DetrAdapter:
    model = builders.MODELS[name](**({"id2label": dict(enumerate(NAMES))} | changes))
    return adapter_class(model.config.model_type)(model)


def sides(
    student: str = "detr",
    teacher: str = "detr",
    *,
    method: str = "qskd",
    knows: list[str] | None = None,
    **options: Any,
) -> tuple[Distiller, TeacherSide]:
    """A distiller and its teacher; the teacher calls its classes ``knows``."""
    pupil = adapter_of(student)
    master = adapter_of(teacher, decoder_layers=2, id2label=dict(enumerate(knows or NAMES)))
    settings = resolve(method)
    built = build_terms(settings, student=pupil, teacher=master)
    terms = {name: term for name, (term, _) in built.items()}
    weights = {name: weight for name, (_, weight) in built.items()}
    criterion = None if pupil.trains_with == "own" else SetPredictionLoss.from_config(pupil.model.config)
    label_map = LabelMap.between(master.id2label, NAMES)
    side = TeacherSide(as_teacher(master), label_map, settings.selection, terms)
    return Distiller(pupil, criterion, terms, weights, **options), side


def lesson_of(distiller: Distiller, side: TeacherSide, *batches: Batch) -> tuple[list[Teaching], StepTotals]:
    """The teachings of one step's micro-batches, and its totals."""
    teachings = [side.teach(batch) for batch in batches]
    return teachings, distiller.totals(batches, teachings)


def values(parts: dict[str, Tensor]) -> dict[str, float]:
    return {name: part.item() for name, part in parts.items()}


@pytest.mark.parametrize(
    ("precision", "surrounding", "computed"),
    [
        (None, None, torch.float32),
        (None, torch.bfloat16, torch.bfloat16),
        ("float32", torch.bfloat16, torch.float32),
        ("bfloat16", None, torch.bfloat16),
        ("bfloat16", torch.float16, torch.bfloat16),
    ],
)
def test_the_teacher_computes_in_what_it_is_told(precision, surrounding, computed):
    distiller, side = sides()
    side.precision = precision
    batch = random_batch()
    with torch.autocast("cpu", dtype=surrounding or torch.bfloat16, enabled=surrounding is not None):
        teachings, totals = lesson_of(distiller, side, batch)
        assert teachings[0].lesson.view.memory[0].dtype == computed
        assert torch.is_autocast_enabled("cpu") == (surrounding is not None)
        parts = distiller(batch, totals, teachings[0])
    assert all(bool(part.isfinite()) for part in parts.values())


# ---- totals ----------------------------------------------------------------------------------------------


def prepared(*amounts: float) -> Prepared:
    return Prepared({}, torch.tensor(amounts))


def test_what_terms_are_divided_by_is_summed_over_micro_batches():
    """Numbers of objects and images are tested in ``test_step_totals.py``."""
    amounts = [{"a": prepared(1.0, 2.0), "b": prepared(5.0)}, {"a": prepared(10.0, 20.0), "b": prepared(50.0)}]
    totals = StepTotals.of([random_batch(), random_batch()], amounts, num_queries=10)
    assert {name: amount.tolist() for name, amount in totals.terms.items()} == {"a": [11.0, 22.0], "b": [55.0]}


@dataclass
class TwoProcesses:
    """An accelerator whose other process has seen the given sums."""

    others: list[float]
    num_processes: int = 2
    device: str = "cpu"

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return tensor + torch.tensor(self.others)


def test_every_process_divides_by_its_share():
    """Gradients are averaged over processes: 5 + 4 objects, 2 + 2 images, 3 + 4 pairs with 3 queries, halved."""
    amounts = [{"a": prepared(1.0, 2.0), "b": prepared(5.0)}]
    other: Any = TwoProcesses([4.0, 2.0, 4.0, 0.0, 3.0, 6.0, 7.0])
    totals = StepTotals.of([random_batch(objects=(5, 0))], amounts, num_queries=3, accelerator=other)
    assert (totals.num_boxes, totals.num_images, totals.num_pairs) == (4.5, 2.0, 3.5)
    assert {name: amount.tolist() for name, amount in totals.terms.items()} == {"a": [2.0, 4.0], "b": [6.0]}


@pytest.mark.parametrize(("own", "other", "found"), [(False, 0.0, False), (True, 0.0, True), (False, 1.0, True)])
def test_all_processes_hear_in_a_step_that_one_was_told_to_end(own, other, found):
    told: Any = TwoProcesses([4.0, 2.0, 4.0, other])
    assert StepTotals.of([random_batch()], [], num_queries=3, accelerator=told, is_last=own).is_last is found


# ---- a step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", builders.MODELS)
def test_micro_batches_add_up_to_the_batch(name):
    """Unequal ones, the second without objects: each is divided by what the whole step holds.

    Not so D-FINE's own distillation between its layers: transformers takes its mean over a batch.
    """
    distiller, side = sides(name, name)
    sizes, objects = ((64, 64),) * 5, (4, 0, 1, 0, 0)
    whole = random_batch(sizes, objects)
    images = [image_of(whole, image) for image in range(len(whole))]
    cut = [joined_batch(*images[:3]), joined_batch(*images[3:])]
    (teaching,), totals = lesson_of(distiller, side, whole)
    at_once = values(distiller(whole, totals, teaching))
    teachings, totals = lesson_of(distiller, side, *cut)
    one_by_one = [values(distiller(batch, totals, lesson)) for batch, lesson in zip(cut, teachings, strict=True)]
    own_means = {part for part in at_once if part.startswith("loss_ddf")}
    assert bool(own_means) == (name.split("-")[0] in ("d_fine", "deimv2"))
    for part in at_once.keys() - own_means - ({"loss"} if own_means else set()):
        assert sum(parts.get(part, 0.0) for parts in one_by_one) == pytest.approx(at_once[part], rel=1e-4), part


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_weights_scale_what_they_are_named_after(name):
    batch = random_batch()
    distiller, side = sides(name, name)
    (teaching,), totals = lesson_of(distiller, side, batch)
    plain = values(distiller(batch, totals, teaching))
    assert plain["loss"] == pytest.approx(sum(value for part, value in plain.items() if part != "loss"), rel=1e-6)
    distiller.detection_weight = 0.5
    distiller.weights["agfd"] *= 3.0
    changed = values(distiller(batch, totals, teaching, warmup=0.25))
    for part, value in plain.items():
        scale = 0.75 if part == "agfd" else 0.25 if part.startswith("lapd") else 0.5
        if part != "loss":
            assert changed[part] == pytest.approx(scale * value, rel=1e-6), part
    assert changed["loss"] == pytest.approx(sum(value for part, value in changed.items() if part != "loss"), rel=1e-6)


def test_only_the_loss_keeps_its_graph():
    batch = random_batch()
    distiller, side = sides()
    (teaching,), totals = lesson_of(distiller, side, batch)
    parts = distiller(batch, totals, teaching)
    assert {name for name, part in parts.items() if part.requires_grad} == {"loss"}


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_without_a_teaching_the_student_is_trained_plainly(name):
    batch = random_batch()
    distiller, side = sides(name, name)
    (teaching,), totals = lesson_of(distiller, side, batch)
    plain, taught = values(distiller(batch, totals)), values(distiller(batch, totals, teaching))
    assert not any(part.startswith(DISTILLED) for part in plain)
    assert plain.items() - {("loss", plain["loss"])} <= taught.items()
    assert plain["loss"] < taught["loss"]


@pytest.mark.parametrize("name", DISTILLED)
def test_one_term_alone_is_what_it_is_among_the_others(name):
    batch = random_batch()
    distiller, side = sides("deformable_detr", "deformable_detr")
    (teaching,), totals = lesson_of(distiller, side, batch)
    parts = values(distiller(batch, totals, teaching))
    alone = distiller.one_term(batch, totals, teaching, name)
    assert alone.item() == pytest.approx(sum(v for part, v in parts.items() if part.startswith(name)), rel=1e-6)
    alone.backward()
    assert any(parameter.grad is not None for parameter in distiller.student.parameters())


def test_projections_belong_to_the_distiller_and_the_teacher_does_not():
    pupil, master = adapter_of("detr"), adapter_of("detr", d_model=64)
    terms = {name: term for name, (term, _) in build_terms(resolve("qskd"), student=pupil, teacher=master).items()}
    distiller = Distiller(pupil, SetPredictionLoss.from_config(pupil.model.config), terms, dict.fromkeys(terms, 1.0))
    names = {name.split(".")[0] for name, _ in distiller.named_parameters()}
    assert names == {"student", "projections"}
    projections = [parameter for name, parameter in distiller.named_parameters() if name.startswith("projections")]
    assert sum(parameter.numel() for parameter in projections) == 64 * 32 + 64


# ---- the teacher's side ------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """A term without weight that remembers what it was given."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PREDICTIONS})
    lessons: list[Lesson] = field(default_factory=list)
    answers: list[StudentAnswer] = field(default_factory=list)

    def prepare(self, lesson: Lesson) -> Prepared:
        self.lessons.append(lesson)
        return Prepared({}, torch.ones(1))

    def __call__(self, student: StudentAnswer, lesson: Lesson, made: Prepared, total: Tensor) -> dict[str, Tensor]:
        self.lessons.append(lesson)
        self.answers.append(student)
        return {"recorded": student.view.logits.sum() * 0.0}


def taught_with(recorder: Recorder, batch: Batch, knows: list[str]) -> tuple[Distiller, Teaching]:
    pupil = adapter_of("detr")
    master = as_teacher(adapter_of("detr", id2label=dict(enumerate(knows))))
    side = TeacherSide(master, LabelMap.between(master.id2label, NAMES), GroupQuerySelection(), {"recorder": recorder})
    criterion = SetPredictionLoss.from_config(pupil.model.config)
    distiller = Distiller(pupil, criterion, {"recorder": recorder}, {"recorder": 1.0})
    (teaching,), totals = lesson_of(distiller, side, batch)
    distiller(batch, totals, teaching)
    return distiller, teaching


def labelled(*labels: list[int]) -> Batch:
    """Images whose objects have these labels, each object with a box of its own."""
    plain = random_batch(((64, 64),) * len(labels), [len(image) for image in labels])
    boxes = [plain.targets.boxes[image, : len(found)] for image, found in enumerate(labels)]
    targets = Targets.from_lists([torch.tensor(image, dtype=torch.long) for image in labels], boxes)
    return Batch(plain.pixels, plain.content, targets, plain.image_ids, plain.original_sizes)


def test_objects_of_classes_the_teacher_lacks_are_left_out_of_its_lesson():
    """The teacher has no bee (1) and no dog (3)."""
    batch = labelled([1, 2, 0, 3], [3, 1], [4, 1, 1, 0])
    recorder = Recorder()
    _, teaching = taught_with(recorder, batch, ["elk", "cat", "ant"])
    targets = teaching.lesson.targets
    assert targets.counts == (2, 0, 2)
    assert targets.labels.tolist() == [[2, 0], [0, 0], [4, 0]]
    assert targets.is_object.tolist() == [[True, True], [False, False], [True, True]]
    given = batch.targets.boxes
    assert torch.equal(targets.boxes[0], given[0, [1, 2]])
    assert torch.equal(targets.boxes[2], given[2, [0, 3]])
    assert not targets.boxes[1].any()
    assert teaching.lesson.known_classes.tolist() == [True, False, True, False, True]
    assert teaching.lesson.groups.match.shape[-1] == 2


def test_the_student_answers_for_those_objects_with_the_queries_it_matched_among_all():
    batch = labelled([1, 2, 0, 3], [3, 1], [4, 1, 1, 0])
    recorder = Recorder()
    distiller, _ = taught_with(recorder, batch, ["elk", "cat", "ant"])
    view = distiller.adapter.read(batch).view
    match = match_to_targets(view, batch.targets, distiller.adapter.match_costs)  # [L, B, 4]
    (answer,) = recorder.answers
    assert torch.equal(answer.match[:, 0], match[:, 0, [1, 2]])
    assert torch.equal(answer.match[:, 2], match[:, 2, [0, 3]])
    assert (answer.match[:, 1] == -1).all()
    assert (answer.match[:, 0] >= 0).all()


def test_a_teacher_that_knows_no_object_of_the_batch_teaches_nothing():
    batch = labelled([1, 3], [1])
    distiller, side = sides(knows=["elk", "cat", "ant"])
    (teaching,), totals = lesson_of(distiller, side, batch)
    assert teaching.lesson.targets.labels.shape == (2, 0)
    parts = values(distiller(batch, totals, teaching))
    assert not any(value for part, value in parts.items() if part.startswith(DISTILLED))
    assert parts["loss_box"] > 0


def test_a_teacher_that_knows_every_class_keeps_the_batchs_objects():
    batch = labelled([1, 2], [0])
    _, teaching = taught_with(Recorder(), batch, [*reversed(NAMES), "fox"])
    assert teaching.columns is None
    assert teaching.lesson.targets is batch.targets
    assert teaching.lesson.view.num_classes == len(NAMES)


def test_the_lesson_speaks_of_the_students_classes():
    """Reversed names: the teacher's column 4 is the student's class 0."""
    batch = labelled([1, 2], [0])
    plain, turned = (taught_with(Recorder(), batch, names)[1] for names in (NAMES, NAMES[::-1]))
    assert torch.equal(plain.lesson.view.logits.flip(-1), turned.lesson.view.logits)


def test_attention_is_read_only_when_asked_for_and_freed_after_preparing():
    batch = random_batch()
    recorder = Recorder()
    taught_with(recorder, batch, NAMES)
    assert recorder.lessons[0].view.attention is None
    distiller, side = sides()
    seen: list[bool] = []
    prepare = side.terms["agfd"].prepare
    side.terms["agfd"].prepare = lambda lesson: (seen.append(lesson.view.attention is not None), prepare(lesson))[1]
    (teaching,), _ = lesson_of(distiller, side, batch)
    assert seen == [True]
    assert teaching.lesson.view.attention is None


def test_teaching_records_no_gradient():
    batch = random_batch()
    distiller, side = sides()
    side.adapter.model.requires_grad_(True)
    (teaching,), _ = lesson_of(distiller, side, batch)
    assert not teaching.lesson.view.logits.requires_grad
    assert not any(tensor.requires_grad for made in teaching.prepared.values() for tensor in made.tensors.values())
