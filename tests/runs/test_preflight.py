"""Each check by itself; that a run makes them, and stops, is tested in ``test_distilling.py``."""

from contextlib import nullcontext

import pytest
import torch

from builders_runs import NAMES, edited, without_objects
from builders_trainer import adapter_of, dataset, trainer_of
from qskd.distiller import Distiller
from qskd.errors import PreflightError
from qskd.labels import LabelMap
from qskd.losses.presets import MethodSettings, build_terms, resolve
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.loading import as_teacher
from qskd.runs import preflight
from qskd.runs.preflight import Preflight, TermCheck, check_teacher, check_terms, sample_batch, time_step
from qskd.teacher import TeacherSide

KNOWN = [True] * len(NAMES)


def sides(settings: MethodSettings, student="detr", **options) -> tuple[Distiller, TeacherSide]:
    pupil, master = adapter_of(student), as_teacher(adapter_of(student, decoder_layers=2))
    built = build_terms(settings, student=pupil, teacher=master)
    terms = {name: term for name, (term, _) in built.items()}
    criterion = SetPredictionLoss.from_config(pupil.model.config) if pupil.trains_with != "own" else None
    weights = {name: weight for name, (_, weight) in built.items()}
    side = TeacherSide(master, LabelMap.between(master.id2label, NAMES), settings.selection, terms)
    return Distiller(pupil, criterion, terms, weights, **options), side


def checked(scenes, settings=None, *, same=False, **options) -> list[TermCheck]:
    batch = sample_batch(dataset(scenes, "train"), 4, KNOWN)
    return check_terms(*sides(settings or resolve("qskd"), **options), batch, same_weights=same, autocast=nullcontext)


@pytest.mark.parametrize(("ap50", "is_good"), [(0.0, False), (0.0499, False), (0.05, True), (0.9, True)])
def test_a_teacher_must_be_clearly_better_than_nothing(ap50, is_good):
    if is_good:
        check_teacher({"AP50": ap50}, 200)
        return
    with pytest.raises(PreflightError) as caught:
        check_teacher({"AP50": ap50}, 200)
    said = str(caught.value)
    assert f"AP50 {100 * ap50:.1f} on 200 validation images" in said
    for advice in ("these classes", "preprocessor_config.json", "--teacher_box_frame", "qskd train", "--no-preflight"):
        assert advice in said


def test_every_term_is_checked_alive(scenes):
    found = checked(scenes)
    assert [check.name for check in found] == ["detection", "lapd", "agfd"]
    assert all(check.value > 0 and check.gradient_norm > 0 for check in found)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"lapd.class_weight": 0, "lapd.box_weight": 0, "lapd.giou_weight": 0}, "lapd"),
        ({"agfd.weight": 1e39}, "agfd"),
    ],
    ids=["zero", "beyond-float32"],
)
def test_a_term_that_would_teach_nothing_is_refused_by_name(scenes, change, name):
    with pytest.raises(PreflightError, match=f"'{name}' is (0.0|inf) with gradient norm"):
        checked(scenes, resolve("qskd", change))


def test_a_detection_loss_that_was_switched_off_is_not_missed(scenes):
    assert [check.name for check in checked(scenes, detection_weight=0.0)] == ["lapd", "agfd"]


def test_a_student_with_its_teachers_weights_may_agree_with_it(scenes):
    nothing = resolve("qskd", {"lapd.class_weight": 0, "lapd.box_weight": 0, "lapd.giou_weight": 0})
    assert checked(scenes, nothing, same=True)[1].value == 0.0


@pytest.mark.parametrize(("name", "is_allowed"), [("agfd", True), ("feature", True), ("lapd", False)])
def test_features_may_begin_equal_where_the_encoder_is_the_teachers(monkeypatch, scenes, name, is_allowed):
    """As of an RF-DETR with fewer decoder layers, in which nothing is drawn at random."""
    monkeypatch.setattr(
        "qskd.runs.preflight._value_and_gradient", lambda *given: (0.0 if given[-1] == name else 1.0, 1.0)
    )
    settings = resolve("unmasked_features" if name == "feature" else "qskd")
    batch = sample_batch(dataset(scenes, "train"), 4, KNOWN)
    given = {"same_weights": False, "autocast": nullcontext}
    if is_allowed:
        assert check_terms(*sides(settings), batch, begins_alike=True, **given)
    for begins_alike in {False, not is_allowed}:
        with pytest.raises(PreflightError, match=f"'{name}' is 0.0"):
            check_terms(*sides(settings), batch, begins_alike=begins_alike, **given)


