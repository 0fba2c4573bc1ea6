"""What the tests of the accuracy benchmark make: workplaces, finished cells, records."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def place_of(parts, grid, runs, **data):
    folders = {name: Path(f"/data/{name}") for name in grid.datasets if grid.datasets[name].drawn is None}
    return parts["tasks"].Workplace(grid, runs, folders | data, {})


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


def task_of(parts, folder: Path, *command: str) -> Any:
    return parts["tasks"].Task("t", folder / "summary.json", command=command, facts={"kind": "k"})
