"""A run that is killed at random moments, also while it writes, ends as the one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import builders_kills

KILLS = 20
NEVER_THE_SAME = ("eval_runtime", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_as_if_nothing_had_happened(tmp_path, scenes):
    done = subprocess.run(
        [sys.executable, builders_kills.__file__, str(scenes), str(tmp_path), str(KILLS)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ways = json.loads(done.stdout.splitlines()[-1])
    assert [ended for _, ended, _ in ways] == [False] * KILLS, "every child was killed before the end"
    assert len({last for _, _, last in ways}) > KILLS // 3, "the run gets on between the kills"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert log_of(cut) == log_of(whole)
    for name in ("best", "last"):
        assert contents(cut / name) == contents(whole / name)
    for name in ("checkpoint-42", "checkpoint-44"):
        assert_same_checkpoint(*(run / "checkpoints" / name for run in (cut, whole)))
    assert sorted(everything(cut)) == sorted(everything(whole)), "nothing is left over"


def log_of(folder: Path) -> list[dict[str, object]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in NEVER_THE_SAME} for entry in entries]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def assert_same_checkpoint(one: Path, other: Path) -> None:
    for name in ("distiller", "average"):
        left, right = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (one, other)]
    for key in ("global_step", "best_metric", "best_global_step", "epoch"):
        assert states[0][key] == states[1][key], key
    left, right = (torch.load(folder / "rng_state.pth", weights_only=False) for folder in (one, other))
    assert torch.equal(left["cpu"], right["cpu"])
