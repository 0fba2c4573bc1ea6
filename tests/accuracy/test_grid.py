"""What is to be trained: the grid, its mistakes, its commands."""

from typing import Any

import pytest
import yaml

from builders_accuracy import ROOT, place_of
from qskd.cli.parsing import parse
from qskd.errors import ConfigError
from qskd.runs.options import DataOptions, MethodOptions, PairOptions, TrainOptions
from qskd.trainer import DistillationConfig

SEARCH = {"holdout": 0.2, "seeds": [100], "steps": 1, "factors": [1, 3], "methods": ["none"]}


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
    own = {"--method", "--teacher", "--output_dir", "--model", "--student"}
    terms = ("selection_", "lapd_", "agfd_")
    cells = [cell for cell in grid.cells(["bccd", "d_fine", "1"]) if "[" not in cell.method]
    found = set()
    for cell in cells:
        words = list(place.task(cell).command[1:])
        options = dict(zip(words[::2], words[1::2], strict=True))
        flags = grid.methods[cell.method].flags
        assert all(name.startswith(terms) or name == "inherit" for name in flags)
        left_out = own | {f"--{name}" for name in flags}
        found.add(tuple(sorted((name, value) for name, value in options.items() if name not in left_out)))
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


@pytest.mark.parametrize(
    ("template", "pair"), [("bccd", "d_fine"), ("aquarium", "d_fine_lite"), ("drawn_easy", "d_fine")]
)
def test_a_dataset_of_ones_own_takes_a_templates_settings_pair_and_methods(grid, template, pair):
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
        ({"search": SEARCH | {"seeds": [100.7]}}, "seeds are whole ones"),
        (
            {"search": SEARCH, "blocks": [{"datasets": [], "pairs": [], "methods": [], "seeds": [1, 100]}]},
            "search: seed 100 is a block's, too",
        ),
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
