"""The accuracy benchmark: its grid, its commands, its numbers by hand, and whole trainings of a tiny grid."""

import argparse
import importlib
import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from builders_runs import complete_checkpoint
from qskd.cli.parsing import parse
from qskd.errors import ConfigError
from qskd.losses.presets import options_of as options_of_preset
from qskd.losses.presets import resolve
from qskd.runs.options import DataOptions, MethodOptions, PairOptions, TrainOptions
from qskd.trainer import DistillationConfig

ROOT = Path(__file__).parents[1]
OWN = ("accuracy", "accuracy_grid", "accuracy_preparing", "accuracy_reading", "accuracy_records", "accuracy_running")
SEARCH = {"holdout": 0.2, "seeds": [100], "steps": 1, "factors": [1, 3], "methods": ["none"]}
MODULES = (*OWN, "accuracy_states", "accuracy_tables", "accuracy_tasks")


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


def place_of(parts, grid, runs, **data):
    folders = {name: Path(f"/data/{name}") for name in grid.datasets if grid.datasets[name].drawn is None}
    return parts["tasks"].Workplace(grid, runs, folders | data, {})


# ---- the grid ------------------------------------------------------------------------------------------------


def test_the_grid_asks_what_a_sceptic_would(grid):
    first = grid.blocks[:3]
    assert {name for block in first for name in block.datasets} == {"bccd", "drawn_easy", "aquarium"}
    for block in first:
        assert {"none", "inheritance", "positives", "unmasked_features", "qskd"} <= set(block.methods)
        assert len(block.seeds) == 3
    everything = {cell.method for cell in grid.cells()}
    asked = {"all_queries", "index_aligned", "features", "predictions", "qskd_tprd", "qskd_from_scratch"}
    assert asked <= everything
    swept = {name.partition("[")[2].partition("=")[0] for name in grid.sweeps}
    assert {"selection_threshold", "selection_cap", "lapd_scope", "lapd_weight", "agfd_weight"} <= swept


def test_every_command_of_the_grid_is_understood_by_qskd(parts, grid, tmp_path):
    tasks = place_of(parts, grid, tmp_path).tasks(grid.cells())
    commands = [task.command for task in tasks.values() if task.command]
    assert len(commands) > 100
    for command, *rest in commands:
        first = TrainOptions if command == "train" else PairOptions
        kinds = (first, DataOptions, *((MethodOptions,) if command == "distill" else ()), DistillationConfig)
        *_, config = parse(command, "", kinds, [*rest, "--use_cpu"])
        assert config.max_steps > 0


@pytest.mark.parametrize("name", ["accuracy.yaml", "accuracy_gpu.yaml"])
def test_every_configuration_of_a_grid_is_there(parts, name):
    grid = parts["reading"].read_grid(ROOT / "benchmarks" / name)
    for pair in grid.pairs.values():
        for path in (pair.student, pair.teacher or pair.trained):
            assert (ROOT / path).exists(), path
    for cell in grid.cells():
        steps = grid.datasets[cell.dataset].student_flags["max_steps"]
        assert not cell.curve or steps % cell.curve == 0, cell


def test_cells_of_a_row_differ_in_the_method_alone(parts, grid, tmp_path):
    """Equal data, order, budget and start: all that is not the method's is the same in every command."""
    place = place_of(parts, grid, tmp_path)
    own = {"--method", "--teacher", "--output_dir", "--model", "--student", "--inherit"}
    cells = [cell for cell in grid.cells(["bccd", "d_fine", "1"]) if "[" not in cell.method]
    found = set()
    for cell in cells:
        words = list(place.task(cell).command[1:])
        options = dict(zip(words[::2], words[1::2], strict=True))
        found.add(tuple(sorted((name, value) for name, value in options.items() if name not in own)))
        start = options.get("--model") or options["--student"]
        assert start.endswith("d_fine_nano_half.json")
        is_random = "--model" in options or options.get("--inherit") == "false"
        assert is_random == (cell.method == "none" or cell.method.endswith("from_scratch"))
    assert len(cells) >= 10
    assert len(found) == 1


def test_what_a_cell_needs_comes_before_it(parts, grid, tmp_path):
    tasks = place_of(parts, grid, tmp_path).tasks(grid.cells(["aquarium", "0"]))
    seen: set[str] = set()
    for name, task in tasks.items():
        assert set(task.needs) <= seen, name
        seen.add(name)
    assert "teachers/aquarium/d_fine_lite" in seen


