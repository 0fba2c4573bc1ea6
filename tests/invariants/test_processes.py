"""What must not depend on the number of processes: a step's losses and weights, and an evaluation's metrics.

One launch of two real processes (gloo, CPU) runs all jobs one after the other; the tests compare with one process.
Models without dropout, batch statistics or denoising, as in ``test_training.py``: only normalisers could differ.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import qskd
from builders_runs import entries_of, tiny_run
from qskd.evaluation.kept import KeptDetections

pytestmark = pytest.mark.slow

WORKER = """
import json, os, signal, sys
from pathlib import Path
import qskd
from qskd.errors import Interrupted
from qskd.runs.processes import part
from qskd.trainer import DistillationTrainer
from torch import nn
learning = nn.BatchNorm2d.train
read = DistillationTrainer.get_batch_samples
def telling(step):
    def told(self, *given):
        if self.state.global_step + 1 == step and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, *given)
    return told
for command, options in json.load(open(sys.argv[1])):
    still = options.pop("still_batch_norms", False)
    nn.BatchNorm2d.train = (lambda self, mode=True: nn.Module.train(self, False)) if still else learning
    DistillationTrainer.get_batch_samples = telling(options.pop("ctrl_c_in_step", -1))
    try:
        getattr(qskd, command)(**options)
    except Interrupted as end:
        Path(options["output_dir"], f"end_of_{os.environ['RANK']}.txt").write_text(f"{int(end.signal)}: {end}")
part(ended_well=True)
"""
FAILING = """
import sys, time
from qskd.cli import main
from qskd.data.dataset import DetectionDataset
from qskd.errors import DataError
from qskd.trainer import DistillationTrainer
import os
read = DistillationTrainer.get_batch_samples
def broken(self, *given):
    if os.environ["RANK"] == "1" and self.state.global_step == 1:
        os.write(1, f"failed at {time.time()}\\n".encode())  # whole, though two processes write
        raise DataError("a.jpg cannot be read")
    return read(self, *given)
DistillationTrainer.get_batch_samples = broken
sys.exit(main(sys.argv[1:]))
"""
TOLD = """
import os, signal, subprocess, sys
from torch.multiprocessing import active_children
from qskd.cli import main
from qskd.trainer import trainer
until = trainer.until
def told(asked, batches):
    for place, batch in enumerate(until(asked, batches)):
        if place == 0 and os.environ["RANK"] == "1" and asked.__self__.state.global_step == 2:
            for loading in active_children():  # as a scheduler does that sends it to every process of a job
                subprocess.run(["kill", str(loading.pid)], check=True)  # they obey their parent
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch
trainer.until = told
status = main(sys.argv[1:])
threads = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
sys.stdout.flush()
os.write(1, f"status {status} threads {[name for name in threads if 'gloo' in name]}\\n".encode())  # whole
sys.exit(status)
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
CALM = 5e-3  # over four steps: at 1e-2 the loss rises, and rounding grows from 1e-7 to 6e-4
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
    """Two training images, one of them without objects: of two processes, one has none in every step.

    There is one validation image: one process has nothing to measure.
    """
    folder = tmp_path_factory.mktemp("lonely")
    for split in ("train", "val"):
        content = json.loads((scenes / "annotations" / f"instances_{split}.json").read_text())
        if split == "train":
            first, second = content["images"][:2]
            content["images"] = [first, second]
            content["annotations"] = [row for row in content["annotations"] if row["image_id"] == first["id"]]
            assert content["annotations"]
        else:
            content["images"] = content["images"][:1]
            content["annotations"] = [
                row for row in content["annotations"] if row["image_id"] == content["images"][0]["id"]
            ]
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (folder / "images").symlink_to(scenes / "images")
    return folder


