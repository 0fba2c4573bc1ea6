"""`qskd models`: the published table, and students for a teacher, whose numbers hold when they are made."""

import json
import shutil
from pathlib import Path

import pytest

import qskd
from builders import MODELS
from qskd.cli import main
from qskd.evaluation.cost import count_parameters
from qskd.models.families import FAMILIES
from qskd.models.known import known_checkpoints
from qskd.models.loading import load_model
from qskd.runs.options import PairOptions
from qskd.runs.starting import make_student
from qskd.runs.suggesting import suggest

TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_the_table_names_every_checkpoint_with_its_source(capsys):
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    for row in known_checkpoints():
        assert row.hub_id in shown
        assert row.source in shown


def test_one_family_and_json(capsys, tmp_path):
    assert main(["models", "--family", "lw_detr", "--json", str(tmp_path / "deep" / "models.json")]) == 0
    shown = capsys.readouterr().out
    assert "AnnaZhang/lwdetr_small_60e_coco" in shown
    assert "PekingU" not in shown
    rows = json.loads((tmp_path / "deep" / "models.json").read_text())["checkpoints"]
    assert {row["family"] for row in rows} == {"lw_detr"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "yolos"], "no decoder looks with them at a memory"),
        (["--family", "fasterrcnn"], "Supported: conditional_detr"),
        (["--family", "detr", "--teacher", "x"], "not both"),
        (["--teacher", "./nowhere"], "'./nowhere' is no folder here"),
        (["--teacher", "nowhere.json"], "is no file"),
    ],
)
def test_what_cannot_be_answered_is_said(arguments, message, capsys):
    assert main(["models", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_published_teacher_without_a_network_gets_smaller_and_worse_checkpoints(offline, capsys):
    assert main(["models", "--teacher", "PekingU/rtdetr_v2_r50vd"]) == 0
    shown = capsys.readouterr().out
    assert "No derived students are shown, since the teacher cannot be built here" in shown
    assert "PekingU/rtdetr_v2_r18vd" in shown
    found = suggest("PekingU/rtdetr_v2_r50vd").checkpoints
    assert found[0].family == "rt_detr_v2"
    for row in found:
        assert row.parameters <= 0.8 * 42
        assert row.ap < 53.4
        assert set(row.strides) & {8, 16, 32}


def test_an_unknown_hub_id_without_a_network_is_an_error(offline, capsys):
    assert main(["models", "--teacher", "nobody/nothing"]) == 2
    assert "hf download" in capsys.readouterr().err


@pytest.mark.parametrize("family", sorted(set(FAMILIES) & set(MODELS)))
def test_every_suggested_student_can_be_made_and_is_what_was_said(family, tmp_path):
    model = MODELS[family]()
    model.save_pretrained(tmp_path)
    found = suggest(str(tmp_path))
    assert found.facts.parameters == count_parameters(model)
    assert found.facts.family == family
    teacher = load_model(tmp_path)
    names = list(teacher.id2label.values())
    for one in found.derived:
        assert one.facts.gflops < found.facts.gflops
        flags = dict(zip(*[iter(one.flags.split())] * 2, strict=True))
        options = {
            name.removeprefix("--"): value if name == "--student_backbone" else int(value)
            for name, value in flags.items()
        }
        student, _, _ = make_student(PairOptions(teacher=str(tmp_path), **options), teacher, names, 0)
        assert count_parameters(student.model) == one.facts.parameters
        assert student.strides == one.facts.strides


def test_no_weight_of_the_teacher_is_read(tmp_path, capsys):
    shutil.copytree(TEACHER, tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"")
    assert main(["models", "--teacher", str(tmp_path / "teacher")]) == 0
    shown = capsys.readouterr().out
    assert "2.4 M parameters" in shown
    assert "--student_decoder_layers 2" in shown


def test_a_configuration_of_real_size_gets_smaller_backbones(tmp_path, capsys):
    path = Path(__file__).parents[2] / "examples" / "configs" / "conditional_detr_r50.json"
    fields = json.loads(path.read_text()) | {"encoder_layers": 1, "decoder_layers": 2}
    (tmp_path / "small.json").write_text(json.dumps(fields))
    assert main(["models", "--teacher", str(tmp_path / "small.json")]) == 0
    shown = capsys.readouterr().out
    assert "--student_backbone resnet34" in shown
    assert "--student_backbone resnet18 --student_hidden_size 128" in shown
    assert "random, or --student_backbone_weights" in shown


def test_sizes_are_chosen_as_for_a_distillation(tmp_path, capsys):
    MODELS["lw_detr"]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 800, "longest_edge": 1333}}')
    assert main(["models", "--teacher", str(tmp_path)]) == 0
    assert "GFLOPs at 640 x 640" in capsys.readouterr().out
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 100, "width": 100}}')
    assert main(["models", "--teacher", str(tmp_path)]) == 2
    assert "is not a multiple of" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["models"], ["check", "{scenes}"], ["eval", "--model", "x", "--data", "{scenes}"]])
def test_a_json_file_that_cannot_be_written_is_told_before_anything_is_done(tmp_path, scenes, capsys, command):
    assert main([*(word.format(scenes=scenes) for word in command), "--json", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert f"--json {tmp_path} is a folder. Give the name of a file" in said.err
    assert not said.out
