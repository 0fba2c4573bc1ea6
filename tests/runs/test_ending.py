"""Signals and too little memory outside of the steps: while a run checks, and while it measures what came out."""

import json
import os
import signal

import pytest
import torch

import qskd
from builders_runs import tiny_run
from qskd.cli import main
from qskd.errors import Interrupted, OutOfMemory
from qskd.runs import preflight, training

SAVED = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture(autouse=True)
def _heeded_signals():
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def flags(options):
    return [f"--{name}={value}" for name, value in options.items()]


def sending(*numbers):
    def send(*arguments, **options):
        for number in numbers:
            os.kill(os.getpid(), number)

    return send


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_during_the_preflight_leaves_a_folder_that_can_be_used_again(
    tmp_path, scenes, tiny_folders, monkeypatch, capsys, number, name
):
    options = {"teacher": tiny_folders["detr_teacher"], "student": tiny_folders["detr_student"]}
    command = ["distill", *flags(tiny_run(tmp_path / "run", scenes) | options)]
    monkeypatch.setattr(preflight, "sample_batch", sending(number))
    monkeypatch.setattr(preflight, "check_teacher", lambda *arguments: None)
    assert main(command) == 128 + number
    said = capsys.readouterr().err
    assert f"qskd distill: ended by {name}. No checkpoint had been written yet: start anew." in said
    assert main([*command, "--no_preflight"]) == 0


def test_a_signal_during_training_is_the_exit_status(tmp_path, scenes, tiny_folders, monkeypatch, capsys):
    options = tiny_run(tmp_path, scenes, max_steps=4, **SAVED) | {"model": tiny_folders["detr_student"]}
    stepping = training.DistillationTrainer.compute_loss
    monkeypatch.setattr(
        training.DistillationTrainer,
        "compute_loss",
        lambda self, *given, **more: (sending(signal.SIGTERM)(), stepping(self, *given, **more))[1],
    )
    assert main(["train", *flags(options)]) == 143
    said = capsys.readouterr().err
    assert f"ended by SIGTERM after step 1. The last complete checkpoint is {tmp_path}/checkpoints/checkpoint-1" in said
    monkeypatch.undo()
    assert main(["train", *flags(options), "--resume_from_checkpoint", "last"]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 4


def test_ctrl_c_while_the_result_is_measured_loses_nothing(tmp_path, scenes, tiny_folders, monkeypatch):
    options = tiny_run(tmp_path, scenes, max_steps=2, **SAVED) | {"model": str(tiny_folders["detr_student"])}
    monkeypatch.setattr(training, "evaluate_keeping", sending(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"ended by Ctrl-C. The last complete checkpoint is .*checkpoint-2"):
        qskd.train(**options)
    monkeypatch.undo()
    assert qskd.train(**options, resume_from_checkpoint="last").summary["steps"] == 2


def test_a_preflight_without_memory_says_what_to_give_instead(tmp_path, scenes, tiny_folders, monkeypatch):
    options = {"teacher": str(tiny_folders["detr_teacher"]), "student": str(tiny_folders["detr_student"])}

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(preflight, "check_teacher", lambda *arguments: None)
    monkeypatch.setattr(preflight, "check_terms", full)
    with pytest.raises(OutOfMemory, match="smaller --per_device_train_batch_size with more"):
        qskd.distill(**(tiny_run(tmp_path, scenes) | options))
