"""What must not depend on the number of processes: a step's losses and weights, and an evaluation's metrics.

One launch of two real processes (gloo, CPU) runs all jobs one after the other; the tests compare with one process.
Families without dropout, batch statistics or denoising, as in ``test_training.py``: only normalisers could differ.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import qskd
from builders_runs import tiny_run

pytestmark = pytest.mark.slow

WORKER = """
import json, sys
import qskd
for command, options in json.load(open(sys.argv[1])):
    getattr(qskd, command)(**options)
"""
TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"


def step_options(models: dict[str, Path], family: str, **options: Any) -> dict[str, Any]:
    """SGD without clipping shows gradients unscaled; at 64 px the coarsest of four levels would be one cell."""
    return {
        "teacher": str(models[f"{family}_teacher"]),
        "student": str(models[f"{family}_student"]),
        "preflight": False,
        "image_size": 128,
        "optim": "sgd",
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    } | options


@pytest.fixture(scope="module")
def lonely(scenes, tmp_path_factory) -> Path:
    """Two training images, one of them without objects: of two processes, one has none in every step."""
    folder = tmp_path_factory.mktemp("lonely")
    for split in ("train", "val"):
        content = json.loads((scenes / "annotations" / f"instances_{split}.json").read_text())
        if split == "train":
            first, second = content["images"][:2]
            content["images"] = [first, second]
            content["annotations"] = [row for row in content["annotations"] if row["image_id"] == first["id"]]
            assert content["annotations"]
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (folder / "images").symlink_to(scenes / "images")
    return folder


@pytest.fixture(scope="module")
def jobs(scenes, lonely, tiny_folders, tmp_path_factory) -> dict[str, tuple[str, dict[str, Any]]]:
    """Command and options by name; each process takes ``per_device_train_batch_size`` images."""
    folder = tmp_path_factory.mktemp("two")

    def job(name: str, data: Path, batch: int, **options: Any) -> dict[str, Any]:
        return tiny_run(folder / name, data, **options) | {"per_device_train_batch_size": batch}

    options = step_options(tiny_folders, "deformable")
    made = {"deformable-lonely": ("distill", job("deformable-lonely", lonely, 1, **options))}
    options = step_options(tiny_folders, "detr", gradient_accumulation_steps=2)
    made["detr-accumulated"] = ("distill", job("detr-accumulated", scenes, 2, **options))
    derived = {"teacher": str(TEACHER), "student_decoder_layers": 1}
    made["rt_detr-lonely"] = ("distill", job("rt_detr-lonely", lonely, 1, **derived))
    for family in ("d_fine", "lw_detr"):
        options = {"teacher": str(TEACHER), "student": str(tiny_folders[f"{family}_student"]), "preflight": False}
        made[f"{family}-lonely"] = ("distill", job(f"{family}-lonely", lonely, 1, image_size=128, **options))
    measured = {
        "model": str(TEACHER),
        "image_size": 128,
        "learning_rate": 1e-5,
        "max_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_eval_batch_size": 4,  # of 6 images: the last batch is filled up with repeated ones
    }
    made["evaluated"] = ("train", job("evaluated", scenes, 2, **measured))
    return made


@pytest.fixture(scope="module")
def two(jobs, tmp_path_factory) -> dict[str, Path]:
    """Run folders of all jobs, run by two processes."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    (folder / "worker.py").write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(folder / "worker.py"), str(folder / "jobs.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {name: Path(options["output_dir"]) for name, (_, options) in jobs.items()}


def losses(folder: Path) -> list[dict[str, float]]:
    """The loss and its parts of every step."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    parts = ("loss", "lapd", "agfd")
    return [{k: v for k, v in entry.items() if k.startswith(parts)} for entry in entries if "loss" in entry]


def assert_same_run(one: Path, other: Path) -> None:
    for left, right in zip(losses(one), losses(other), strict=True):
        assert {"loss", "agfd", "lapd_box", "loss_giou"} <= left.keys()
        assert left == pytest.approx(right, rel=2e-4)
    for name in ("distiller", "average"):
        weights, wanted = (load_file(run / "checkpoints/checkpoint-2" / f"{name}.safetensors") for run in (one, other))
        for key in wanted:
            # An update is of the size 1e-2; where a ReLU lies on its corner, gradients differ by more than rounding.
            torch.testing.assert_close(weights[key], wanted[key], rtol=1e-4, atol=2e-4, msg=f"{name}: {key}")


@pytest.mark.parametrize(("job", "images"), [("deformable-lonely", 2), ("detr-accumulated", 8)])
def test_two_processes_take_the_same_steps_as_one(jobs, two, tmp_path, job, images):
    """The same images in every step, in one process all at once."""
    command, options = jobs[job]
    changes = {"output_dir": str(tmp_path), "per_device_train_batch_size": images, "gradient_accumulation_steps": 1}
    getattr(qskd, command)(**(options | changes))
    assert_same_run(two[job], tmp_path)


@pytest.mark.parametrize("family", ["rt_detr", "d_fine", "lw_detr"])
def test_a_process_without_any_object_does_not_stop_the_other(two, family):
    """Families with losses of their own draw random queries, so steps depend on how images are dealt out: they only
    must be sound."""
    entries = losses(two[f"{family}-lonely"])
    assert len(entries) == 3
    assert all(value == value and abs(value) < 1e4 for entry in entries for value in entry.values())


def test_the_preflight_of_two_processes_measures_the_teacher(two):
    found = json.loads((two["rt_detr-lonely"] / "preflight.json").read_text())
    assert found["teacher"]["AP50"] > 0.2


def test_two_processes_measure_what_one_would(two, scenes):
    run = two["evaluated"]
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = max((entry for entry in entries if "eval_AP" in entry), key=lambda entry: entry["eval_AP"])
    alone = qskd.evaluate(model=str(run / "best"), data=str(scenes), image_size=128)
    assert alone["AP"] > 0.2
    assert {k: v for k, v in logged.items() if k.startswith("eval_A")} == {
        f"eval_{k}": pytest.approx(v, abs=1e-6) for k, v in alone.items() if k.startswith("A") and v is not None
    }
    assert (logged["eval_num_images"], logged["eval_num_detections"]) == (6, alone["num_detections"])


def test_only_one_process_writes(two):
    """Else there would be doubled lines in the log, or half-written files."""
    for run in two.values():
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [entry["step"] for entry in entries if "loss" in entry]
        assert steps == sorted(set(steps))
        assert json.loads((run / "summary.json").read_text())["steps"] == steps[-1]
