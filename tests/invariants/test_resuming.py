"""A run that was interrupted and resumed is, bit for bit, the run that was not."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from builders_trainer import adapter_of, trainer_of

NEVER_THE_SAME = ("eval_runtime", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


class Interrupt(TrainerCallback):
    """Somebody presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def build(folder: Path, scenes: Path, family: str, **options: Any):
    """Student and teacher of different widths: there are projections. RT-DETR denoises, DETR drops out."""
    wide = {
        "rt_detr": {"d_model": 32, "decoder_in_channels": [32] * 3, "encoder_hidden_dim": 32},
        "detr": {"d_model": 64},
    }
    changes = {"dropout": 0.1} if family == "detr" else {}
    settings = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 9,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "distillation_warmup_steps": 5,
    }
    student = adapter_of(family, **changes)
    return trainer_of(folder, scenes, student, adapter_of(family, **wide[family]), **(settings | options))


def content(value: Any) -> Any:
    """Tensors as bytes, recursively, so that whole states can be compared bit by bit."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.shape, value.numpy().tobytes()]
    if isinstance(value, dict):
        return {key: content(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [content(one) for one in value]
    return value


def log_of(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in NEVER_THE_SAME} for entry in entries]


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """Student, projections, average, optimiser, schedule and random states."""
    for name in ("distiller", "average"):
        left, right = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    assert any(key.startswith("projections.") for key in load_file(one / "distiller.safetensors"))
    for name in ("optimizer.pt", "scheduler.pt"):
        left, right = (content(torch.load(folder / name, weights_only=True)) for folder in (one, other))
        assert left == right, name
    left, right = (torch.load(folder / "rng_state.pth", weights_only=False) for folder in (one, other))
    assert torch.equal(left["cpu"], right["cpu"])
    assert (one / "identity.json").read_text() == (other / "identity.json").read_text()


@pytest.mark.parametrize(("family", "workers"), [("rt_detr", 0), ("detr", 2)])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, scenes, family, workers):
    """16 images, 6 a step: steps 1 to 3 are the first epoch, and the checkpoint of step 4 is amid the second."""
    options = {"dataloader_num_workers": workers}
    build(tmp_path / "whole", scenes, family, **options).train()
    cut = build(tmp_path / "cut", scenes, family, **options)
    cut.add_callback(Interrupt(5))
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert [entry["step"] for entry in log_of(tmp_path / "cut")] == [1, 2, 3, 4]
    torch.manual_seed(99)  # another process, another state
    resumed = build(tmp_path / "cut", scenes, family, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoints/checkpoint-4"))
    assert resumed.average.updates == 6
    assert_same_checkpoint(*(tmp_path / run / "checkpoints" / "checkpoint-6" for run in ("whole", "cut")))
    whole, again = log_of(tmp_path / "whole"), log_of(tmp_path / "cut")
    assert again == whole
    assert math.isfinite(whole[-2]["loss"])


def test_the_log_of_a_resumed_run_has_no_line_twice(tmp_path, scenes):
    """Killed after step 5, whose lines and evaluations come again, in the middle of writing a line."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "gradient_accumulation_steps": 1}
    cut = build(tmp_path, scenes, "detr", **options)
    cut.add_callback(Interrupt(5))
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 12.3')
    resumed = build(tmp_path, scenes, "detr", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-4"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-6"))  # finished already
    entries = log_of(tmp_path)
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in entries if "eval_AP" in entry] == [0, 1, 2, 3, 4, 5, 6]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum("train_runtime" in line for line in lines) == 1


def test_a_finished_run_gains_no_step_by_being_resumed(tmp_path, scenes):
    """Its end lies in the middle of an epoch: transformers' trainer would take one more step."""
    options = {"max_steps": 3, "save_steps": 3, "gradient_accumulation_steps": 1}
    whole = build(tmp_path, scenes, "detr", **options)
    whole.train()
    again = build(tmp_path, scenes, "detr", **options)
    outcome = again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-3"))
    assert (outcome.global_step, again.state.global_step, again.average.updates) == (3, 3, 3)
    for name, tensor in whole.distiller.state_dict().items():
        assert torch.equal(tensor, again.distiller.state_dict()[name]), name
    assert [entry["step"] for entry in log_of(tmp_path) if "loss" in entry] == [1, 2, 3]
