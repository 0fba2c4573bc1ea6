"""Images without annotations: the stream, the teacher's labels on them, and a step that learns from both kinds."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qskd
from builders import MODELS, NUM_CLASSES, batch_for
from builders_runs import edited, tiny_run
from builders_views import random_view
from qskd.data.transforms import Augmentation, ImageSize, build_transform
from qskd.data.unlabeled import EndlessSampler, UnlabeledDataset, open_unlabeled, unlabeled_loader
from qskd.distiller import Distiller
from qskd.errors import ConfigError, DataError, NonFiniteLoss
from qskd.labels import LabelMap
from qskd.losses.presets import build_terms, resolve
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.families import adapter_class
from qskd.models.loading import as_teacher
from qskd.models.view import DetrView
from qskd.selection.confident import confident, drawn
from qskd.teacher import TeacherSide

TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a.png", "sub/b.jpg", "c d.png", "é.png", "z.png"):
        path = tmp_path / "plain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(path)
    (tmp_path / "plain" / "notes.txt").write_text("no image")
    return tmp_path / "plain"


def dataset(folder, seed=3):
    index = open_unlabeled(folder, ["x", "y"])
    transform = build_transform(ImageSize(square=32), train=True, augment=Augmentation(crop=1.0, flip=0.5))
    return UnlabeledDataset(index, transform, seed)


# ---- the stream ----------------------------------------------------------------------------------------------


def test_every_round_holds_every_image_once_in_another_order():
    numbers = list(itertools.islice(EndlessSampler(7, 5), 28))
    rounds = [[number % 7 for number in numbers[start : start + 7]] for start in range(0, 28, 7)]
    assert all(sorted(one) == list(range(7)) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert [number // 7 for number in numbers] == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7


def test_processes_share_the_numbers_and_a_start_continues_them():
    whole = list(itertools.islice(EndlessSampler(7, 5), 24))
    first, second = (list(itertools.islice(EndlessSampler(7, 5, rank=rank, world=2), 12)) for rank in range(2))
    assert [number for pair in zip(first, second, strict=True) for number in pair] == whole
    assert list(itertools.islice(EndlessSampler(7, 5, start=10), 14)) == whole[10:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_taken_up_later_gives_the_same_batches(folder, workers):
    data = dataset(folder)
    whole = list(itertools.islice(unlabeled_loader(data, 3), 6))
    later = list(itertools.islice(unlabeled_loader(data, 3, past=4, workers=workers), 2))
    for batch, again in zip(whole[4:], later, strict=True):
        assert batch.image_ids == again.image_ids
        assert torch.equal(batch.pixels, again.pixels)
    assert all(batch.targets.total == 0 for batch in whole)


def test_an_image_looks_another_way_in_the_next_round(folder):
    data = dataset(folder)
    assert not torch.equal(data[1].pixels, data[1 + len(data.index)].pixels)
    assert torch.equal(data[1].pixels, data[1].pixels)


def test_bad_folders_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        open_unlabeled(tmp_path / "nowhere", ["x"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_unlabeled(tmp_path / "empty", ["x"])
    (folder / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        open_unlabeled(folder, ["x"])


# ---- the teacher's labels ------------------------------------------------------------------------------------


def view_of(logits: list[list[float]], boxes: list[list[float]]) -> DetrView:
    """One image, one layer."""
    base = random_view(layers=1, images=1, queries=len(boxes), classes=len(logits[0]))
    given = {"logits": torch.tensor(logits)[None, None], "boxes": torch.tensor(boxes)[None, None]}
    return DetrView(**{**{name: getattr(base, name) for name in base.__dataclass_fields__}, **given})


def test_confident_detections_by_hand():
    box, near, far = [0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.1, 0.2, 0.4, 0.2]
    logits = [[3.0, -3.0], [2.0, -3.0], [-3.0, 1.0], [-1.0, -1.0], [-3.0, 2.5]]
    targets, scores = confident(view_of(logits, [box, near, far, box, near]), 0.6)
    # The second is the first again; the fourth is not sure; the fifth is of another class.
    assert targets.labels.tolist() == [[0, 1, 1]]
    assert targets.counts == (3,)
    expected = [torch.tensor(value).sigmoid().item() for value in (3.0, 2.5, 1.0)]
    assert scores[0].tolist() == pytest.approx(expected)
    assert targets.boxes[0, 0].tolist() == pytest.approx(box)
    assert targets.boxes[0, 2].tolist() == pytest.approx([0.15, 0.2, 0.3, 0.2])  # cut at the border


def test_nothing_sure_is_no_object():
    targets, scores = confident(view_of([[-5.0, -5.0]], [[0.5, 0.5, 0.2, 0.2]]), 0.5)
    assert targets.counts == (0,)
    assert scores[0].shape == (0,)


def pair(teacher_family: str, student_family: str, method: str = "qskd") -> tuple[TeacherSide, Distiller]:
    torch.manual_seed(0)
    teacher = as_teacher(adapter_class(teacher_family)(MODELS[teacher_family]()))
    student = adapter_class(student_family)(MODELS[student_family]())
    names = {index: f"class {index}" for index in range(NUM_CLASSES)}
    settings = resolve(method if set(teacher.strides) & set(student.strides) else "predictions")
    built = build_terms(settings, student=student, teacher=teacher)
    terms = {name: term for name, (term, _) in built.items()}
    side = TeacherSide(teacher, LabelMap.between(names, list(names.values())), settings.selection, terms)
    criterion = SetPredictionLoss.from_config(student.model.config) if student.trains_with != "own" else None
    return side, Distiller(student, criterion, terms, {name: weight for name, (_, weight) in built.items()})


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("family", ["detr", "deformable_detr", "rt_detr", "d_fine", "lw_detr"])
def test_a_step_adds_the_parts_of_both_kinds_of_images(family, sample):
    assert family in MODELS
    side, distiller = pair("rt_detr", family)
    batch, more = batch_for("rt_detr", (2, 1), seed=1), batch_for("rt_detr", (0, 0), seed=2)
    teaching = side.teach(batch)
    given = side.label(more, 0.05, sample=torch.Generator() if sample else None)
    assert given.batch.targets.total > 0
    assert (given.detected is not None) == sample
    learnt = [batch, *([given.detected] if given.detected else [])]
    totals = distiller.totals(learnt, [teaching, given.teaching])
    distiller.eval()
    alone = distiller(batch, totals, teaching)
    both = distiller(batch, totals, teaching, unlabeled=given)
    other = distiller._unlabeled(given, totals, 1.0)
    assert both["loss"].item() == pytest.approx(alone["loss"].item() + other[0].item(), rel=1e-4)
    for name, value in other[1].items():
        before = alone[name].item() if name in alone else 0.0
        assert both[name].item() == pytest.approx(before + value.item(), rel=1e-4, abs=1e-6)
    only = {name for name in other[1] if name.startswith(("lapd", "agfd"))}
    assert (set(other[1]) == only) != sample
    both["loss"].backward()


@pytest.mark.parametrize("family", ["conditional_detr", "rt_detr"])
def test_without_distillation_terms_the_detection_loss_alone_sees_them(family):
    side, distiller = pair(family, family, "none")
    batch, more = batch_for(family, (2, 1), seed=1), batch_for(family, (0, 0), seed=2)
    teaching, given = side.teach(batch), side.label(more, 0.05, sample=torch.Generator().manual_seed(1))
    totals = distiller.totals([batch, given.detected], [teaching, given.teaching])
    distiller.eval()
    both = distiller(batch, totals, teaching, unlabeled=given)
    expected = sum(distiller(one, totals)["loss"].item() for one in (batch, given.detected))
    assert both["loss"].item() == pytest.approx(expected, rel=1e-4)
    both["loss"].backward()


def test_sampled_objects_are_as_frequent_as_the_teacher_is_sure():
    side, _ = pair("rt_detr", "rt_detr")
    batch = batch_for("rt_detr", (0, 0), seed=2)
    generator = torch.Generator().manual_seed(0)
    targets, scores = confident(side._view(batch, capture_attention=False), 0.05)
    counts = [drawn(targets, scores, generator).total for _ in range(300)]
    assert sum(counts) / len(counts) == pytest.approx(sum(score.sum().item() for score in scores), rel=0.1)
    given = side.label(batch, 0.05, sample=torch.Generator().manual_seed(0))
    assert given.batch.targets.total == sum(len(score) for score in scores)
    assert given.detected.targets.total == counts[0]


# ---- whole runs ----------------------------------------------------------------------------------------------


def options(folder, scenes, unlabeled, **changes):
    given = {"teacher": TEACHER, "student_decoder_layers": 1, "per_device_train_batch_size": 2, "preflight": False}
    return tiny_run(folder, scenes, max_steps=2) | given | {"unlabeled": unlabeled} | changes


def test_a_run_learns_from_both_and_a_resumed_one_goes_on_alike(folder, scenes, tmp_path):
    common = {"unlabeled_threshold": 0.2, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    whole = qskd.distill(**options(tmp_path / "whole", scenes, folder, max_steps=4, **common))
    plain = qskd.distill(**options(tmp_path / "plain", scenes, None, max_steps=4, logging_steps=1))
    checkpoint = sorted((whole.folder / "checkpoints").iterdir())[0]
    again = qskd.distill(
        **options(tmp_path / "again", scenes, folder, max_steps=4, resume_from_checkpoint=str(checkpoint), **common)
    )

    def losses(run):
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss"] for row in rows if "loss" in row and "grad_norm" in row}

    # As many images a step, in other portions: the same run, and it is over already.
    portions = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    finished = options(tmp_path / "portions", scenes, folder, resume_from_checkpoint=str(checkpoint), **common)
    assert qskd.distill(**(finished | portions)).summary["steps"] == 2
    assert losses(whole)[1] != losses(plain)[1]
    assert losses(again)[4] == pytest.approx(losses(whole)[4], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"unlabeled_threshold": 1.0}, ConfigError, "--unlabeled_threshold is 1.0"),
        ({"unlabeled_batch_size": 0}, ConfigError, "--unlabeled_batch_size is 0"),
        ({"unlabeled": "nowhere"}, DataError, "nowhere is not a folder"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(folder, scenes, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        qskd.distill(**options(tmp_path / "run", scenes, folder) | changes)


def calls_of(monkeypatch, name):
    """The keywords of every call of a teacher's method from now on."""
    calls, method = [], getattr(TeacherSide, name)

    def noted(*given, **keywords):
        calls.append(keywords)
        return method(*given, **keywords)

    monkeypatch.setattr(TeacherSide, name, noted)
    return calls


