"""What must not change a training: how a batch is cut up, an interruption, a term of weight 0, running again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import qskd
from builders_runs import tiny_run


def log_of(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


def weights_of(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "model.safetensors")


def assert_same_weights(one: Path, other: Path, **tolerance: float) -> None:
    left, right = weights_of(one), weights_of(other)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def distill(folder: Path, scenes: Path, models: dict[str, Path], family: str = "rt_detr", **options: Any) -> Path:
    settings = tiny_run(folder, scenes, **({"preflight": False} | options))
    qskd.distill(teacher=str(models[f"{family}_teacher"]), student=str(models[f"{family}_student"]), **settings)
    return folder


def test_the_same_run_twice_is_the_same_bit_for_bit(tmp_path, scenes, tiny_folders):
    one = distill(tmp_path / "one", scenes, tiny_folders)
    two = distill(tmp_path / "two", scenes, tiny_folders)
    ignored = {"train_runtime"}
    assert [{k: v for k, v in e.items() if k not in ignored} for e in log_of(one)] == [
        {k: v for k, v in e.items() if k not in ignored} for e in log_of(two)
    ]
    assert_same_weights(one, two, rtol=0, atol=0)


def test_another_seed_is_another_run(tmp_path, scenes, tiny_folders):
    one = distill(tmp_path / "one", scenes, tiny_folders)
    two = distill(tmp_path / "two", scenes, tiny_folders, seed=7)
    assert log_of(one)[0]["loss"] != log_of(two)[0]["loss"]


@pytest.mark.parametrize("family", ["deformable", "detr"])
def test_eight_at_once_and_eight_one_by_one_are_the_same_step(tmp_path, scenes, tiny_folders, family):
    """Frozen norms and no dropout: only the normalisers could tell the two apart. SGD shows gradients unscaled."""
    # At 64 px the coarsest of the four levels would be one cell, which group norm refuses for one image.
    common = {
        "image_size": 128,
        "optim": "sgd",
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
        "max_steps": 2,
        "ema_decay": 0.0,
    }
    whole = distill(tmp_path / "whole", scenes, tiny_folders, family, per_device_train_batch_size=8, **common)
    parts = distill(
        tmp_path / "parts",
        scenes,
        tiny_folders,
        family,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        **common,
    )
    for left, right in zip(log_of(whole), log_of(parts), strict=True):
        shared = {name for name in left if name.startswith(("loss", "lapd", "agfd"))}
        assert shared > {"loss", "agfd", "lapd_box"}
        for name in shared:
            assert left[name] == pytest.approx(right[name], rel=2e-4), name
    assert_same_weights(whole, parts, rtol=1e-4, atol=2e-5)


def test_a_resumed_run_continues_the_same_trajectory(tmp_path, scenes, tiny_folders):
    """Cut after an epoch's middle (16 images, batches of 4: step 6 is in the second epoch)."""
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 9}
    whole = distill(tmp_path / "whole", scenes, tiny_folders, **settings)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    checkpoint = whole / "checkpoints" / "checkpoint-6"
    distill(resumed, scenes, tiny_folders, **settings, resume_from_checkpoint=str(checkpoint))
    later = [entry for entry in log_of(whole) if entry["step"] > 6]
    assert [entry["loss"] for entry in log_of(resumed)] == [entry["loss"] for entry in later]
    assert_same_weights(whole, resumed, rtol=0, atol=0)


def test_a_run_refuses_to_resume_under_another_teacher(tmp_path, scenes, tiny_folders):
    run = distill(tmp_path / "run", scenes, tiny_folders, save_strategy="steps", save_steps=1)
    with pytest.raises(qskd.QskdError, match="belongs to another run: its teacher"):
        qskd.distill(
            teacher=str(tiny_folders["rt_detr_student"]),
            student=str(tiny_folders["rt_detr_student"]),
            **tiny_run(run, scenes, preflight=False, resume_from_checkpoint="last"),
        )


@pytest.mark.parametrize(
    ("student", "changed", "what"),
    [
        ("rt_detr_student", {"selection_cap": 5}, "selection.cap is 10"),
        ("rt_detr_teacher", {}, "student is 'rt_detr"),
        ("rt_detr_student", {"seed": 9}, "seed is 42, this run's is 9"),
        ("rt_detr_student", {"learning_rate": 0.5}, "learning_rate is 0.001, this run's is 0.5"),
        ("rt_detr_student", {"image_size": 128}, "image size is .64., this run's is .128."),
        ("rt_detr_student", {"per_device_train_batch_size": 2}, "images per step is 4, this run's is 2"),
        ("rt_detr_student", {"flip": 0.0}, "flip is 0.5, this run's is 0.0"),
    ],
    ids=["method option", "student", "seed", "learning rate", "image size", "batch", "augmentation"],
)
def test_a_run_refuses_to_resume_as_another(tmp_path, scenes, tiny_folders, student, changed, what):
    run = distill(tmp_path / "run", scenes, tiny_folders, save_strategy="steps", save_steps=1, max_steps=1)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(qskd.QskdError, match=f"belongs to another run: its {what}"):
        qskd.distill(
            teacher=str(tiny_folders["rt_detr_teacher"]),
            student=str(tiny_folders[student]),
            **tiny_run(run, scenes, preflight=False, resume_from_checkpoint="last", **changed),
        )
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_distilling_with_weight_zero_is_plain_training(tmp_path, scenes, tiny_folders):
    taught = distill(tmp_path / "taught", scenes, tiny_folders, method="none")
    qskd.train(model=str(tiny_folders["rt_detr_student"]), **tiny_run(tmp_path / "plain", scenes))
    assert_same_weights(taught, tmp_path / "plain", rtol=0, atol=0)


def test_the_teacher_is_in_no_checkpoint_and_stays_as_it_was(tmp_path, scenes, tiny_folders):
    before = load_file(tiny_folders["rt_detr_teacher"] / "model.safetensors")
    run = distill(tmp_path / "run", scenes, tiny_folders, save_strategy="steps", save_steps=3)
    saved = load_file(run / "checkpoints" / "checkpoint-3" / "distiller.safetensors")
    parts = {name.split(".")[0] for name in saved}
    assert parts == {"student"}  # memory of the same width: no projection
    student = load_file(tiny_folders["rt_detr_student"] / "model.safetensors")
    assert len(saved) <= len(student) + 10
    after = load_file(tiny_folders["rt_detr_teacher"] / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_preflight_leaves_no_trace_in_the_training(tmp_path, scenes, tiny_folders, monkeypatch):
    monkeypatch.setattr("qskd.runs.preflight.WORST_AP50", 0.0)
    checked = distill(tmp_path / "checked", scenes, tiny_folders, preflight=True)
    unchecked = distill(tmp_path / "unchecked", scenes, tiny_folders, preflight=False)
    assert_same_weights(checked, unchecked, rtol=0, atol=0)
    found = json.loads((checked / "preflight.json").read_text())
    assert {term["name"] for term in found["terms"]} == {"detection", "lapd", "agfd"}
    assert all(term["gradient_norm"] > 0 for term in found["terms"])