@pytest.fixture(scope="module")
def still_teacher(tmp_path_factory) -> Path:
    """The demo's teacher without denoising, which draws queries; its batch norms learn unless a test stops them."""
    folder = tmp_path_factory.mktemp("still") / "teacher"
    shutil.copytree(TEACHER, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_denoising": 0}))
    return folder


@pytest.fixture(scope="module")
def one(scenes, tiny_folders, tmp_path_factory) -> Path:
    """A run of one process that takes 8 of 16 images a step: step 3 lies amid the second epoch."""
    options = step_options(
        tiny_folders, "detr", max_steps=4, save_steps=3, learning_rate=CALM, per_device_train_batch_size=8
    )
    return qskd.distill(**tiny_run(tmp_path_factory.mktemp("one") / "run", scenes, **options)).folder


def measured_options() -> dict[str, Any]:
    """A student that draws random queries in every step, measured after each second one."""
    return {
        "teacher": str(TEACHER),
        "student_decoder_layers": 1,
        "image_size": 128,
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 4,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,  # of 6 images: each process has two batches
        "preflight": False,
    }


@pytest.fixture(scope="module")
def told(scenes, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run, and how it ended, of whose two processes one, and what loads its images, got SIGTERM in an evaluation."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "worker.py").write_text(TOLD)
    options = tiny_run(folder / "run", scenes, **measured_options())
    flags = [f"--{name}={value}" for name, value in options.items() if name != "preflight"]
    done = launch(folder / "worker.py", "distill", *flags, "--no-preflight", "--dataloader_num_workers=1")
    kept = shutil.copytree(folder / "run", folder / "kept")  # the run will go on
    return kept, done


@pytest.fixture(scope="module")
def jobs(
    scenes, lonely, tiny_folders, still_teacher, one, told, tmp_path_factory
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Command and options by name; each process takes ``per_device_train_batch_size`` images."""
    folder = tmp_path_factory.mktemp("two")

    def job(name: str, data: Path, batch: int, **options: Any) -> dict[str, Any]:
        return tiny_run(folder / name, data, **options) | {"per_device_train_batch_size": batch}

    options = step_options(tiny_folders, "deformable")
    made = {"deformable-lonely": ("distill", job("deformable-lonely", lonely, 1, **options))}
    options = step_options(tiny_folders, "detr", max_steps=4, save_steps=3, learning_rate=CALM)
    cached = {"cache_images": "disk", "cache_dir": str(folder / "cache"), "gradient_accumulation_steps": 2}
    made["detr-accumulated"] = ("distill", job("detr-accumulated", scenes, 2, **options, **cached))
    made["detr-halves"] = ("distill", job("detr-halves", scenes, 4, **options))
    resumed = {"resume_from_checkpoint": str(one / "checkpoints" / "checkpoint-3")}
    made["detr-resumed"] = ("distill", job("detr-resumed", scenes, 4, **options, **resumed))
    # One step: real-time families pick queries among cells, whose order rounding changes where scores are close.
    once = {"learning_rate": 1e-3, "max_steps": 1, "save_steps": 1}
    still = step_options(tiny_folders, "detr", student=None, student_decoder_layers=1, **once)
    still |= {"teacher": str(still_teacher), "still_batch_norms": True}
    still |= {"unlabeled": str(scenes / "images" / "val"), "unlabeled_detection": "off", "unlabeled_batch_size": 1}
    made["rt_detr-still"] = ("distill", job("rt_detr-still", scenes, 4, **still))
    derived = {"teacher": str(TEACHER), "student_decoder_layers": 1}
    made["rt_detr-lonely"] = ("distill", job("rt_detr-lonely", lonely, 1, **derived))
    options = {"teacher": str(TEACHER), "student": str(tiny_folders["d_fine_student"]), "preflight": False}
    made["d_fine-lonely"] = ("distill", job("d_fine-lonely", lonely, 1, image_size=128, **options))
    options = step_options(tiny_folders, "detr", **once)
    options |= {"teacher": str(TEACHER), "student": str(tiny_folders["lw_detr_student"]), "still_batch_norms": True}
    made["lw_detr-lonely"] = ("distill", job("lw_detr-lonely", lonely, 1, **options))
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
    made["whole"] = ("distill", job("whole", scenes, 2, **measured_options()))
    made["ended"] = ("distill", job("ended", scenes, 2, ctrl_c_in_step=3, **measured_options()))
    again = measured_options() | {"resume_from_checkpoint": "last"}
    made["gone-on"] = ("distill", job("ended", scenes, 2, **again))
    made["told-gone-on"] = ("distill", job("told", scenes, 2, **again) | {"output_dir": str(told[0].parent / "run")})
    return made


@pytest.fixture(scope="module")
def two(jobs, tmp_path_factory) -> dict[str, Path]:
    """Run folders of all jobs, run by two processes."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    (folder / "worker.py").write_text(WORKER)
    done = launch(folder / "worker.py", folder / "jobs.json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {name: Path(options["output_dir"]) for name, (_, options) in jobs.items()}


def launch(*command: object) -> subprocess.CompletedProcess[str]:
    """A script in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*launcher, *map(str, command)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def losses(folder: Path) -> list[dict[str, float]]:
    """The loss and its parts of every step."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    parts = ("loss", "lapd", "agfd")
    return [{k: v for k, v in entry.items() if k.startswith(parts)} for entry in entries if "loss" in entry]


def assert_same_losses(one: Path, other: Path, last: int, pairs: float = 2e-4) -> None:
    """The ``last`` entries; of hard negatives that found no partner (see ``docs/training.md``) up to ``pairs``."""
    for left, right in zip(losses(one)[-last:], losses(other)[-last:], strict=True):
        assert {"loss", "agfd", "lapd_box"} <= left.keys()
        assert left.keys() == right.keys()
        for name, value in left.items():
            rel = pairs if name == "loss" or name.startswith("lapd") else 2e-4
            assert value == pytest.approx(right[name], rel=rel, abs=1e-6), name


def assert_same_weights(one: Path, other: Path, step: int) -> None:
    for name in ("distiller", "average"):
        weights, wanted = (
            load_file(run / f"checkpoints/checkpoint-{step}" / f"{name}.safetensors") for run in (one, other)
        )
        for key in wanted:
            # An update is of the size 1e-2; where a ReLU lies on its corner, gradients differ by more than rounding.
            torch.testing.assert_close(weights[key], wanted[key], rtol=1e-4, atol=2e-4, msg=f"{name}: {key}")


@pytest.mark.parametrize(("job", "images"), [("deformable-lonely", 2), ("lw_detr-lonely", 2), ("rt_detr-still", 8)])
def test_two_processes_take_the_same_steps_as_one(jobs, two, tmp_path, monkeypatch, job, images):
    """The same images in every step, in one process all at once; and the weights that are kept measure the same."""
    command, options = jobs[job]
    changes = {"output_dir": str(tmp_path), "per_device_train_batch_size": images, "gradient_accumulation_steps": 1}
    options = options | changes
    if options.pop("still_batch_norms", False):
        monkeypatch.setattr(nn.BatchNorm2d, "train", lambda self, mode=True: nn.Module.train(self, False))
        options |= {"unlabeled_batch_size": 2} if "unlabeled" in options else {}
    run = getattr(qskd, command)(**options)
    steps = options["max_steps"]
    assert_same_losses(two[job], tmp_path, last=steps, pairs=1e-2 if job == "rt_detr-still" else 2e-4)
    assert_same_weights(two[job], tmp_path, step=steps)
    measured = json.loads((two[job] / "summary.json").read_text())["metrics"]
    assert measured["AP"] == pytest.approx(run.metrics["AP"], abs=1e-3)
    assert (measured["num_images"], run.metrics["AP"] > 0.1) == (run.metrics["num_images"], job == "rt_detr-still")


@pytest.mark.parametrize("job", ["detr-halves", "detr-accumulated"])
def test_two_processes_of_four_images_or_twice_two_take_the_same_steps_as_one(one, two, job):
    assert_same_losses(two[job], one, last=4)
    for step in (3, 4):
        assert_same_weights(two[job], one, step=step)
    measured, wanted = (json.loads((run / "summary.json").read_text())["metrics"]["AP"] for run in (two[job], one))
    assert measured == pytest.approx(wanted, abs=1e-3)


def test_one_process_goes_on_where_two_were_stopped(jobs, one, two, tmp_path):
    command, options = jobs["detr-accumulated"]
    checkpoint = two["detr-accumulated"] / "checkpoints" / "checkpoint-3"
    changes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "output_dir": str(tmp_path)}
    getattr(qskd, command)(**(options | changes | {"resume_from_checkpoint": str(checkpoint)}))
    assert len(losses(tmp_path)) == 1
    assert_same_losses(tmp_path, two["detr-accumulated"], last=1)
    assert_same_weights(tmp_path, two["detr-accumulated"], step=4)


def running_with(argument: str) -> list[int]:
    """Processes one of whose arguments holds this text, as Linux lists them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if argument in path.read_text():
                found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found as Linux lists them")
def test_one_process_goes_on_where_two_were_killed(scenes, tiny_folders, one, tmp_path):
    options = step_options(tiny_folders, "detr", max_steps=4, save_steps=1, learning_rate=CALM)
    options = tiny_run(tmp_path / "run", scenes, **options) | {"per_device_train_batch_size": 4}
    flags = [f"--{name}={value}" for name, value in options.items() if name != "preflight"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "qskd"]
    killed = subprocess.Popen([*launcher, "distill", *flags, "--no-preflight"], env=ENVIRONMENT)
    kept, deadline = tmp_path / "run" / "checkpoints", time.monotonic() + 120
    while not list(kept.glob("checkpoint-[123]")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    told = running_with(str(tmp_path / "run"))
    for pid in told:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    killed.wait()
    assert len(told) == 3, "the launcher and both processes, which it gives sessions of their own"
    assert not (kept / "checkpoint-4").exists(), "it was over before"
    changes = {"per_device_train_batch_size": 8, "resume_from_checkpoint": "last"}
    qskd.distill(**(options | changes))
    assert [entry["step"] for entry in entries_of(tmp_path / "run") if "loss" in entry] == [1, 2, 3, 4]
    assert_same_losses(tmp_path / "run", one, last=4)
    assert_same_weights(tmp_path / "run", one, step=4)


def test_two_processes_go_on_where_one_was_stopped(one, two):
    assert len(losses(two["detr-resumed"])) == 1
    assert_same_losses(two["detr-resumed"], one, last=1)
    assert_same_weights(two["detr-resumed"], one, step=4)


def test_two_processes_keep_each_image_once_and_whole(jobs, two):
    """Both write what they decode into one folder."""
    kept = sorted(Path(jobs["detr-accumulated"][1]["cache_dir"]).rglob("*"))
    files = [path for path in kept if path.is_file()]
    assert len(files) == 16
    assert not [path for path in files if path.name.startswith(".")]
    assert all(np.load(path).shape == (64, 64, 3) for path in files)


def test_an_error_of_one_process_ends_both_at_once(scenes, tiny_folders, tmp_path):
    """The other one waits for it in the middle of a step."""
    (tmp_path / "worker.py").write_text(FAILING)
    options = tiny_run(tmp_path / "run", scenes, **step_options(tiny_folders, "detr", max_steps=50))
    flags = [f"--{name}={value}" for name, value in options.items() if name != "preflight"]
    done = launch(tmp_path / "worker.py", "distill", *flags, "--no-preflight")
    ended = time.time()
    assert done.returncode == 1
    assert "qskd distill (process 1 of 2): a.jpg cannot be read" in done.stderr
    assert ended - float(re.search(r"failed at ([\d.]+)", done.stdout).group(1)) < 60
    assert done.stdout.count("images: ") == 1


def test_a_signal_to_one_process_amid_an_evaluation_ends_both(told):
    """After the step it has made, with a checkpoint, the status of the signal, and no thread left that could abort."""
    run, done = told
    assert done.returncode == 1  # torchrun's own
    assert done.stdout.count("status 143 threads []") == 2
    for process in (0, 1):
        assert f"qskd distill (process {process} of 2): ended by SIGTERM after step 2. The last" in done.stderr
    assert "Traceback" not in done.stderr.partition("elastic")[0]
    kept = run / "checkpoints" / "checkpoint-2"
    assert {"evaluation_due", "rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in kept.iterdir()}
    assert [len(losses(run)), (run / "best").exists()] == [2, False]


def test_a_signal_to_one_process_amid_training_ends_both_after_the_step(two):
    for process in (0, 1):
        said = (two["ended"] / f"end_of_{process}.txt").read_text()
        assert said.startswith(f"{int(signal.SIGINT if process == 0 else signal.SIGTERM)}: ended by ")
        assert "after step 3. The last complete checkpoint is" in said


@pytest.mark.parametrize("job", ["gone-on", "told-gone-on"])
def test_two_processes_that_were_told_to_end_go_on_as_if_they_had_not(two, job):
    """Weights, losses and what was measured, bit for bit."""
    for name in ("distiller", "average"):
        weights, wanted = (
            load_file(two[run] / "checkpoints" / "checkpoint-4" / f"{name}.safetensors") for run in (job, "whole")
        )
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[key], wanted[key]) for key in wanted)
    assert losses(two[job]) == losses(two["whole"])
    assert entries_of(two[job], "eval_AP") == entries_of(two["whole"], "eval_AP")
    assert (two[job] / "best" / "model.safetensors").read_bytes() == (
        two["whole"] / "best" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("family", ["rt_detr", "d_fine"])
def test_a_process_without_any_object_does_not_stop_the_other(two, family):
    """Families with losses of their own draw random queries, so steps depend on how images are dealt out: they only
    must be sound."""
    entries = losses(two[f"{family}-lonely"])
    assert len(entries) == 3
    assert all(value == value and abs(value) < 1e4 for entry in entries for value in entry.values())


def test_the_preflight_of_two_processes_measures_the_teacher(two):
    found = json.loads((two["rt_detr-lonely"] / "preflight.json").read_text())
    assert found["teacher"]["AP50"] > 0.2
    assert found["teacher"]["images"] == 1


def test_two_processes_keep_what_the_teacher_found_on_all_images(two, scenes):
    """Each asked it about its share."""
    run = two["rt_detr-still"]
    kept = KeptDetections.load(run / "eval" / "teacher_detections.npz")
    assert sorted(kept.state.image_ids.tolist()) == sorted(
        image["id"] for image in json.loads((scenes / "annotations/instances_val.json").read_text())["images"]
    )
    measured = json.loads((run / "summary.json").read_text())["teacher"]["metrics"]
    alone = qskd.evaluate(model=str(TEACHER), data=str(scenes), image_size=128)
    assert measured.pop("per_class") == pytest.approx(alone.pop("per_class"), abs=1e-6)
    assert measured == pytest.approx(alone, abs=1e-6)


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