def test_a_backbone_of_its_own_begins_what_does_not_begin_as_the_teacher(parts, grid, tmp_path):
    place = place_of(parts, grid, tmp_path)
    weights = grid.pairs["d_fine_lite"].student_backbone_weights
    assert weights is not None
    given = {}
    for method in ("none", "inheritance", "qskd", "qskd_from_scratch", "qskd[inherit=false]"):
        words = list(place.task(parts["grid"].Cell("aquarium", "d_fine_lite", method, 0)).command[1:])
        options = dict(zip(words[::2], words[1::2], strict=True))
        given[method] = [(name, value) for name, value in options.items() if name.endswith("backbone_weights")]
    assert given == {
        "none": [("--backbone_weights", weights)],
        "inheritance": [],
        "qskd": [],
        "qskd_from_scratch": [("--student_backbone_weights", weights)],
        "qskd[inherit=false]": [("--student_backbone_weights", weights)],
    }


def test_words_choose_cells_by_kind(grid):
    cells = grid.cells(["bccd", "drawn_easy", "none", "2"])
    assert {(cell.dataset, cell.method, cell.seed) for cell in cells} == {
        ("bccd", "none", 2),
        ("drawn_easy", "none", 2),
    }
    with pytest.raises(ConfigError, match="--only bcd: no dataset, pair, method or seed"):
        grid.cells(["bcd"])


@pytest.mark.parametrize(("template", "pair"), [("bccd", "d_fine"), ("aquarium", "d_fine_lite")])
def test_a_dataset_of_ones_own_takes_a_templates_settings_and_headline(grid, template, pair):
    cells = grid.with_dataset("fruit", template).cells(["fruit"])
    methods = {"none", "inheritance", "positives", "unmasked_features", "qskd"}
    assert {(cell.dataset, cell.pair) for cell in cells} == {("fruit", pair)}
    assert {cell.method for cell in cells} == methods
    more = grid.with_dataset("fruit")
    assert more.datasets["fruit"].student_flags == grid.datasets["bccd"].student_flags
    with pytest.raises(ConfigError, match="template 'nothing'"):
        grid.with_dataset("fruit", "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blcks": []}, "the grid has an unknown key 'blcks'"),
        ({"methods": {"qskd": {"method": "qskd"}}}, "methods must hold 'none'"),
        ({"pairs": {"p": {"teacher": "a.json"}}}, "pair 'p' lacks 'student'"),
        ({"pairs": {"p": {"student": "a.json"}}}, "give either teacher"),
        ({"blocks": [{"datasets": ["x"], "pairs": [], "methods": [], "seeds": []}]}, "'x' is none of the datasets"),
        ({"blocks": [{"datasets": [], "pairs": [], "methods": ["x"], "seeds": []}]}, "There is no method 'x'"),
        ({"datasets": {"d": {"drwn": {}}}}, "dataset 'd' has an unknown key 'drwn'"),
        ({"datasets": {"d": {"teacher_start": "e"}}}, "'e' is none of the datasets"),
        ({"search": {"holdout": 0.2}}, "search lacks 'factors'"),
        ({"search": SEARCH | {"seeds": 100}}, "search: seeds is 100; expected a list of at least one"),
        ({"search": SEARCH | {"seeds": ["x"]}}, "search: invalid literal.*seeds are whole ones"),
        ({"search": SEARCH | {"factors": []}}, r"search: factors is \[\]; expected a list of at least one"),
    ],
)
def test_mistakes_in_a_grid_are_named(parts, tmp_path, change: dict[str, Any], message):
    content = {"datasets": {}, "pairs": {}, "methods": {"none": {}}, "blocks": []} | change
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        parts["reading"].read_grid(path)


# ---- the search ----------------------------------------------------------------------------------------------


def finish(runs: Path, cell: Any, ap: float) -> None:
    folder = runs / cell.name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"metrics": {"AP": ap}}))


def finish_trials(runs: Path, grid: Any, cell: Any, found: dict[float, tuple[float, float]]) -> None:
    """The trials of a cell's method as done, with these APs of its two seeds."""
    for factor, results in found.items():
        for trial, ap in zip(grid.trials(cell, factor), results, strict=True):
            finish(runs, trial, ap)


def options_of(task: Any) -> dict[str, str]:
    words = list(task.command)
    first = next(place for place, word in enumerate(words) if word.startswith("--"))
    return dict(zip(words[first::2], words[first + 1 :: 2], strict=True))


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
    (tmp_path / high.name / "cell.json").write_text('{"failed": 1}')
    (tmp_path / high.name / "log.txt").write_text(f"step 2\n{said}\n")
    assert place.factor(cell) == factor


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


