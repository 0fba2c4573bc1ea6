"""The speed benchmark: what its rows measure still runs."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
MODULES = ("criterion", "step", "memory", "timing", "usual_criterion")


@pytest.fixture(scope="module")
def parts():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in MODULES:
            sys.modules.pop(name, None)


def test_the_criterion_of_the_benchmark_is_the_usual_one_written_otherwise(parts):
    criterion = parts["criterion"]
    given = criterion.random_step(2, 64, 5)
    for ours, usual in zip(criterion.criterion_of(given)(), criterion._usual_of(given)(), strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-4, atol=1e-6)


def test_a_step_of_the_benchmark_has_a_folded_teacher_and_learns(parts):
    step = parts["step"]
    pair = step.pair(True)
    step.distillation(pair, pair.engine)()
    assert any(one.grad is not None and one.grad.any() for one in pair.student.model.parameters())
    assert not any("BatchNorm" in type(module).__name__ for module in pair.engine.model.modules())
