"""Lessons put together from records against those of a teacher in memory: every method, families of every kind."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders import MODELS, image_of, random_batch, size_for, stop_leaks_from_padding
from qskd.data.batch import Batch, Images, Targets
from qskd.distiller import Distiller
from qskd.errors import CheckpointError, ConfigError
from qskd.labels import LabelMap
from qskd.lessons.cached_teacher import CachedTeacher
from qskd.lessons.facts import TeacherFacts
from qskd.lessons.record import records_of
from qskd.losses.presets import PRESETS, build_terms, resolve
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.adapter import DetrAdapter, Need
from qskd.models.families import adapter_class
from qskd.models.loading import as_teacher
from qskd.teacher import TeacherSide, Teaching

METHODS = [name for name, settings in PRESETS.items() if settings.lapd.weight or settings.agfd.weight]
EXACT = {"rtol": 2e-6, "atol": 1e-6}


def adapter_of(name: str, seed: int, **changes: Any) -> DetrAdapter:
    torch.manual_seed(seed)
    model = MODELS[name](**changes).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # teacher and student are not one model
    return adapter_class(model.config.model_type)(model)


def pair_of(
    name: str, method: str, *, classes: tuple[str, ...] | None = None, options: dict[str, Any] | None = None
) -> tuple[TeacherSide, Distiller, LabelMap]:
    """A teacher, its student of fewer layers, and how their classes meet; the student's are ``classes``."""
    teacher = as_teacher(adapter_of(name, 1))
    student = adapter_of(name, 2, decoder_layers=2)
    names = classes or tuple(teacher.id2label[index] for index in range(len(teacher.id2label)))
    label_map = LabelMap.between(teacher.id2label, names)
    settings = resolve(method, options or {})
    built = build_terms(settings, student=student, teacher=teacher)
    terms = {key: term for key, (term, _) in built.items()}
    weights = {key: weight for key, (_, weight) in built.items()}
    criterion = None if student.trains_with == "own" else SetPredictionLoss.from_config(student.model.config)
    return (
        TeacherSide(teacher, label_map, settings.selection, terms),
        Distiller(student, criterion, terms, weights),
        label_map,
    )


def cached(side: TeacherSide, batch: Batch, dtype: torch.dtype = torch.float32, **options: Any) -> CachedTeacher:
    """The teacher's answers to each image alone, given again."""
    needs = frozenset(need for term in side.terms.values() for need in term.needs)
    kept = []
    for index in range(len(batch)):
        one = image_of(batch, index, cropped=True)
        if batch.teacher_images is not None:
            theirs = batch.teacher_images
            one = replace(
                one, teacher_images=Images(theirs.pixels[index : index + 1], theirs.content[index : index + 1])
            )
        read = side.read(one, capture_attention=Need.ATTENTION in needs)
        kept += records_of(read, one.for_teacher().content, needs, dtype)
    content = SimpleNamespace(teacher=TeacherFacts.of(side.adapter), needs=needs)
    lessons = SimpleNamespace(read=lambda epoch, position: kept[position])
    cache: Any = SimpleNamespace(folder="cache", content=content, lessons=lessons)
    return CachedTeacher(cache, side.label_map, side.terms, **options)


def seen(batch: Batch) -> Batch:
    return replace(batch, variations=tuple((0, position) for position in range(len(batch))))