@pytest.mark.parametrize("method", ["qskd", "inheritance"])
def test_what_came_from_another_teacher_is_known_as_changed(parts, grid, tmp_path, method):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "model.safetensors").write_text("one")
    place = replace(place_of(parts, grid, tmp_path), teachers={"bccd": teacher})
    cell = grid.cells(["bccd", "d_fine", "0", method])[0]
    task = place.task(cell)
    task.folder.mkdir(parents=True)
    task.product.write_text("{}")
    notes = {**task.facts, "teacher": parts["states"].teacher_print(task)}
    (task.folder / "cell.json").write_text(json.dumps(notes))
    assert parts["states"].state_of(task) == "done"
    (teacher / "model.safetensors").write_text("another")
    assert parts["states"].state_of(task) == "changed"


def test_a_lean_run_keeps_its_teachers(parts):
    lean = parts["running"].Runner({}, lean=True)
    kept = {
        name: "last" not in lean._left_over(parts["states"].Task(name, Path(name) / "summary.json"))
        for name in ("teachers/a/b", "cells/a/b/c/seed0", "search/a/b/c/factor1")
    }
    assert kept == {"teachers/a/b": True, "cells/a/b/c/seed0": False, "search/a/b/c/factor1": False}


# ---- the numbers ---------------------------------------------------------------------------------------------


def record(parts, **changes):
    return parts["records"].Record(
        **{
            "dataset": "d",
            "pair": "p",
            "method": "none",
            "seed": 0,
            "ap": 0.2,
            "ap50": 0.4,
            "train_seconds": 100.0,
            "steps": 100,
            "commit": "abc",
            "device": "cpu",
            "searched": True,
            "factor": 1.0,
            "learning_rate": 1e-3,
            "teacher": None,
            "teacher_ap": None,
            "parameters": 10,
            "teacher_parameters": None,
            "inherited": None,
            "train_images": 5,
            "image_size": (64, 64),
            "curve": ((50, 0.1), (100, 0.2)),
            "changed": False,
        }
        | changes
    )


def test_differences_are_paired_by_seed_with_students_interval(parts):
    """Gains 1, 2 and 3 points: mean 2, standard deviation 1, t of 2 degrees 4.3027, half width 4.3027 / sqrt(3)."""
    baseline = [record(parts, seed=seed, ap=ap) for seed, ap in enumerate((0.10, 0.20, 0.30))]
    ours = [record(parts, method="qskd", seed=seed, ap=ap) for seed, ap in enumerate((0.11, 0.22, 0.33))]
    gain = parts["tables"].paired(ours, [*baseline, record(parts, seed=9, ap=0.9)])
    assert (gain.mean, gain.count) == (pytest.approx(0.02), 3)
    assert gain.error == pytest.approx(0.01 / 3**0.5)
    assert gain.half_width == pytest.approx(0.01 * 4.302653 / 3**0.5, rel=1e-5)
    assert not gain.is_clear
    assert parts["tables"].paired(ours[:1], baseline).half_width is None
    assert parts["tables"].paired(ours, [record(parts, seed=9)]) is None


def test_the_cost_of_the_baselines_ap_is_read_off_the_curve(parts):
    """AP 0.2 lies half way between 0.1 after 20 steps and 0.3 after 40: 30 of 100 steps, each twice as long."""
    ours = record(parts, method="qskd", curve=((20, 0.1), (40, 0.3), (100, 0.5)), train_seconds=200.0)
    assert parts["tables"].cost_shares([ours], [record(parts)]) == pytest.approx((0.3, 0.6))
    never = record(parts, method="qskd", curve=((50, 0.1), (100, 0.19)))
    assert parts["tables"].cost_shares([never], [record(parts)]) == (None, None)


def test_tables_put_the_baseline_first_and_say_what_is_amiss(parts):
    records = [
        record(parts, method="qskd", ap=0.25, changed=True, searched=False, teacher_ap=0.5),
        record(parts),
    ]
    text = parts["tables"].as_markdown(parts["tables"].tables_of(records))
    assert text.index("| none |") < text.index("| qskd |")
    assert "+5.0 (one seed)" in text
    assert "1 of 2 cells were trained with other settings" in text
    assert "Not searched: qskd." in text
    assert "teacher AP 50.0" in text


def test_tables_say_which_presets_have_other_options_by_now(parts):
    options = options_of_preset(resolve("qskd"))
    text = {
        weight: parts["tables"].as_markdown(
            parts["tables"].tables_of(
                [
                    record(parts, method=method, options=options | {"lapd.hard_negative_box_weight": weight})
                    for method in ("qskd", "qskd_from_scratch")
                ]
            )
        )
        for weight in (0.0, 1.0)
    }
    assert "by now" not in text[0.0]
    for method in ("qskd", "qskd_from_scratch"):
        told = f"{method} was trained with lapd.hard_negative_box_weight 1.0, which is 0.0 by now (seeds 0)."
        assert told in text[1.0]