def test_they_may_be_all_that_the_teacher_is_asked_about(folder, scenes, tmp_path, monkeypatch, capsys):
    given = options(tmp_path / "run", scenes, folder, method="none", preflight=True, unlabeled_threshold=0.2)
    taught, labelled = calls_of(monkeypatch, "teach"), calls_of(monkeypatch, "label")
    run = qskd.distill(**given)
    assert all(call["sample"] is not None for call in labelled)
    assert "the teacher lacks a class" not in capsys.readouterr().out
    assert run.summary["steps"] == 2
    assert len(taught) == 3  # of the preflight alone: no term reads what it says of labelled images
    with pytest.raises(ConfigError, match="--unlabeled images would teach nothing"):
        qskd.distill(**given | {"output_dir": tmp_path / "off", "unlabeled_detection": "off"})


def test_a_class_that_the_teacher_lacks_is_not_unlearnt_on_them(folder, scenes, tmp_path, capsys, monkeypatch):
    def renamed(content):
        content["categories"][0]["name"] = "strange"

    data = edited(scenes, tmp_path / "data", renamed, "train", "val")
    asked = calls_of(monkeypatch, "label")
    qskd.distill(**options(tmp_path / "lacking", data, folder, unlabeled_threshold=0.2, max_steps=1))
    assert [call["sample"] for call in asked] == [None]
    assert "warning: the teacher lacks a class, whose objects would be background" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"would teach nothing.* the teacher lacks a class"):
        qskd.distill(**options(tmp_path / "none", data, folder, method="none"))


def test_a_loss_that_is_not_finite_names_and_keeps_them_too(folder, scenes, tmp_path):
    with pytest.raises(NonFiniteLoss) as caught:
        qskd.distill(**options(tmp_path / "run", scenes, folder, max_steps=3, learning_rate=1e30))
    (path,) = (tmp_path / "run").glob("nonfinite_step*.pt")
    kept = torch.load(path, weights_only=True)
    assert kept["unlabeled"]["pixels"].shape == kept["pixels"].shape
    assert not torch.equal(kept["unlabeled"]["pixels"], kept["pixels"])
    names = ("a.png", "sub/b.jpg", "c d.png", "é.png", "z.png")
    assert sum(str(folder / name) in str(caught.value) for name in names) == 2


def test_validation_images_among_the_unlabelled_are_told(scenes, tmp_path, capsys):
    qskd.distill(**options(tmp_path / "run", scenes, scenes / "images" / "val", max_steps=1))
    assert "6 of the unlabelled images are validation images" in capsys.readouterr().out
