"""The whole job on scenes that qskd draws: `qskd demo`.

A bundled tiny teacher, and a tinier student trained three times, with one budget and in one order of data: plainly from
random weights, plainly from the teacher's, and with QSKD from the teacher's; then all are compared.
"""

from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from qskd.data.synthetic import draw_dataset
from qskd.errors import ConfigError
from qskd.losses.presets import resolve
from qskd.runs import api
from qskd.runs.comparing import Comparison, compare

IMAGE_SIZE = 128
TRAIN_IMAGES = 2000
VAL_IMAGES = 200
_RUNS = ("baseline", "inherited", "distilled")


@dataclass
class DemoOptions:
    """What can be changed about the demo."""

    output_dir: str = field(default="runs/demo", metadata={"help": "Where everything goes."})
    steps: int = field(default=400, metadata={"help": "Optimiser steps of each of the three trainings."})
    seed: int = field(default=0, metadata={"help": "Of the student's initial weights and the data order."})
    method: str = field(default="qskd", metadata={"help": "The distillation method."})


def demo(options: DemoOptions) -> Comparison:
    """Draw, train, distil, compare.

    Raises:
        ConfigError: the output folder already holds a demo, or an option cannot be.
    """
    resolve(options.method)  # an unknown method is refused now, not after the first training
    if options.steps < 1 or options.seed < 0:
        raise ConfigError(f"--steps is {options.steps}, --seed {options.seed}; give at least 1 step and seed 0.")
    folder = Path(options.output_dir)
    if any((folder / name).exists() for name in _RUNS):
        raise ConfigError(f"{folder} holds a demo already. Remove it, or give another --output_dir.")
    show(f"drawing {TRAIN_IMAGES} training and {VAL_IMAGES} validation scenes of {IMAGE_SIZE} x {IMAGE_SIZE} pixels")
    scenes = draw_scenes(folder / "scenes")
    with as_file(files("qskd") / "assets") as assets:
        student = str(assets / "demo_student.json")
        common = training_options(options, scenes)
        show(f"baseline: the student trained plainly, {options.steps} steps")
        api.train(model=student, output_dir=str(folder / "baseline"), **common)
        common |= {"teacher": str(assets / "demo_teacher"), "student": student}
        show("inherited: the same student, begun with a teacher's weights, which helps it no further")
        api.distill(method="none", output_dir=str(folder / "inherited"), **common)
        show(f"distilled: the same student, begun with the teacher's weights and trained under it ({options.method})")
        api.distill(method=options.method, output_dir=str(folder / "distilled"), **common)
    show("comparing")
    return compare([folder / name for name in _RUNS], folder / "report")


def draw_scenes(folder: Path) -> Path:
    """The demo's scenes; left alone where they are complete already."""
    if not (folder / "annotations" / "instances_val.json").is_file():  # written last
        draw_dataset(folder, train=TRAIN_IMAGES, val=VAL_IMAGES, size=IMAGE_SIZE, seed=0)
    return folder


def show(line: str) -> None:
    """What happens next, at once."""
    print(f"[demo] {line}", flush=True)


def training_options(options: DemoOptions, scenes: Path) -> dict[str, Any]:
    """What all trainings have in common."""
    return {
        "data": str(scenes),
        "image_size": IMAGE_SIZE,
        "max_steps": options.steps,
        "seed": options.seed,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 32,
        "learning_rate": 3e-3,
        "warmup_steps": 50,
        "crop": 0.0,
        "photometric": 0.0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 50,
    }