def test_every_row_is_compared_with_the_method_too(parts):
    records = [record(parts, method="qskd", ap=0.25), record(parts), record(parts, method="positives", ap=0.22)]
    rows = {row.method: row for row in parts["tables"].tables_of(records)[0].rows}
    assert rows["positives"].behind.mean == pytest.approx(0.03)
    assert rows["none"].behind.mean == pytest.approx(0.05)
    assert rows["qskd"].behind is None


def test_records_of_several_machines_and_seeds_come_together_in_one_file(parts, tmp_path):
    path, merge = tmp_path / "a.json", parts["records"].merge_records
    merge([record(parts), record(parts, method="qskd", inherited=0.5)], path)
    again = merge([record(parts, ap=0.3), record(parts, seed=1), record(parts, device="cuda, H100")], path)
    assert parts["records"].load_records(path) == again
    assert [(one.method, one.seed, one.device, one.ap) for one in again] == [
        ("none", 0, "cpu", 0.3),
        ("none", 0, "cuda, H100", 0.2),
        ("none", 1, "cpu", 0.2),
        ("qskd", 0, "cpu", 0.2),
    ]
    assert merge([], path) == again


def test_a_finished_cell_that_cannot_be_read_is_named_and_the_others_stay(parts, grid, tmp_path):
    place = place_of(parts, grid, tmp_path)
    bad, other = grid.cells(["bccd", "d_fine", "0", "none", "qskd"])
    finish(tmp_path, bad, 0.1)
    (tmp_path / other.name).mkdir(parents=True)
    (tmp_path / other.name / "summary.json").write_text("{")
    records, problems = parts["records"].read_records(place)
    assert records == []
    assert len(problems) == 2
    assert problems[0].startswith("cells/bccd/d_fine/none/seed0: ")


def test_what_was_moved_aside_is_no_record(parts, grid, tmp_path):
    (tmp_path / "cells" / "bccd" / "d_fine" / "none" / "seed7.old1").mkdir(parents=True)
    (tmp_path / "cells" / "bccd" / "d_fine" / "none" / "seed7.old1" / "summary.json").write_text("{}")
    assert parts["records"].read_records(place_of(parts, grid, tmp_path)) == ([], [])


@pytest.mark.parametrize("content", ["[{", "{}x", '[{"dataset": "d", "ap": 0.1}]', "[3]"])
def test_records_that_are_none_are_refused_before_anything_is_trained(parts, tmp_path, capsys, content):
    (tmp_path / "a.json").write_text(content)
    arguments = ["--out", str(tmp_path / "a.json"), "--runs", str(tmp_path / "runs"), "--only", "drawn_easy"]
    assert parts["accuracy"].main(arguments) == 2
    assert "holds no records of this benchmark" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_data_that_lie_nowhere_are_not_done(parts, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("QSKD_BENCHMARK_DATA", raising=False)
    arguments = ["--out", str(tmp_path / "a.json"), "--runs", str(tmp_path / "runs"), "--only", "bccd"]
    assert parts["accuracy"].main(arguments) == 1
    assert "left out bccd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--search", "--seeds", "5"], "--seeds chooses cells; trials have the seeds of"),
        (["--seeds", "0", "100"], "--seeds 100: the search has chosen the learning rates with this seed"),
        (["--sweeps", "--only", "positives"], "--sweeps: the grid varies qskd, which is not among"),
    ],
)
def test_what_a_call_cannot_mean_is_refused(parts, tmp_path, capsys, words, message):
    arguments = ["--out", str(tmp_path / "a.json"), "--runs", str(tmp_path / "runs"), *words]
    assert parts["accuracy"].main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("key", ["loss", "eval_AP50"])
def test_a_cell_that_two_calls_trained_at_once_does_not_count(parts, tmp_path, key):
    lines = [json.dumps({"step": step, key: 1.0}) for step in (1, 2, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines[:2] + lines[3:]))
    parts["records"]._evaluations(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="goes back in steps"):
        parts["records"]._evaluations(tmp_path)


# ---- running -------------------------------------------------------------------------------------------------


def task_of(parts, folder: Path, *command: str) -> Any:
    return parts["tasks"].Task("t", folder / "summary.json", command=command, facts={"kind": "k"})


def test_a_cell_that_another_process_trains_is_left_alone(parts, tmp_path):
    task = task_of(parts, tmp_path / "cell", "--help")
    lock = parts["running"]._lock(task.folder)
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
    lock = parts["running"]._lock(folder)
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


def test_a_cell_begins_anew_after_a_second_error(parts, tmp_path):
    task = task_of(parts, tmp_path / "cell", "train", "--no_such_option")
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
