"""The search, the sweeps, and what counts as made otherwise."""

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from builders_accuracy import finish, finish_trials, options_of, place_of


def test_the_search_chooses_each_methods_learning_rate(parts, grid, tmp_path):
    place = place_of(parts, grid, tmp_path)
    cells = grid.cells(["bccd", "d_fine", "0", "none", "qskd_from_scratch", "inheritance", "qskd"])
    by_name = {cell.method: cell for cell in cells}
    trials = {(one.method, one.search, one.seed): one for one in grid.search_cells(cells)}
    assert set(trials) == {
        (method, factor, seed) for method in by_name for factor in (0.3, 1, 3) for seed in (100, 101)
    }
    assert len({one.name for one in trials.values()}) == len(trials)

    def options(cell):
        return options_of(place.task(cell))

    base = options(cells[0])["--learning_rate"]
    trial = options(trials["none", 3, 101])
    assert float(trial["--learning_rate"]) == 3 * float(base)
    assert trial["--seed"] == "101"
    assert int(trial["--max_steps"]) == grid.search.steps * int(options(cells[0])["--max_steps"])
    assert "holdout" in trial["--data"]
    finish_trials(tmp_path, grid, by_name["none"], {0.3: (0.1, 0.1), 1: (0.4, 0.1), 3: (0.3, 0.3)})
    finish_trials(tmp_path, grid, by_name["qskd"], {0.3: (0.1, 0.4), 1: (0.3, 0.1), 3: (0.0, 0.2)})
    found = {name: float(options(cell)["--learning_rate"]) / float(base) for name, cell in by_name.items()}
    assert found == pytest.approx({"none": 3, "qskd_from_scratch": 1, "inheritance": 1, "qskd": 0.3})
    assert not {"--lapd_weight", "--agfd_weight"} & set(options(by_name["qskd"])), "the weights stay"


def test_sweeps_are_made_when_the_search_is_done(parts, grid, tmp_path, monkeypatch, capsys):
    """When the sweeps' commands are made, the rate of what they vary is known."""
    main = importlib.import_module("accuracy")
    place = place_of(parts, grid, tmp_path)
    asked: list[set[str]] = []

    def carry_out(_, cells, __):
        asked.append({cell.method.partition("[")[0] for cell in cells})
        for cell in cells:
            if not (tmp_path / cell.name).exists():
                finish(tmp_path, cell, 0.1 * cell.search)
        return True

    monkeypatch.setattr(main, "_carry_out", carry_out)
    cells = grid.cells(["bccd", "d_fine", "0", "none", "qskd"])
    options = argparse.Namespace(search=True, sweeps=True, list=False, dry_run=False)
    main._search(place, cells, options)
    assert asked == [{"none", "qskd"}, {"qskd"}]
    assert "no complete search" not in capsys.readouterr().out
    assert {(trial.search, trial.seed) for trial in place.sweep_cells(cells)} == {(3.0, 100), (3.0, 101)}


@pytest.mark.parametrize(
    ("said", "factor"),
    [
        ("qskd train: The loss at step 3 is not finite: loss_vfl. The batch was saved.", (0.3, True)),
        ("qskd train: The gradient norm at step 3 is inf, though the loss was finite.", (0.3, True)),
        ("qskd train: a checkpoint cannot be written: No space left on device.", (1.0, False)),
        ("", (1.0, False)),
    ],
    ids=["loss", "gradient", "disk", "nothing"],
)
def test_a_trial_that_diverged_counts_as_nothing_found_and_one_that_broke_off_as_none(
    parts, grid, tmp_path, said, factor
):
    place = place_of(parts, grid, tmp_path)
    cell = grid.cells(["bccd", "d_fine", "0", "none"])[0]
    finish_trials(tmp_path, grid, cell, {0.3: (0.2, 0.2), 1: (0.1, 0.1)})
    first, high = grid.trials(cell, 3)
    finish(tmp_path, first, 0.3)
    assert place.factor(cell) == (1.0, False)
    (tmp_path / high.name).mkdir(parents=True)
    facts = {**place.task(high).facts, "failed": 1}
    (tmp_path / high.name / "cell.json").write_text(json.dumps(facts))
    (tmp_path / high.name / "log.txt").write_text(f"step 2\n{said}\n")
    assert place.factor(cell) == factor
    (tmp_path / high.name / "cell.json").write_text(json.dumps(facts | {"settings": ["other"]}))
    assert place.factor(cell) == (1.0, False), "it diverged with other settings than now"


