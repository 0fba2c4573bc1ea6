"""The accuracy benchmark's modules and its grid."""

import importlib
import sys
from dataclasses import replace

import pytest

from builders_accuracy import ROOT

OWN = ("accuracy", "accuracy_grid", "accuracy_preparing", "accuracy_reading", "accuracy_records", "accuracy_running")
MODULES = (
    *OWN,
    "accuracy_commands",
    "accuracy_images",
    "accuracy_machine",
    "accuracy_states",
    "accuracy_tables",
    "accuracy_tasks",
)


@pytest.fixture(scope="module")
def parts():
    """The benchmark's modules by the last word of their names."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield {name.rpartition("_")[2]: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def grid(parts):
    read = parts["reading"].read_grid(ROOT / "benchmarks" / "accuracy.yaml")
    return replace(read, search=replace(read.search, factors=(0.3, 1, 3), seeds=(100, 101)))
