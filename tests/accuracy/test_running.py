"""Running cells: side by side, interrupted, failed."""

import json
import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from builders_accuracy import finish, record, task_of
from builders_runs import complete_checkpoint


def test_a_cell_that_another_process_trains_is_left_alone(parts, tmp_path):
    task = task_of(parts, tmp_path / "cell", "--help")
    lock = parts["states"].take_lock(task.folder)
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "mine").write_text("")
    runner = parts["running"].Runner({"t": task})
    assert not runner.run()
    assert (tmp_path / "cell" / "mine").is_file()
    os.close(lock)
    assert not parts["running"].Runner({"t": task}).run(), "begun now; it ends without a summary"
    assert not (tmp_path / "cell" / "mine").exists()
    assert json.loads((tmp_path / "cell" / "cell.json").read_text())["errors"] == 1


def test_what_another_call_prepares_is_waited_for(parts, tmp_path):
    folder, made = tmp_path / "data" / "scenes", []
    task = parts["tasks"].Task("data/scenes", folder / "annotations" / "val.json", make=lambda: made.append(1))
    lock = parts["states"].take_lock(folder)
    running = threading.Thread(target=parts["running"].Runner({task.name: task}).run)
    running.start()
    running.join(timeout=1)
    assert running.is_alive()
    task.folder.mkdir(parents=True)
    task.product.write_text("")
    os.close(lock)
    running.join(timeout=30)
    assert not running.is_alive()
    assert made == []


@pytest.mark.parametrize(("settings", "is_kept"), [("now", True), ("before", False)])
def test_a_cell_that_was_begun_with_other_settings_begins_anew(parts, tmp_path, capsys, settings, is_kept):
    task = replace(task_of(parts, tmp_path / "cell", "no_such_command"), facts={"settings": ["now"]})
    complete_checkpoint(tmp_path / "cell" / "checkpoints" / "checkpoint-2", 2)
    (tmp_path / "cell" / "cell.json").write_text(json.dumps({"settings": [settings]}))
    assert not parts["running"].Runner({"t": task}).run()
    assert (tmp_path / "cell" / "checkpoints").is_dir() == is_kept
    assert ("begins anew" in capsys.readouterr().out) != is_kept


def test_a_cell_begins_anew_after_a_second_error(parts, tmp_path):
    task = task_of(parts, tmp_path / "cell", "no_such_command")
    complete_checkpoint(tmp_path / "cell" / "checkpoints" / "checkpoint-2", 2)
    kept = []
    for _ in range(2):
        assert not parts["running"].Runner({"t": task}).run()
        kept.append((tmp_path / "cell" / "checkpoints").is_dir())
    assert kept == [True, False]


def test_records_with_unlike_curves_have_no_mean_curve_and_are_not_called_too_weak(parts):
    unlike = [record(parts, method="qskd", seed=seed, curve=((10 + seed, 0.1), (100, 0.9))) for seed in (0, 1)]
    tables = parts["tables"].tables_of([*unlike, record(parts), record(parts, seed=1)])
    assert "not reached" not in parts["tables"].as_markdown(tables)


@pytest.mark.parametrize("expected", [300, 425, 470, 495, 600])
def test_there_is_no_time_that_a_cell_can_take_and_never_be_begun(parts, tmp_path, expected):
    done = task_of(parts, tmp_path / "done")
    finish(tmp_path, SimpleNamespace(name="done"), 0.1)
    (tmp_path / "done" / "cell.json").write_text(json.dumps({"kind": "k", "seconds": expected}))
    tasks = {"done": done, "t": task_of(parts, tmp_path / "t")}
    assert parts["running"].Runner(tasks, minutes=8.5)._next() is not None