def test_weights_that_are_not_finite_are_refused(scenes):
    settings = resolve("qskd")
    distiller, side = sides(settings)
    with torch.no_grad():
        next(distiller.student.parameters()).fill_(float("inf"))
    batch = sample_batch(dataset(scenes, "train"), 4, KNOWN)
    with pytest.raises(PreflightError, match=r"'detection' is nan .* Check the weights of teacher and student"):
        check_terms(distiller, side, batch, same_weights=False, autocast=nullcontext)


@pytest.mark.parametrize("check", ["terms", "time", "time with unlabelled images"])
def test_a_check_leaves_no_trace(scenes, check):
    """RT-DETR: batch norms that learn, denoising that draws random numbers."""
    distiller, side = sides(resolve("qskd"), "rt_detr")
    distiller.eval()
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    batch, state = sample_batch(dataset(scenes, "train"), 4, KNOWN), torch.get_rng_state()
    if check == "terms":
        check_terms(distiller, side, batch, same_weights=False, autocast=nullcontext)
    else:
        labelled = []

        def label():
            labelled.append(side.label(batch, 0.05, sample=torch.Generator().manual_seed(0)))
            return labelled[-1]

        has_more = check != "time"
        assert time_step(distiller, side, batch, nullcontext, label if has_more else None) > 0
        assert len(labelled) == 2 * has_more
    assert all(torch.equal(before[name], tensor) for name, tensor in distiller.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in distiller.parameters())
    assert not distiller.training


def test_the_sample_is_made_of_images_with_objects(scenes, tmp_path):
    def empty_first(content):
        gone = {image["id"] for image in content["images"][:5]}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] not in gone]

    data = dataset(edited(scenes, tmp_path / "some", empty_first, "train"), "train")
    first = [record.id for record in data.index.images[:5]]
    batch = sample_batch(data, 4, KNOWN)
    assert len(batch) == 4
    assert not set(batch.image_ids) & set(first)
    nothing = dataset(edited(scenes, tmp_path / "none", without_objects, "train"), "train")
    with pytest.raises(PreflightError, match="No training image holds an object"):
        sample_batch(nothing, 4, KNOWN)


def test_the_sample_holds_classes_that_the_teacher_knows(scenes, tmp_path):
    """Sorted by class: the first images show only what the teacher has never seen."""

    def sorted_by_class(content):
        first = {image["id"] for image in content["images"][:12]}
        for row in content["annotations"]:
            row["category_id"] = 1 if row["image_id"] in first else 2

    data = dataset(edited(scenes, tmp_path / "data", sorted_by_class, "train"), "train")
    batch = sample_batch(data, 3, [False] + [True] * (len(NAMES) - 1))
    assert {record.id for record in data.index.images[:12]}.isdisjoint(batch.image_ids)
    with pytest.raises(PreflightError, match="of a class that the teacher knows"):
        sample_batch(data, 3, [False, False] + [True] * (len(NAMES) - 2))


def test_the_report_says_what_was_found():
    found = Preflight(
        LabelMap.between({0: "cat", 1: "owl"}, ["owl", "dog"]),
        {"AP": 0.1234, "AP50": 0.5},
        200,
        [TermCheck("agfd", 1.5, 0.25)],
        seconds_per_step=0.5,
        total_steps=10_000,
        peak_memory_gib=1.26,
        warnings=["something"],
    )
    assert found.lines() == [
        "preflight",
        "  labels: the teacher knows 1 of 2 classes",
        "  teacher: AP 12.3, AP50 50.0 on 200 validation images",
        "  agfd         1.5  gradient       0.25",
        "  time: about 83 min for 10000 steps (0.50 s each), peak memory 1.3 GiB",
        "  warning: something",
    ]
    assert found.as_dict()["estimated_seconds"] == 5000.0
    found.peak_memory_gib = float("nan")  # where nobody counts it; JSON knows no NaN
    assert found.as_dict()["peak_memory_gib"] is None
    assert preflight.peak_memory_gib() > 0.1


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"num_train_epochs": 2}, 8),  # 16 images in batches of 4
        ({"num_train_epochs": 2, "per_device_train_batch_size": 3}, 12),  # the sixth batch holds one image
        ({"num_train_epochs": 2, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}, 4),
        ({"num_train_epochs": 0.5, "per_device_train_batch_size": 3}, 3),
    ],
)
def test_the_number_of_steps_is_that_of_the_trainer(scenes, tmp_path, options, steps):
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), **({"max_steps": -1} | options))
    assert trainer.args.steps_for(16) == steps
    _, _, _, _, _, _, max_steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert max_steps == steps
