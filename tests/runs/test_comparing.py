import json
import shutil

import pytest
import torch
from PIL import Image

from builders_reports import TEACHER, panel_titles, write_run
from qskd.errors import ConfigError, DataError
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.loading import load_model
from qskd.runs.comparing import compare


@pytest.fixture
def folders(tmp_path, scenes, tiny_folders):
    """A teacher's run, two seeds of a baseline and of a distillation."""
    data = {"data": str(scenes)}
    teacher = write_run(tmp_path / "teacher_run", model=tiny_folders["deformable_teacher"], config=data, AP=0.5)
    fingerprint = weights_fingerprint(load_model(teacher / "best").model)
    made = [teacher]
    for seed in (1, 2):
        student = tiny_folders["rt_detr_student"]
        made.append(write_run(tmp_path / f"base{seed}", model=student, config=data, seed=seed, AP=0.3))
        config = data | {"teacher": str(teacher / "best"), "student": "s"}
        taught = TEACHER | {"fingerprint": fingerprint}
        made.append(
            write_run(
                tmp_path / f"qskd{seed}",
                model=student,
                config=config,
                kind="distill",
                seed=seed,
                AP=0.4,
                teacher=taught,
            )
        )
    return made


def test_runs_are_compared_with_pictures_of_every_role(folders, tmp_path):
    made = compare(folders, tmp_path / "out", images=2)
    assert [(row.name, row.role) for row in made.rows] == [
        ("teacher_run", "teacher"),
        ("base1", "baseline"),
        ("base2", "baseline"),
        ("qskd1", "distilled"),
        ("qskd2", "distilled"),
    ]
    assert panel_titles(made.html) == ["ground truth", "teacher_run", "baseline (seed 1)", "qskd (seed 1)"]
    assert made.html.read_text("utf-8").count("<img") == 2 * 4
    assert made.pictures is not None
    assert Image.open(made.pictures).width > 3 * 384
    assert "+10.0 ± 0.0 AP over baseline (2 paired seeds)" in made.table
    assert json.loads(made.json.read_text())["gains"][0]["gap_closed"] == pytest.approx(0.5)


def test_a_teacher_is_recognised_by_its_weights_where_its_folder_moved(folders, tmp_path):
    folders[0] = folders[0].rename(tmp_path / "moved")
    made = compare(folders, tmp_path / "out", images=0)
    assert [row.name for row in made.rows if row.role == "teacher"] == ["moved"]
    assert made.pictures is None


def test_a_run_that_has_other_weights_than_the_teacher_it_was_is_not_taken_for_it(folders, tmp_path):
    model = load_model(folders[0] / "best").model
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(folders[0] / "best")
    made = compare(folders, tmp_path / "out", images=0)
    assert {row.name: row.role for row in made.rows}["teacher_run"] == "baseline"


def test_a_teacher_whose_folder_is_gone_is_left_out_of_the_pictures(folders, tmp_path):
    shutil.rmtree(folders[0])
    made = compare(folders[1:], tmp_path / "out", images=1)
    assert panel_titles(made.html) == ["ground truth", "baseline (seed 1)", "qskd (seed 1)"]
    assert "No detections of teacher: its folder" in made.html.read_text("utf-8")
    assert made.rows[0].name == "teacher"


def test_a_teacher_with_other_weights_by_now_is_not_drawn(folders, tmp_path):
    model = load_model(folders[0] / "best").model
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(folders[0] / "best")
    made = compare(folders[1:], tmp_path / "out", images=1)
    assert "teacher" not in panel_titles(made.html)
    assert "holds other weights" in made.html.read_text("utf-8")


def test_without_its_data_a_report_has_no_pictures_but_says_why(tmp_path, tiny_folders):
    run = write_run(tmp_path / "a", model=tiny_folders["rt_detr_student"], config={"data": str(tmp_path / "gone")})
    made = compare([run], tmp_path / "out")
    assert made.pictures is None
    assert "Give --data." in made.html.read_text("utf-8")


def test_data_can_be_named(tmp_path, tiny_folders, scenes):
    run = write_run(tmp_path / "a", model=tiny_folders["rt_detr_student"])
    made = compare([run], tmp_path / "out", data=scenes, images=1)
    assert panel_titles(made.html) == ["ground truth", "baseline"]
    with pytest.raises(DataError):
        compare([run], tmp_path / "out", data=tmp_path / "nowhere")


def test_data_that_was_moved_is_read_as_the_run_read_it(tmp_path, tiny_folders, scenes):
    config = {"data": str(tmp_path / "gone"), "val_split": "train"}
    runs = [write_run(tmp_path / "a", model=tiny_folders["rt_detr_student"], config=config)]
    train, val = (len(json.loads(path.read_text())["images"]) for path in _annotation_files(scenes))
    assert train != val
    for given, images in (({}, train), ({"val_split": "val"}, val)):
        made = compare(runs, tmp_path / "out", data=scenes, images=0, latency=False, **given)
        assert f" {images} images" in made.html.read_text("utf-8"), given


