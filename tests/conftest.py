"""Fixtures shared by the tests: drawn scenes and saved tiny models; nothing is downloaded."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="qskd-datasets-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training and 6 validation scenes of 64 px, in COCO form."""
    from qskd.data.synthetic import draw_dataset

    folder = tmp_path_factory.mktemp("scenes")
    draw_dataset(folder, train=16, val=6, size=64, seed=3)
    return folder


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models with the scenes' classes: a teacher and a student of two families."""
    import builders_runs

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    return {name: builders_runs.save(name, folder / name) for name in builders_runs.MODELS}
