"""Steps on a GPU: ``python benchmarks/gpu.py [--device cuda] [--side 640] [--images 16 64] [--quick] [--out FILE]``.

Prints images a second, peak memory and host synchronisations of plain training and of distillation (Conditional DETR,
ResNet-50 teaches ResNet-18, random weights, bfloat16), and the ratio of a distillation step to the teacher's forward
pass and the student's step (target: at most 1.05); then the same of whole runs, with loading, optimiser and checks.
``--device cpu --quick`` only shows that it runs.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))

import step

import qskd
from qskd.data.synthetic import class_names, draw_dataset
from qskd.data.transforms import ImageSize
from qskd.models.folding import channels_last
from qskd.models.processors import save_model
from qskd.runs.training import RunResult

_STEPS_AN_EPOCH = 8
_WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize"}  # the profiler itself makes the device's


def seconds(run: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, all that it started on the device included; three untimed calls first."""
    times = []
    for _ in range(3 + repeats):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return median(times[3:])


def synchronisations(run: Callable[[], object], device: torch.device) -> int | None:
    """How often the host waits for the device in one call, by torch's profiler; None without a GPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key in _WAITS)


def measure(
    images: int, side: int, device: torch.device, *, quick: bool, repeats: int
) -> dict[str, float | int | None]:
    """Numbers of a step of one batch size that lies on the device, without loading and optimiser."""

    def around() -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=torch.bfloat16)

    models = step.pair(quick, str(device), images, side)
    channels_last(models.student)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "teacher": step.teaching(models, models.engine, around),
            "plain teacher": step.teaching(models, models.plain, around),
            "training": step.training(models, around),
            "distillation": step.distillation(models, models.engine, around),
            "distillation from a cache": step.distillation(models, models.engine, around, Path(folder)),
        }
        step.pair.cache_clear()  # the next batch size has models of its own
        return _numbers(runs, len(models.batch), device, repeats)


def _numbers(
    runs: dict[str, Callable[[], None]], count: int, device: torch.device, repeats: int
) -> dict[str, float | int | None]:
    """Of ``count`` images in each run."""
    taken, peaks = {}, {}
    for name, run in runs.items():
        _forget_peak(device)
        taken[name], peaks[name] = seconds(run, device, repeats), _peak_gib(device)
    found = {f"{name}, images/s": count / spent for name, spent in taken.items()}
    found["distillation / (teacher + training)"] = taken["distillation"] / (taken["teacher"] + taken["training"])
    found["distillation from a cache / training"] = taken["distillation from a cache"] / taken["training"]
    waits = [synchronisations(run, device) for name, run in runs.items() if name != "plain teacher"]
    if None not in waits:
        teacher, training, both, cached = (wait or 0 for wait in waits)
        found |= {"training, synchronisations": training, "distillation, synchronisations": both}
        found["synchronisations beyond teacher and training"] = both - teacher - training
        found["synchronisations of a cache beyond training"] = cached - training
        found |= {f"{name}, peak memory, GiB": peak for name, peak in peaks.items()}
    return found


def measure_runs(images: int, side: int, device: torch.device, *, quick: bool) -> dict[str, float]:
    """Numbers of a step of whole runs: images loaded and augmented, optimiser, moving average and all checks."""
    short, long = (1, 2) if quick else (10, 40)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, run in whole_runs(Path(name), images, side, device, max(long, 6), quick).items():
            spent = [train_seconds(run(steps, f"{kind} {steps}")) for steps in (short, long)]
            if quick:
                found[f"a run of {kind}, seconds"] = spent[1]
                continue
            found[f"a run of {kind}, images/s"] = images * (long - short) / (spent[1] - spent[0])
            waits = [synchronisations(partial(run, steps, f"{kind} seen {steps}"), device) for steps in (2, 6)]
            if waits[0] is not None and waits[1] is not None:
                found[f"a run of {kind}, synchronisations a step"] = (waits[1] - waits[0]) / 4
    return found


def whole_runs(
    folder: Path, images: int, side: int, device: torch.device, steps: int, quick: bool
) -> dict[str, Callable[[int, str], RunResult]]:
    """Commands by what they do; each takes a number of steps and a name for its folder."""
    draw_dataset(folder / "scenes", train=_STEPS_AN_EPOCH * images, val=2, size=side)
    models = step.pair(quick, "cpu", images, side)
    for adapter in (models.plain, models.student):  # whose 80 classes have numbers for names
        adapter.model.config.id2label |= dict(enumerate(class_names("easy")))
    teacher, student = (
        save_model(adapter, folder / name, size=ImageSize(square=side))
        for name, adapter in (("teacher", models.plain), ("student", models.student))
    )
    step.pair.cache_clear()
    common = {
        "data": str(folder / "scenes"),
        "image_size": side,
        "per_device_train_batch_size": images,
        "dataloader_num_workers": 0 if quick else min(os.cpu_count() or 1, 16),
        "dataloader_persistent_workers": not quick,
        "bf16": True,
        "channels_last": True,
        "use_cpu": device.type == "cpu",
        "eval_strategy": "no",
        "save_strategy": "no",
        "preflight": False,
    }
    taught = common | {"teacher": str(teacher), "student": str(student)}
    kept = {
        name: common[name] for name in ("data", "image_size", "dataloader_num_workers", "bf16", "use_cpu", "preflight")
    }
    cache = folder / "cache"
    qskd.cache_teacher(
        **kept, teacher=str(teacher), batch_size=images, epochs=-(-steps // _STEPS_AN_EPOCH), output_dir=str(cache)
    )

    def named(run: Callable[..., RunResult], given: dict[str, Any]) -> Callable[[int, str], RunResult]:
        return lambda steps, name: run(**given, max_steps=steps, output_dir=str(folder / name.replace(" ", "_")))

    return {
        "training": named(qskd.distill, taught | {"method": "none"}),
        "distillation": named(qskd.distill, taught),
        "distillation from a cache": named(qskd.distill, {**taught, "teacher": None, "teacher_cache": str(cache)}),
    }


def train_seconds(run: RunResult) -> float:
    """Of a run's steps, evaluations and models not counted."""
    entries = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return float(entries[-1]["train_runtime"])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float:
    """The most that was allocated since; all models lie there at any time."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")


def main() -> None:
    """Measure every batch size, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=640, help="pixels of a side of the images")
    parser.add_argument("--images", type=int, nargs="+", default=[16, 64], help="images of a batch")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="one small image: does it run?")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.disable_progress_bar()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing measured. `--device cpu --quick` shows that the code runs.")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no CUDA device, numbers are of the CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    results = {}
    for images in options.images[:1] if options.quick else options.images:
        found = measure(
            images, options.side, device, quick=options.quick, repeats=1 if options.quick else options.repeats
        )
        small = (1, 64) if options.quick else (images, options.side)
        with contextlib.redirect_stdout(io.StringIO()):
            found |= measure_runs(*small, device, quick=options.quick)
        results[str(images)] = found
        for key, value in found.items():
            print(f"{1 if options.quick else images:4} images  {key:<52} {value:.4g}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps({"device": name, "batches": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