def test_trials_with_other_settings_than_now_choose_nothing(parts, grid, tmp_path):
    place = place_of(parts, grid, tmp_path)
    cell = grid.cells(["bccd", "d_fine", "0", "qskd"])[0]
    for trial in grid.search_cells([cell]):
        finish(tmp_path, trial, 0.1 * trial.search)
        (tmp_path / trial.name / "cell.json").write_text(json.dumps(place.task(trial).facts))
    assert place.factor(cell) == (3, True)
    steps = {"max_steps": 2 * 312, "learning_rate": 1e-3}
    other = replace(grid, datasets={**grid.datasets, "bccd": replace(grid.datasets["bccd"], student_flags=steps)})
    assert place_of(parts, other, tmp_path).factor(cell) == (1.0, False)


def test_a_search_with_stale_trials_says_so_and_is_not_done(parts, grid, tmp_path, monkeypatch, capsys):
    main = importlib.import_module("accuracy")
    place = place_of(parts, grid, tmp_path)
    cells = grid.cells(["bccd", "d_fine", "0", "none"])
    for trial in grid.search_cells(cells):
        finish(tmp_path, trial, 0.1)
        (tmp_path / trial.name / "cell.json").write_text(json.dumps(place.task(trial).facts))
    stale = grid.search_cells(cells)[0]
    (tmp_path / stale.name / "cell.json").write_text('{"settings": ["other"]}')
    monkeypatch.setattr(main, "_carry_out", lambda *_: True)
    options = argparse.Namespace(search=True, sweeps=False, list=False, dry_run=False)
    assert main._search(place, cells, options) == 1
    text = capsys.readouterr().out
    assert f"{stale.name} (made otherwise)" in text
    assert text.count("(made otherwise)") == 1
    assert "--redo makes them again" in text


def test_other_labels_in_the_same_place_are_other_settings(parts, grid, tmp_path):
    labels = tmp_path / "bccd" / "labels.json"
    labels.parent.mkdir()
    (labels.parent / "image.jpg").write_bytes(b"one")
    cell = grid.cells(["bccd", "d_fine", "0", "qskd"])[0]
    trial = grid.search_cells([cell])[0]
    found = []
    for content in ("[1]", "[2]", "[1]"):
        labels.write_text(content)
        parts["preparing"].data_print.cache_clear()
        place = place_of(parts, grid, tmp_path / "runs", bccd=labels.parent)
        found.append([place.task(one).facts["settings"] for one in (cell, trial)])
        held_out = place.tasks([trial])["holdout/bccd"].folder.parent
        assert str(held_out) in place.task(trial).command
    for first, second, third in zip(*found, strict=True):
        assert first != second
        assert first == third
    other = replace(grid, search=replace(grid.search, holdout=0.4))
    facts = place_of(parts, other, tmp_path / "runs", bccd=labels.parent).task(trial).facts
    assert facts["settings"] != found[2][1], "other images are held out"


def test_labels_behind_a_link_and_data_of_one_file_are_told_apart(parts, tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "annotations").symlink_to(tmp_path / "labels")
    prints = []
    for content in ("1", "2"):
        (tmp_path / "labels" / "train.json").write_text(content)
        (tmp_path / "data.yaml").write_text(content)
        parts["preparing"].data_print.cache_clear()
        prints += [parts["preparing"].data_print(tmp_path / name) for name in ("data", "data.yaml")]
    assert len(set(prints)) == 4
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    parts["preparing"].data_print.cache_clear()
    assert parts["preparing"].data_print(tmp_path / "data") == prints[2], "links in a circle end, and add nothing"


def test_what_a_changed_teacher_taught_is_made_again_with_it(parts, grid, tmp_path, capsys):
    place = place_of(parts, grid, tmp_path)
    cells = grid.cells(["bccd", "d_fine", "0", "none", "qskd"])
    for name, task in place.tasks(cells).items():
        task.folder.mkdir(parents=True)
        task.product.write_text("{}")
        notes = dict(task.facts) if not name.startswith("teachers") else {"settings": ["other"]}
        (task.folder / "cell.json").write_text(json.dumps(notes))
    importlib.import_module("accuracy")._forget_changed(place, cells, False)
    left = {task.name for task in place.tasks(cells).values() if task.done}
    assert left == {"cells/bccd/d_fine/none/seed0"}


