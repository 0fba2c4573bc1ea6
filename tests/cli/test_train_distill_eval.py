"""The commands end to end, as a user types them; what the runs themselves do is tested in ``tests/runs``."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import qskd
from builders_runs import NAMES
from qskd.cli import main

TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"
SHORT = "--image_size 64 --max_steps 2 --per_device_train_batch_size 2 --logging_steps 1 --use_cpu --disable_tqdm true"
OFF = "--eval_strategy no --save_strategy no"


def command(*arguments) -> int:
    return main(
        [str(argument) for part in arguments for argument in (part.split() if isinstance(part, str) else [part])]
    )


@pytest.fixture(scope="module")
def taught(scenes, tmp_path_factory):
    """`qskd distill` with a derived student, and what it printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    shape = "--student_decoder_layers 1 --selection_cap 5 --learning_rate 1e-3"
    arguments = ["distill --teacher", TEACHER, "--data", scenes, "--output_dir", folder, shape, SHORT, OFF]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **_: lines.extend(" ".join(map(str, parts)).splitlines()))
        assert command(*arguments) == 0
    return folder, lines


def test_distil_says_what_it_does_and_what_came_out(taught):
    folder, lines = taught
    assert lines[0] == "the student, derived from the teacher"
    assert "preflight" in lines
    assert "  labels: the teacher knows 6 of 6 classes" in lines
    steps = [line.split("  ")[0] for line in lines if line.startswith("step ")]
    assert steps == ["step 1/2", "step 2/2", "step 2/2"]
    assert lines[-3].startswith("teacher  AP ")
    assert lines[-2].startswith("student  AP ")
    assert lines[-1] == f"model: {folder / 'last'}"


def test_the_saved_configuration_runs_again_to_the_same_weights(taught, tmp_path, capsys):
    """As saved, but in another folder and without the preflight, since flags win."""
    folder, _ = taught
    assert yaml.safe_load((folder / "config.yaml").read_text())["selection_cap"] == 5
    config = ["distill --config", folder / "config.yaml"]
    assert command(*config, "--output_dir", tmp_path / "again", "--no-preflight") == 0
    one, other = (load_file(run / "last" / "model.safetensors") for run in (folder, tmp_path / "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    saved = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert (saved["preflight"], saved["max_steps"], saved["selection_cap"]) == (False, 2, 5)
    capsys.readouterr()
    assert command(*config) == 2
    assert "holds another run" in capsys.readouterr().err


def test_train_prints_the_scores_of_the_model_and_where_it_is(scenes, tiny_folders, tmp_path, capsys):
    model = tiny_folders["detr_student"]
    assert command("train --model_name_or_path", model, "--data", scenes, "--output_dir", tmp_path, SHORT, OFF) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("AP ")
    assert lines[-1] == f"model: {tmp_path / 'last'}"
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 2


def test_eval_prints_a_table_of_classes_and_writes_all_numbers(scenes, tmp_path, capsys):
    file = tmp_path / "deep" / "metrics.json"
    assert command("eval --image_size 64 --model", TEACHER, "--data", scenes, "--json", file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["class", "AP"]
    assert [line.split()[0] for line in lines[2:-1]] == list(NAMES)
    metrics = json.loads(file.read_text())
    assert lines[-1].startswith(f"AP {100 * metrics['AP']:.1f}  AP50 {100 * metrics['AP50']:.1f}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("train --data {scenes}", "qskd train: --model was not given"),
        (
            "train --model {model} --data {scenes}",
            "qskd train: --output_dir was not given; it takes",
        ),
        ("distill --data {scenes}", "qskd distill: --teacher was not given"),
        ("eval --data {scenes}", "qskd eval: --model was not given"),
        ("eval --model {model} --data {scenes} --batch_size 0", "qskd eval: --batch_size is 0"),
        ("eval --model {model}", "qskd eval: No data: give --data"),
        ("train --model {model} --data {scenes} --epochs 3", "qskd train: There is no option '--epochs'"),
        ("train --model {model} --data {scenes} --max_steps 1.5", "qskd train: argument --max_steps"),
        ("demo --method qkd", "qskd demo: There is no method 'qkd'"),
    ],
)
def test_bad_input_is_status_2_with_one_line(scenes, tiny_folders, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert command(arguments.format(scenes=scenes, model=tiny_folders["rt_detr_student"])) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(told)
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.out