def losses(distiller: Distiller, batch: Batch, teaching: Teaching) -> dict[str, float]:
    """All weighted parts of the student's terms, and the gradient's norm."""
    totals = distiller.totals([batch], [teaching])
    parts = {name: distiller.one_term(batch, totals, teaching, name) for name in distiller.terms}
    learning = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(sum(parts.values()), learning, allow_unused=True)
    norm = torch.stack([grad.double().square().sum() for grad in gradients if grad is not None]).sum().sqrt()
    found = {name: float(part.detach()) for name, part in parts.items()}
    return (
        found
        | {f"total {name}": value.sum().item() for name, value in totals.terms.items()}
        | {"gradient": norm.item()}
    )


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *(("conditional_detr", method) for method in METHODS),  # the fastest
        ("deformable_detr-two-stage", "qskd"),
        ("deformable_detr-two-stage", "predictions"),
        ("rt_detr", "qskd"),
        ("rt_detr", "predictions"),
    ],
)
def test_losses_and_gradients_are_those_of_the_teacher_in_memory(family, method):
    side, distiller, _ = pair_of(family, method)
    batch = seen(random_batch([size_for(family)] * 3, (3, 0, 1)))
    expected = losses(distiller, batch, side.teach(batch))
    assert losses(distiller, batch, cached(side, batch).teach(batch)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert any(expected[name] > 0 for name in distiller.terms)


@pytest.mark.parametrize(
    "options",
    [
        {"lapd.scope": "index"},
        {"lapd.scope": "image", "lapd.top_up": False, "lapd.layers": "last"},
        {"lapd.weight_by_giou": True, "agfd.norm_per_level": True, "selection.cap": 2},
    ],
)
@pytest.mark.parametrize("family", ["conditional_detr", "rt_detr"])
def test_so_they_are_with_options_that_no_preset_has(family, options):
    side, distiller, _ = pair_of(family, "qskd", options=options)
    batch = seen(random_batch([size_for(family)] * 3, (3, 0, 1)))
    expected = losses(distiller, batch, side.teach(batch))
    assert losses(distiller, batch, cached(side, batch).teach(batch)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("family", ["conditional_detr", "deformable_detr", "dab-detr"])
def test_so_they_are_where_images_of_several_sizes_are_padded(family):
    side, distiller, _ = pair_of(family, "qskd")
    stop_leaks_from_padding(side.adapter.model)
    batch = seen(random_batch(((64, 128), (128, 64), (64, 64)), (2, 1, 3)))
    expected = losses(distiller, batch, side.teach(batch))
    assert losses(distiller, batch, cached(side, batch).teach(batch)) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [
        ("conditional_detr", torch.float16, 2e-3),
        ("conditional_detr", torch.bfloat16, 1e-2),
        ("deformable_detr", torch.float16, 2e-3),
        ("rt_detr", torch.float16, 2e-3),
    ],
)
def test_half_precision_changes_losses_little(family, dtype, tolerance):
    side, distiller, _ = pair_of(family, "qskd")
    batch = seen(random_batch([size_for(family)] * 2, (3, 2)))
    expected = losses(distiller, batch, side.teach(batch))
    found = losses(distiller, batch, cached(side, batch, dtype).teach(batch))
    assert found == pytest.approx(expected, rel=tolerance)
    assert found != expected


@pytest.mark.parametrize("family", ["detr", "rt_detr"])  # softmax and sigmoid
def test_a_class_that_the_teacher_lacks_is_left_out_as_ever(family):
    side, distiller, label_map = pair_of(family, "qskd", classes=("blob", "LABEL_1", "LABEL_3", "LABEL_2", "LABEL_0"))
    assert not all(label_map.known)
    batch = random_batch([size_for(family)] * 3, (3, 2, 1))
    labels = torch.tensor([[0, 1, 4], [0, 0, 0], [2, 0, 0]])  # of the second image the teacher knows nothing
    targets = Targets(labels, batch.targets.boxes, batch.targets.is_object, batch.targets.counts)
    batch = seen(replace(batch, targets=targets))
    live, kept = side.teach(batch), cached(side, batch).teach(batch)
    assert torch.equal(live.columns, kept.columns)
    assert torch.equal(live.lesson.others, kept.lesson.others)
    assert losses(distiller, batch, kept) == pytest.approx(losses(distiller, batch, live), rel=1e-5)


def test_a_teacher_of_another_image_size_is_met_where_its_images_lie():
    side, distiller, _ = pair_of("conditional_detr", "qskd")
    batch = random_batch(((64, 96), (64, 96)), (2, 1))
    larger = torch.nn.functional.interpolate(batch.pixels, scale_factor=2.0)
    batch = seen(replace(batch, teacher_images=Images(larger, batch.content * 2)))
    live, kept = side.teach(batch), cached(side, batch, own_size=True).teach(batch)
    assert kept.lesson.content.tolist() == [[128, 192]] * 2
    assert losses(distiller, batch, kept) == pytest.approx(losses(distiller, batch, live), rel=1e-5)


@pytest.mark.parametrize("family", ["conditional_detr", "deformable_detr", "rt_detr"])
def test_nothing_is_read_back_from_the_device_that_a_lesson_is_sent_to(family):
    side, distiller, _ = pair_of(family, "qskd")
    batch = seen(random_batch([size_for(family)] * 2, (2, 1), padded=False))
    teacher = cached(side, batch)
    teaching = teacher.teach(batch.to("meta"))  # whoever asks a tensor there for a number gets an error
    distiller.totals([batch], [teaching])
    assert teaching.lesson.view.logits.device.type == teaching.prepared["agfd"].amount.device.type == "meta"


def test_lessons_do_not_depend_on_what_else_is_in_the_batch():
    side, _, _ = pair_of("conditional_detr", "predictions")
    batch = seen(random_batch(((64, 96), (64, 96), (64, 96)), (3, 0, 2)))
    teacher = cached(side, batch)
    whole = teacher.teach(batch).prepared["lapd"]
    apart = [teacher.teach(replace(image_of(batch, at), variations=((0, at),))).prepared["lapd"] for at in range(3)]
    torch.testing.assert_close(whole.amount, torch.stack([one.amount for one in apart]).sum(0), **EXACT)
    for at, one in enumerate(apart):
        count = batch.targets.counts[at]
        torch.testing.assert_close(whole.tensors["boxes"][:, at, :count], one.tensors["boxes"][:, 0, :count])


def test_images_without_objects_alone_make_a_lesson_of_nothing():
    side, distiller, _ = pair_of("conditional_detr", "qskd")
    batch = seen(random_batch(((64, 96), (64, 96)), (0, 0)))
    found = losses(distiller, batch, cached(side, batch).teach(batch))
    assert found == losses(distiller, batch, side.teach(batch))
    assert found["lapd"] == found["agfd"] == 0.0


def test_records_of_other_objects_are_refused():
    side, _, _ = pair_of("conditional_detr", "qskd")
    batch = seen(random_batch(((64, 96), (64, 96)), (2, 1)))
    teacher = cached(side, batch)
    with pytest.raises(CheckpointError, match=r"image 0 had 1 objects, and has 2 now"):
        teacher.teach(replace(batch, variations=((0, 1), (0, 0))))


def test_objects_that_were_elsewhere_are_noticed_and_rounding_is_not():
    side, _, _ = pair_of("conditional_detr", "qskd")
    batch = seen(random_batch(((64, 96), (64, 96)), (2, 1)))
    teacher = cached(side, batch)
    batch.targets.boxes[1, 0, 0] += 1e-6
    teacher.teach(batch)
    batch.targets.boxes[1, 0, 0] += 1e-3
    with pytest.raises(CheckpointError, match=r"in epoch 0, image 1 had its objects elsewhere.*`qskd cache`"):
        teacher.teach(batch)


def test_images_without_annotations_are_refused():
    side, _, _ = pair_of("conditional_detr", "qskd")
    batch = random_batch()
    with pytest.raises(ConfigError, match="leave out --unlabeled"):
        cached(side, batch).label(batch, 0.5, sample=None)