def test_sweeps_are_trials_with_the_option_as_it_is_written(parts, grid, tmp_path, capsys):
    place = place_of(parts, grid, tmp_path)
    cell = grid.cells(["bccd", "d_fine", "0", "qskd"])[0]
    main = importlib.import_module("accuracy")
    before = {trial.method: trial for trial in place.sweep_cells([cell])}
    main._say_unsearched(place, [cell])
    assert "bccd/d_fine: no complete search (--search) for qskd: " in capsys.readouterr().out
    assert place.sweep_cells(grid.cells(["bccd", "d_fine", "0", "positives"])) == []
    finish_trials(tmp_path, grid, cell, {0.3: (0.1, 0.1), 1: (0.2, 0.2), 3: (0.3, 0.3)})
    trials = {trial.method: trial for trial in place.sweep_cells([cell])}
    assert {trial.search for trial in before.values()} == {1.0}
    assert {trial.search for trial in trials.values()} == {3.0}, "at the rate that was chosen for what they vary"
    options = options_of(place.task(trials["qskd[lapd_weight=3]"]))
    assert options["--lapd_weight"] == "3"
    assert "--agfd_weight" not in options
    assert "holdout" in options["--data"]


def test_a_finished_cell_with_other_settings_than_the_grid_says_is_known_as_changed(parts, grid, tmp_path):
    place = place_of(parts, grid, tmp_path)
    cell = grid.cells(["bccd", "d_fine", "0", "qskd"])[0]
    task = place.task(cell)
    finish(tmp_path, cell, 0.1)
    (task.folder / "cell.json").write_text(json.dumps(task.facts))
    assert parts["states"].state_of(task) == "done"
    dataset = grid.datasets["bccd"]
    other = replace(
        grid,
        datasets={**grid.datasets, "bccd": replace(dataset, student_flags={"max_steps": 8, "learning_rate": 1e-3})},
    )
    changed = place_of(parts, other, tmp_path).task(replace(cell, curve=0))
    assert parts["states"].state_of(changed) == "changed"


def test_a_finished_cell_of_a_method_that_had_other_defaults_is_known_as_changed(parts, grid, tmp_path):
    task = place_of(parts, grid, tmp_path).task(grid.cells(["bccd", "d_fine", "0", "qskd"])[0])
    finish(tmp_path, SimpleNamespace(name=task.name), 0.1)
    for power, state in ((task.facts["options"]["agfd.power"], "done"), (7.0, "changed")):
        notes = {**task.facts, "options": {**task.facts["options"], "agfd.power": power}}
        (task.folder / "cell.json").write_text(json.dumps(notes))
        assert parts["states"].state_of(task) == state
    (task.folder / "cell.json").write_text(json.dumps({"settings": task.facts["settings"]}))
    assert parts["states"].state_of(task) == "changed", "of a time when defaults were not written down"


def finish_under_its_teacher(parts, task):
    """The files of a finished task; it is known as done."""
    task.folder.mkdir(parents=True)
    task.product.write_text("{}")
    notes = {**task.facts, "teacher": parts["states"].teacher_print(task)}
    (task.folder / "cell.json").write_text(json.dumps(notes))
    assert parts["states"].state_of(task) == "done"


@pytest.mark.parametrize("method", ["qskd", "inheritance"])
def test_what_came_from_another_teacher_is_known_as_changed(parts, grid, tmp_path, method):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "model.safetensors").write_text("one")
    place = replace(place_of(parts, grid, tmp_path), teachers={"bccd": teacher})
    cell = grid.cells(["bccd", "d_fine", "0", method])[0]
    task = place.task(cell)
    finish_under_its_teacher(parts, task)
    (teacher / "model.safetensors").write_text("another")
    assert parts["states"].state_of(task) == "changed"


def test_a_teacher_that_began_with_other_weights_is_known_as_changed(parts, grid, tmp_path):
    start = tmp_path / "model"
    start.mkdir()
    (start / "model.safetensors").write_text("one")
    pairs = {**grid.pairs, "rt_detr_tuned": replace(grid.pairs["rt_detr_tuned"], teacher=str(start))}
    place = place_of(parts, replace(grid, pairs=pairs), tmp_path)
    cells = grid.cells(["drawn_hard", "rt_detr_tuned", "0", "qskd"])
    task = place.tasks(cells)["teachers/drawn_hard/rt_detr_tuned"]
    finish_under_its_teacher(parts, task)
    (start / "model.safetensors").write_text("another")
    assert parts["states"].state_of(task) == "changed"


def test_a_lean_run_keeps_its_teachers(parts):
    lean = parts["running"].Runner({}, lean=True)
    kept = {
        name: "last" not in lean._left_over(parts["states"].Task(name, Path(name) / "summary.json"))
        for name in ("teachers/a/b", "cells/a/b/c/seed0", "search/a/b/c/factor1")
    }
    assert kept == {"teachers/a/b": True, "cells/a/b/c/seed0": False, "search/a/b/c/factor1": False}