def _annotation_files(scenes):
    return [scenes / "annotations" / f"instances_{split}.json" for split in ("train", "val")]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dta": None}, "There is no option 'dta'. Did you mean 'data'?"),
        ({"imges": 3}, "There is no option 'imges'. Did you mean 'images'?"),
        ({"data": 5}, "data is 5; give a text or a path"),
        ({"val_annotations": "x", "val_images": "y", "val_split": "test"}, "give --data, too"),
        ({"val_split": "test"}, "give --data, too"),
        ({"latency": "off"}, "latency is 'off'; give True or False"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, told):
    with pytest.raises(ConfigError, match=told):
        compare([write_run(tmp_path / "a")], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_gone_or_knows_no_class_is_told_and_left_out(tmp_path, scenes, tiny_folders):
    broken = shutil.copytree(tiny_folders["rt_detr_student"], tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["id2label"] = {key: f"other {key}" for key in config["id2label"]}
    (broken / "config.json").write_text(json.dumps(config))
    data = {"data": str(scenes)}
    runs = [
        write_run(tmp_path / "a", config=data),
        write_run(tmp_path / "b", model=broken, config=data | {"flip": 0.1}),
    ]
    made = compare(runs, tmp_path / "out", images=1)
    assert panel_titles(made.html) == ["ground truth"]
    assert made.html.read_text("utf-8").count("No detections of baseline") == 2
    assert made.findings.closeup.models == ()


def test_an_earlier_report_is_replaced(tmp_path, scenes, tiny_folders):
    run = write_run(tmp_path / "a", model=tiny_folders["rt_detr_student"], config={"data": str(scenes)})
    compare([run], tmp_path / "out", images=1)
    made = compare([run, run], tmp_path / "out", images=0)
    assert not (tmp_path / "out" / "pictures.jpg").exists()
    assert len(made.rows) == 1  # the same folder twice is one run


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [write_run(tmp_path / side / "run") for side in ("x", "y")]
    assert [row.name for row in compare(runs, tmp_path / "out", images=0).rows] == ["x/run", "y/run"]


def test_a_copy_of_the_validation_annotations_is_the_same_validation_set(tmp_path, scenes):
    copied = shutil.copytree(scenes, tmp_path / "copied")
    changed = shutil.copytree(scenes, tmp_path / "changed")
    annotations = changed / "annotations" / "instances_val.json"
    annotations.write_text(annotations.read_text() + " ")
    runs = [write_run(tmp_path / f"r{n}", config={"data": str(d)}, seed=n) for n, d in enumerate((scenes, copied))]
    assert "validation annotations" not in compare(runs, tmp_path / "out", images=0).table
    runs.append(write_run(tmp_path / "r2", config={"data": str(changed)}, seed=2))
    assert "differ in validation annotations" in compare(runs, tmp_path / "out", images=0).table


def test_damaged_log_lines_are_left_out(tmp_path):
    run = write_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('NaN\n[1]\n{"step": 9, "eval_AP": NaN}\n{"step": 10, "eval')
    assert compare([run], tmp_path / "out", images=0).html.is_file()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (None, "does not exist"),
        ({}, "is no run folder: it holds no summary.json"),
        ({"config.yaml": ""}, "has not finished"),
        ({"checkpoints/checkpoint-3/x": ""}, "has not finished"),
        ({"one/summary.json": "{}"}, "It holds runs, though: give"),
        ({"../summary.json": "{}"}, "is a part of a run"),
        ({"summary.json": "{"}, "is not JSON"),
        ({"summary.json": "[]"}, "holds no summary"),
        ({"summary.json": '{"kind": "eval"}'}, "has kind 'eval'"),
        ({"summary.json": '{"kind": "train"}', "config.yaml": "a: [b"}, "is not YAML"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_named(tmp_path, files, told):
    folder = tmp_path / "outer" / "folder"
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    if files is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(ConfigError, match="folder") as caught:
        compare([folder], tmp_path / "out")
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_options_are_refused(tmp_path):
    run = write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match="--images is -1"):
        compare([run], tmp_path / "out", images=-1)
    with pytest.raises(ConfigError, match="cannot be made"):
        compare([run], run / "summary.json")
    with pytest.raises(ConfigError, match="No runs"):
        compare([], tmp_path / "out")


def test_latencies_are_measured_in_turn_and_take_the_place_of_old_ones(folders, tmp_path):
    made = compare(folders, tmp_path / "out", images=0)
    speed = made.findings.speed
    assert {one.label for one in speed.latencies} >= {"baseline", "qskd"}
    rows = {row.name: row.latency_ms for row in made.rows}
    assert rows["base1"] == rows["base2"] == speed.of("baseline").median_ms != 5.0
    assert f"{speed.rounds} rounds" in made.html.read_text("utf-8")
    told = compare(folders, tmp_path / "out", images=0, latency=False)
    assert told.findings.speed is None
    assert {row.latency_ms for row in told.rows} == {5.0, 20.0}
