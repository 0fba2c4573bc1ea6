"""How fast qskd is, each number beside its target: ``python benchmarks/speed.py [--quick] [--out FILE]``.

Ratios compare two ways to compute the same thing, after checking that both give the same result: their
medians over interleaved repeats on one thread, in seconds of the processor, since machines are shared.
``--quick`` takes smaller sizes and fewer repeats, to see that everything runs; its numbers say little. To add
a row, write a function of ``quick`` and list it in ``ROWS``.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))

import cached_teacher
import criterion
import start_up
import step
import step_memory
import training_and_evaluation as work

RESULTS = Path(__file__).parent / "results" / "speed.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One number to measure, and what it should be."""

    name: str
    measure: Callable[[bool], float]  # takes ``quick``
    target: float
    better: Literal["high", "low"]
    unit: str  # "x" for ratios

    def reached(self, measured: float) -> bool:
        """Whether the target is met."""
        return measured >= self.target if self.better == "high" else measured <= self.target


ROWS: list[Row] = [
    Row("detection loss, DETR: transformers / qskd", work.softmax_loss, 5, "high", "x"),
    Row("detection loss, Conditional DETR: transformers / qskd", work.focal_loss, 5, "high", "x"),
    Row("criterion, 8 images of 30 objects: usual code / qskd", criterion.against_usual, 25, "high", "x"),
    Row("criterion, 16 images: usual code / qskd", criterion.against_usual_in_large_batches, 25, "high", "x"),
    Row("criterion, 8 images, peak memory: usual code / qskd", criterion.memory_against_usual, 7, "high", "x"),
    Row("criterion, growth exponent, 8 to 16 images", criterion.growth_with_batch, 1.1, "low", ""),
    Row("criterion, growth exponent, 30 to 60 objects", criterion.growth_with_objects, 0.4, "low", ""),
    Row("criterion, growth exponent, 1600 to 12996 tokens", criterion.growth_with_tokens, 0.5, "low", ""),
    Row("attention of 60 of 300 queries: whole map / qskd", criterion.attention_of_selected, 1.5, "high", "x"),
    Row("peak memory: whole step / teacher's weights + plain step", step_memory.distillation_step, 1.3, "low", "x"),
    Row("evaluation of 5000 images, growth of memory", step_memory.evaluation, 150, "low", "MB"),
    Row("step with cached teacher / student step alone", cached_teacher.step_against_student_alone, 1.10, "low", "x"),
    Row("teacher: plain / engine", step.engine, 1.2, "high", "x"),
    Row("teacher: plain float32 / engine bfloat16", step.engine_in_bfloat16, 2.0, "high", "x"),
    Row("default step / (plain teacher + student's step)", step.default_step, 0.8, "low", "x"),
    Row("the same, bfloat16", step.bfloat16_step, 0.5, "low", "x"),
    Row("COCO evaluation: pycocotools / qskd", work.coco_evaluation, 4, "high", "x"),
    Row("data loading, 640 px, full augmentation, one thread", work.data_loading, 250, "high", "images/s"),
    Row("import qskd, beyond python itself", start_up.import_seconds, 0.5, "low", "s"),
    Row("qskd --help, beyond python itself", start_up.help_seconds, 0.5, "low", "s"),
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row came to."""

    name: str
    measured: float
    target: float
    unit: str
    verdict: Literal["ok", "short of"]
    took_s: float


def run(row: Row, quick: bool) -> Outcome:
    """Measure one row."""
    start = time.perf_counter()
    measured = row.measure(quick)
    took = time.perf_counter() - start
    verdict: Literal["ok", "short of"] = "ok" if row.reached(measured) else "short of"
    return Outcome(row.name, round(measured, 4), row.target, row.unit, verdict, round(took, 1))


def line(outcome: Outcome, row: Row) -> str:
    """A line of the table."""
    bound = ">=" if row.better == "high" else "<="
    numbers = f"{outcome.measured:10.3g} {bound} {row.target:<6g} {row.unit:<9}"
    return f"{outcome.name:<56}{numbers} {outcome.verdict:<9} ({outcome.took_s:.1f} s)"


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    models = [row for row in info.read_text().splitlines() if "model name" in row] if info.exists() else []
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }


def main() -> None:
    """Measure every row, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("--out", type=Path, help=f"where to write JSON (default, unless --quick: {RESULTS})")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    start = time.perf_counter()
    outcomes = []
    for row in ROWS:
        if options.only in row.name:
            outcomes.append(run(row, options.quick))
            print(line(outcomes[-1], row), flush=True)
    print(f"{len(outcomes)} rows in {time.perf_counter() - start:.0f} s")
    out = options.out or (None if options.quick or options.only else RESULTS)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "quick": options.quick, "rows": [asdict(one) for one in outcomes]}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
