"""Steps on a GPU: ``python benchmarks/gpu.py [--device cuda] [--side 640] [--images 16 64] [--quick] [--out FILE]``.

Prints images a second, peak memory and host synchronisations of plain training and of distillation (Conditional DETR,
ResNet-50 teaches ResNet-18, random weights, bfloat16), and the ratio of a distillation step to the teacher's forward
pass and the student's step (target: at most 1.05). ``--device cpu --quick`` only shows that it runs.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent))

import step

from qskd.models.folding import channels_last


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


def synchronisations(run: Callable[[], None], device: torch.device) -> int | None:
    """How often the host waits for the device in one call, as PyTorch notices; None without a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in caught)


def measure(
    images: int, side: int, device: torch.device, *, quick: bool, repeats: int
) -> dict[str, float | int | None]:
    """Numbers of one batch size."""

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
        results[str(images)] = found
        for key, value in found.items():
            print(f"{1 if options.quick else images:4} images  {key:<52} {value:.4g}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps({"device": name, "batches": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
