"""`distill` from options to a finished folder, its checks, and students of every kind."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch

import qskd
from builders_runs import NAMES, edited, entries_of, tiny_run, without_objects
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError, DataError, LabelMapError, PreflightError, UnsupportedFamily
from qskd.evaluation.kept import KeptDetections
from qskd.models.deriving import derive_student
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.loading import as_teacher, load_model
from qskd.models.processors import save_model
from qskd.models.shaping import StudentShape
from qskd.runs import evaluating
from qskd.runs.options import PairOptions
from qskd.runs.starting import make_student

TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"


def options(folder, scenes, **changes):
    """A teacher that is good enough for the preflight, and a student derived from it."""
    given = {"teacher": TEACHER, "student_decoder_layers": 1, "max_steps": 1, "per_device_train_batch_size": 2}
    return tiny_run(folder, scenes) | given | changes


def tiny(folder, scenes, models, **changes):
    """Random models, so without preflight."""
    given = {"teacher": models["rt_detr_teacher"], "student": models["rt_detr_student"], "preflight": False}
    return tiny_run(folder, scenes, max_steps=1) | given | changes


@pytest.fixture(scope="module")
def checked(scenes, tmp_path_factory):
    """A run with everything: preflight, a derived student, evaluation; the data has a class the teacher lacks."""
    folder = tmp_path_factory.mktemp("distilled")

    def rename(content):
        content["categories"][0]["name"] = "blob"

    data = edited(scenes, folder / "data", rename, "train", "val")
    return qskd.distill(**options(folder / "run", data, eval_strategy="epoch", save_strategy="epoch"))


def test_a_finished_run_leaves_its_folder_as_promised(checked):
    names = {path.name for path in checked.folder.iterdir()}
    assert names == {
        "best",
        "checkpoints",
        "config.yaml",
        "eval",
        "label_map.json",
        "last",
        "metrics.jsonl",
        "preflight.json",
        "summary.json",
    }


@pytest.mark.parametrize("sample", [200, 3], ids=["preflight saw all images", "preflight saw some"])
def test_the_teacher_is_asked_once_and_its_detections_are_kept(scenes, tmp_path, monkeypatch, sample):
    monkeypatch.setattr("qskd.runs.preflight.TEACHER_IMAGES", sample)
    asked, kinds = [], set()
    measure = evaluating.evaluate_keeping

    def counted(*arguments, **named):
        asked.append(named.get("first"))
        kinds.update(type(module).__name__ for module in arguments[0].model.modules())
        return measure(*arguments, **named)

    monkeypatch.setattr("qskd.runs.given_teacher.evaluate_keeping", counted)
    run = qskd.distill(**options(tmp_path / "run", scenes))
    assert asked == ([6] if sample == 200 else [3, None])
    assert not any("BatchNorm2d" in kind for kind in kinds)  # an engine answered, but the cost is the plain model's
    plain = load_model(TEACHER).model
    assert run.summary["teacher"]["cost"]["parameters"] == sum(one.numel() for one in plain.parameters())
    assert run.summary["teacher"]["fingerprint"] == weights_fingerprint(plain)
    kept = KeptDetections.load(tmp_path / "run" / "eval" / "teacher_detections.npz")
    assert len(kept.state.image_ids) == 6
    assert int(kept.state.counts.sum()) == run.summary["teacher"]["metrics"]["num_detections"]


def test_the_model_that_the_engine_is_a_copy_of_is_let_go_of_before_training(scenes, tmp_path, monkeypatch):
    models = []

    def opened(adapter):
        models.append(weakref.ref(adapter.model))
        return as_teacher(adapter)

    def run(job, *arguments, **named):
        gc.collect()
        assert [model() for model in models] == [None]
        assert named["extra"]["teacher"]["cost"]["parameters"] > 0
        return "trained"

    monkeypatch.setattr("qskd.runs.distilling.as_teacher", opened)
    monkeypatch.setattr("qskd.runs.distillation.Distillation.run", run)
    assert qskd.distill(**options(tmp_path / "run", scenes, preflight=False)) == "trained"


def test_the_label_map_says_which_class_is_which(checked):
    found = json.loads((checked.folder / "label_map.json").read_text())
    classes = ["blob", *NAMES[1:]]
    teacher = load_model(TEACHER).id2label
    assert [row["student"] for row in found["classes"]] == classes
    assert [row["teacher"] for row in found["classes"]] == [None, *NAMES[1:]]
    assert all(teacher[row["teacher_index"]] == row["student"] for row in found["classes"][1:])
    assert found["unmatched_teacher"] == [NAMES[0]]


def test_the_preflight_is_saved(checked):
    found = json.loads((checked.folder / "preflight.json").read_text())
    assert found["teacher"]["images"] == 6
    assert found["teacher"]["AP50"] > 0.05
    assert [term["name"] for term in found["terms"]] == ["detection", "lapd", "agfd"]
    assert found["estimated_seconds"] == found["seconds_per_step"] > 0  # one step
    assert found["warnings"] == ["classes unknown to the teacher are learnt from the labels alone"]


def test_the_summary_tells_of_teacher_and_student(checked):
    summary = json.loads((checked.folder / "summary.json").read_text())
    assert (summary["kind"], summary["method"], summary["family"]) == ("distill", "qskd", "rt_detr")
    teacher = load_model(TEACHER).model
    assert summary["start"]["weights"] == f"weights of teacher {weights_fingerprint(teacher)[:12]}"
    assert summary["teacher"]["fingerprint"] == weights_fingerprint(teacher)
    assert summary["teacher"]["cost"]["parameters"] == sum(parameter.numel() for parameter in teacher.parameters())
    assert summary["cost"]["parameters"] < summary["teacher"]["cost"]["parameters"]
    found = json.loads((checked.folder / "preflight.json").read_text())["teacher"]
    assert summary["teacher"]["metrics"]["AP"] == found["AP"]  # measured once: the sample was the whole split


def test_the_derived_student_is_a_whole_model_of_its_own(checked):
    student = load_model(checked.model)
    assert student.num_layers == 1
    assert tuple(student.id2label.values()) == ("blob", *NAMES[1:])
    assert {"lapd_box", "agfd"} <= entries_of(checked.folder)[0].keys()


def test_a_derived_student_begins_with_the_teachers_weights_or_without():
    teacher = load_model(TEACHER)
    kept = {}
    for inherit in (True, False):
        pair = PairOptions(student_num_queries=7, student_encoder_layers=1, inherit=inherit)
        student, notes, _ = make_student(pair, teacher, NAMES[:3], seed=1)
        assert (student.num_queries, tuple(student.id2label.values())) == (7, NAMES[:3])
        assert notes[0] == "the student, derived from the teacher"
        ours, theirs = student.model.state_dict(), teacher.model.state_dict()
        kept[inherit] = [name for name in ours if "conv" in name and name.endswith("weight") and name in theirs]
        kept[inherit] = [name for name in kept[inherit] if torch.equal(ours[name], theirs[name])]
    assert len(kept[True]) > 10
    assert not [name for name in kept[False] if theirs[name].ndim > 1]


def test_a_student_from_a_configuration_begins_as_it_would_without_a_teacher(scenes, tiny_folders, tmp_path):
    config = tmp_path / "student.json"
    config.write_text((tiny_folders["detr_student"] / "config.json").read_text())
    given = {"teacher": tiny_folders["detr_teacher"], "student": config, "inherit": False, "learning_rate": 0.0}
    taught = qskd.distill(**tiny(tmp_path / "taught", scenes, tiny_folders, **given))
    plain = qskd.train(model=config, **tiny_run(tmp_path / "plain", scenes, max_steps=1, learning_rate=0.0))
    one, other = (load_model(made.model).model for made in (taught, plain))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_teacher_and_student_of_other_families_and_files_instead_of_a_folder(scenes, tiny_folders, tmp_path):
    files = {
        f"{split}_{what}": scenes / path
        for split in ("train", "val")
        for what, path in (("annotations", f"annotations/instances_{split}.json"), ("images", f"images/{split}"))
    }
    models = {"teacher": tiny_folders["deformable_teacher"], "student": tiny_folders["detr_student"]}
    made = qskd.distill(**tiny(tmp_path, scenes, tiny_folders, data=None, image_size=128, **models, **files))
    assert made.summary["family"] == "detr"
    assert made.metrics["num_images"] == 6


def test_a_teacher_given_as_its_own_student_is_warned_of(scenes, tiny_folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("qskd.runs.preflight.WORST_AP50", 0.0)  # the tiny models are random
    student = tiny_folders["detr_student"]
    qskd.distill(**tiny(tmp_path, scenes, tiny_folders, teacher=student, student=student, preflight=True))
    assert "warning: teacher and student have the same weights" in capsys.readouterr().out


def test_a_run_goes_on_with_the_precision_and_frame_that_its_teacher_began_with(scenes, tiny_folders, tmp_path):
    asked = {"teacher_precision": "bfloat16", "save_strategy": "steps", "save_steps": 1}
    given = tiny(tmp_path / "run", scenes, tiny_folders, **asked)
    qskd.distill(**given)
    with pytest.raises(CheckpointError, match="teacher precision is 'bfloat16', this run's is None"):
        qskd.distill(**(given | {"teacher_precision": "as_student", "resume_from_checkpoint": True, "max_steps": 2}))
    with pytest.raises(CheckpointError, match=r"its teacher's reading is .*'content'.*, this run's is .*'canvas'"):
        qskd.distill(**(given | {"teacher_box_frame": "canvas", "resume_from_checkpoint": True, "max_steps": 2}))


def test_a_derived_run_goes_on_with_the_start_that_it_had(scenes, tiny_folders, tmp_path):
    shape = {"student": None, "student_num_queries": 7, "save_strategy": "steps", "save_steps": 1}
    given = tiny(tmp_path / "run", scenes, tiny_folders, **shape)
    qskd.distill(**given)
    with pytest.raises(CheckpointError, match="begins anew"):
        qskd.distill(**(given | {"inherit": False, "resume_from_checkpoint": True, "max_steps": 2}))


def test_a_derived_run_whose_backbone_was_pretrained_goes_on_as_such(scenes, tiny_folders, tmp_path):
    """Without the weights its norms would learn, and the optimiser would have states for others."""
    teacher = load_model(tiny_folders["detr_teacher"])
    student, _ = derive_student(teacher, StudentShape(backbone_width=0.5), class_names=NAMES)
    backbone = save_model(student, tmp_path / "backbone", size=ImageSize(square=64))
    asked = {"method": "none", "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    shape = {"student": None, "student_backbone_width": 0.5}
    given = tiny(tmp_path / "run", scenes, tiny_folders, teacher=str(tiny_folders["detr_teacher"]), **shape, **asked)
    qskd.distill(**given, student_backbone_weights=str(backbone))
    with pytest.raises(CheckpointError, match="number of tensors that learn"):
        qskd.distill(**(given | {"resume_from_checkpoint": True, "max_steps": 2}))


def assert_refused(given, kind, told):
    """Refused before the first step; then, with the mistake mended, the same folder will do."""
    with pytest.raises(kind, match=told):
        qskd.distill(**given)
    folder = Path(given["output_dir"])
    assert {path.name for path in folder.glob("*")} <= {"label_map.json"}


def test_a_teacher_that_finds_nothing_is_refused_and_another_one_taken(scenes, tiny_folders, tmp_path):
    given = tiny(tmp_path / "run", scenes, tiny_folders, preflight=True)
    assert_refused(given, PreflightError, r"AP50 \d\.\d on 6 validation images.*--no-preflight")
    made = qskd.distill(**(given | {"teacher": TEACHER}))
    assert made.summary["steps"] == 1


ZERO = {"lapd_class_weight": "0", "lapd_box_weight": "0", "lapd_giou_weight": "0"}


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        (ZERO, PreflightError, "'lapd' is 0.0 with gradient norm 0.0: it would teach the student nothing"),
        ({"agfd_weight": "1e39"}, PreflightError, "'agfd' is inf"),
        ({"agfd_weight": "nan"}, ConfigError, "agfd.weight is nan; it must be finite"),
        ({"teacher": None}, ConfigError, "--teacher was not given"),
        ({"teacher": "teacher.json"}, ConfigError, "without weights; give a trained model"),
        ({"student": TEACHER}, ConfigError, "Give either --student, or --student_backbone .* not both"),
        ({"student_decoder_layers": None}, ConfigError, "No student: give --student .* --student_hidden_size 128"),
        ({"student_decoder_layers": 0}, ConfigError, "decoder_layers of a student is 0"),
        ({"student_hidden_size": 37, "student_decoder_layers": None}, ConfigError, "hidden_size 37 does not fit"),
        ({"method": "qkd"}, ConfigError, "There is no method 'qkd'. Methods: qskd"),
        ({"selection_cap": "few"}, ConfigError, "'selection.cap' is 'few'"),
        ({"image_size": 72}, ConfigError, "--image_size 72 is not a multiple of 32"),
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 64},
            ConfigError,
            "dataloader_drop_last drops all 16",
        ),
        ({"data": "nowhere"}, DataError, "'nowhere' is no folder here"),
        ({"selection_kap": "5"}, ConfigError, "no option 'selection_kap'. Did you mean 'selection_cap'"),
        ({"student_layers": 2}, ConfigError, "no option 'student_layers'"),
    ],
)
def test_bad_options_stop_the_run_before_it_begins(scenes, tmp_path, monkeypatch, changes, kind, told):
    monkeypatch.chdir(tmp_path)
    assert_refused(options(tmp_path / "run", scenes, **changes), kind, told)


def test_vocabularies_without_a_common_name_are_shown_side_by_side(scenes, tmp_path):
    def rename(content):
        for number, category in enumerate(content["categories"]):
            category["name"] = f"cell {number}"

    data = edited(scenes, tmp_path / "data", rename, "train", "val")
    with pytest.raises(LabelMapError, match="no class name in common") as caught:
        qskd.distill(**options(tmp_path / "run", data))
    lines = [" ".join(line.split()) for line in str(caught.value).splitlines()]
    assert f"cell 0 {NAMES[0]}" in lines
    assert "id2label" in str(caught.value)
    assert not list((tmp_path / "run").iterdir())


def test_data_without_any_object_teaches_nothing(scenes, tmp_path):
    data = edited(scenes, tmp_path / "data", without_objects, "train")
    assert_refused(options(tmp_path / "run", data), PreflightError, "No training image holds an object")


def test_validation_images_without_objects_are_warned_of(scenes, tiny_folders, tmp_path, capsys):
    data = edited(scenes, tmp_path / "data", without_objects, "val")
    made = qskd.distill(**tiny(tmp_path / "run", data, tiny_folders, preflight=True))
    assert "warning: no validation image holds an object" in capsys.readouterr().out
    assert made.summary["teacher"]["metrics"]["AP"] is None


def broken_folder(folder, spoil):
    shutil.copytree(TEACHER, folder)
    spoil(folder)
    return folder


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_folder_of_a_run_is_no_model_but_names_where_it_is(scenes, tmp_path):
    shutil.copytree(TEACHER, tmp_path / "run" / "best")
    with pytest.raises(CheckpointError, match=rf"no config.json. Give {tmp_path}/run/best, the model of this run"):
        qskd.distill(**options(tmp_path / "new", scenes, teacher=str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("spoil", "kind", "told"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), CheckpointError, "holds no weights"),
        (lambda folder: (folder / "config.json").unlink(), CheckpointError, "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), CheckpointError, "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), CheckpointError, "cannot be loaded"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), CheckpointError, "is no JSON"),
        (lambda folder: set_config(folder, model_type="vit"), UnsupportedFamily, "vit"),
        (lambda folder: set_config(folder, decoder_layers=9), CheckpointError, "weights, which would stay random"),
    ],
    ids=["no-weights", "no-config", "cut-config", "cut-weights", "cut-processor", "other-type", "other-shape"],
)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_folder_that_is_no_model_stops_the_run_before_it_begins(scenes, tmp_path, role, spoil, kind, told):
    folder = broken_folder(tmp_path / "model", spoil)
    changes = {"student_decoder_layers": None, "student": TEACHER, role: folder}
    with pytest.raises(kind, match=told) as caught:
        qskd.distill(**options(tmp_path / "run", scenes, **changes))
    assert str(folder) in str(caught.value) or kind is UnsupportedFamily
    assert not list((tmp_path / "run").iterdir())
