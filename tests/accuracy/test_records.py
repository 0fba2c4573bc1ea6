"""What is noted of cells, and what becomes of it in their records."""

import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from builders_accuracy import finish, place_of, record, task_of
from qskd.losses.presets import options_of as options_of_preset
from qskd.losses.presets import resolve


@pytest.mark.parametrize(("owes", "expected"), [(True, 240.0), (False, 400.0)])
def test_an_evaluation_that_is_made_up_is_no_training(parts, owes, expected):
    """800 steps of 0.3 s; the second sitting began at step 700, and evaluated for 20 s before step 701 if it had to."""
    evaluations = [{"step": 700, "eval_runtime": 20.0}, {"step": 800, "eval_runtime": 20.0}]
    notes = {"sittings": [{"from_step": 0}, {"from_step": 700, "owes_evaluation": owes}]}
    summary = {"steps": 800, "train_seconds": 30.0 + 40.0}
    assert parts["records"]._train_seconds(summary, notes, evaluations) == pytest.approx(expected)


def test_all_commits_that_trained_a_cell_are_told(parts, tmp_path, monkeypatch):
    task = task_of(parts, tmp_path / "cell", "--help")
    task.folder.mkdir()
    for commit in ("one", "one", "two"):
        monkeypatch.setenv("QSKD_COMMIT", commit)
        parts["running"].Runner({})._note_start(task, None)
    notes = parts["states"].notes_of(task.folder)
    assert parts["records"]._said(notes, "commit") == "one and two"
    parts["states"].write_notes(task, {"commit": "earlier", "hardware": "h", "sittings": [{"from_step": 0}]})
    parts["running"].Runner({})._note_start(task, None)
    assert parts["records"]._said(parts["states"].notes_of(task.folder), "commit") == "earlier and two"
    assert parts["records"]._said({"commit": "of an earlier version"}, "commit") == "of an earlier version"
    assert parts["records"]._said({}, "commit") == "unknown"


def test_a_method_that_the_grid_has_no_more_is_known_by_its_records(parts, grid, tmp_path):
    (tmp_path / "data").mkdir()
    place = place_of(parts, grid, tmp_path, bccd=tmp_path / "data")
    for method in ("gone", "gone[selection_cap=3]"):
        cell = parts["grid"].Cell("bccd", "d_fine", method, 0)
        assert not parts["records"]._is_changed(place, cell)
        assert not parts["records"]._is_chosen(place, cell, {})


def test_seeds_of_one_row_may_be_measured_unlike_often(parts, grid):
    block = grid.blocks[0]
    blocks = (replace(block, seeds=(0, 1), curve=8), replace(block, seeds=(3,), curve=4))
    several = replace(grid, blocks=blocks)
    cells = {cell.seed: cell for cell in several.cells()}
    assert {seed: several.curve_of(replace(cell, curve=0)) for seed, cell in cells.items()} == {0: 8, 1: 8, 3: 4}
    assert several.curve_of(replace(cells[0], seed=9)) == 8


def test_a_changed_cell_that_is_being_trained_stays_where_it_is(parts, tmp_path, capsys):
    task = replace(task_of(parts, tmp_path / "cell", "--help"), facts={"settings": ["now"]})
    task.folder.mkdir()
    parts["states"].write_notes(task, {"settings": ["before"]})
    pupil = replace(task_of(parts, tmp_path / "pupil", "--help"), needs=(task.name,))
    pupil.folder.mkdir()
    place = SimpleNamespace(tasks=lambda cells: {task.name: task, "pupil": pupil})
    lock = parts["states"].take_lock(task.folder)
    parts["accuracy"]._forget_changed(place, [], only_say=False)
    assert "is being trained by another call" in capsys.readouterr().out
    assert task.folder.is_dir()
    assert pupil.folder.is_dir()
    os.close(lock)
    parts["accuracy"]._forget_changed(place, [], only_say=False)
    assert not task.folder.exists()
    assert (tmp_path / "cell.old1").is_dir()
    assert (tmp_path / "pupil.old1").is_dir()


def test_what_cannot_end_in_what_is_left_of_a_call_waits_for_the_next(parts, tmp_path):
    done = task_of(parts, tmp_path / "done")
    finish(tmp_path, SimpleNamespace(name="done"), 0.1)
    parts["states"].write_notes(done, {"kind": "k", "seconds": 720.0})
    tasks = {"done": done, "t": task_of(parts, tmp_path / "t")}
    runner = parts["running"].Runner
    assert runner(tasks, minutes=60, began=time.monotonic() - 40 * 60)._next() is not None
    assert runner(tasks, minutes=60, began=time.monotonic() - 50 * 60)._next() is None


def test_a_method_is_held_against_the_preset_that_it_is_trained_as(parts):
    options = options_of_preset(resolve("positives")) | {"agfd.weight": 1.0}
    records = [record(parts, method="positives_without_mask", options=options, preset="positives")]
    text = parts["tables"].as_markdown(parts["tables"].tables_of(records))
    assert "positives_without_mask was trained with agfd.weight 1.0, which is 5.0 by now (seeds 0)." in text
