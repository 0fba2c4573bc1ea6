"""From cells to commands: every cell, teacher and data set as a task, with the tasks that it waits for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import accuracy_preparing as preparing
from accuracy_commands import REPOSITORY, as_flags, elsewhere, repository_file
from accuracy_grid import Cell, Dataset, Grid, Method, Pair
from accuracy_states import Task, state_of

from qskd.errors import ConfigError
from qskd.losses.presets import options_of, resolve


@dataclass(frozen=True, slots=True)
class Workplace:
    """A grid, and where things lie.

    Args:
        grid: what is to be trained.
        runs: where everything goes.
        data: folders of data sets by name.
        teachers: folders of trained teachers by "dataset/pair" or "dataset".
    """

    grid: Grid
    runs: Path
    data: Mapping[str, Path]
    teachers: Mapping[str, Path]

    def tasks(self, cells: Iterable[Cell]) -> dict[str, Task]:
        """What the cells take, by name: each one behind what it needs, in the order of the cells."""
        found: dict[str, Task] = {}
        for cell in cells:
            self._add(found, self.task(cell))
        return found

    def missing_data(self, cell: Cell) -> str | None:
        """The name of a data set that the cell needs and of which nobody said where it lies."""
        wanted = [cell.dataset]
        start = self.grid.datasets[cell.dataset].teacher_start
        if start is not None and self._teacher_is_trained(cell.dataset, cell.pair):
            wanted.append(start)
        lacking = [name for name in wanted if self.grid.datasets[name].drawn is None and name not in self.data]
        return lacking[0] if lacking else None

    def _add(self, found: dict[str, Task], task: Task) -> None:
        for name in task.needs:
            if name not in found:
                self._add(found, self._named(name))
        found.setdefault(task.name, task)

    def _named(self, name: str) -> Task:
        """A task that others need, by its name."""
        kind, dataset, *rest = name.split("/")
        if kind == "data":
            return self._drawing(self.grid.datasets[dataset])
        if kind == "teacher_data":
            return self._teacher_drawing(self.grid.datasets[dataset])
        if kind == "holdout":
            return self._holdout(self.grid.datasets[dataset])
        return self._teacher(self.grid.datasets[dataset], self.grid.pairs[rest[0]])

    # ---- students ----------------------------------------------------------------------------------------

    def task(self, cell: Cell) -> Task:
        """The training of a cell."""
        dataset, pair = self.grid.datasets[cell.dataset], self.grid.pairs[cell.pair]
        method = self.grid.method(cell.method)
        factor, searched = self.factor(cell)
        data, version, needs = self._student_data(cell, dataset)
        source, teacher, needed = self._source(dataset, pair, method)
        folder = self.runs / cell.name
        flags = as_flags(self._student_flags(cell, dataset, pair, method, factor))
        command = (*source, "--data", str(data), *flags, "--output_dir", str(folder))
        facts = {
            "factor": factor,
            "searched": searched and cell.search is None,
            "kind": _kind(cell, method),
            "settings": self._settings(command, data, version),
            "preset": method.method,
            "options": {} if method.method is None else options_of(resolve(method.method)),
        }
        needs = list(dict.fromkeys([*needs, *needed]))
        return Task(cell.name, folder / "summary.json", tuple(needs), command, facts=facts, teacher=teacher)

    def _student_data(self, cell: Cell, dataset: Dataset) -> tuple[Path, str, list[str]]:
        """What a cell trains on, what that is called anywhere, and the tasks that make it."""
        if cell.search is not None:
            folder = self._holdout_folder(dataset)
            return folder, folder.name, [f"holdout/{dataset.name}"]
        data, needs = self._data(dataset)
        return data, self._versioned(dataset), needs

    def _source(self, dataset: Dataset, pair: Pair, method: Method) -> tuple[list[str], Path | None, list[str]]:
        """How a command of a method begins, its teacher, and the tasks that make that."""
        student = str(repository_file(pair.student))
        if method.method is None:
            return ["train", "--model", student], None, []
        teacher, needs = self.teacher(dataset, pair)
        command = ["distill", "--method", method.method, "--teacher", str(teacher), "--student", student]
        return command, teacher, needs

    def _student_flags(self, cell: Cell, dataset: Dataset, pair: Pair, method: Method, factor: float) -> dict[str, Any]:
        flags = self._flags(dataset, pair, "student") | self._curve(cell, dataset, pair) | dict(method.flags)
        flags["seed"] = cell.seed
        if factor != 1:
            flags["learning_rate"] = float(flags["learning_rate"]) * factor
        if cell.search is not None and self.grid.search is not None:
            flags["max_steps"] = round(flags["max_steps"] * self.grid.search.steps)
        if pair.student_backbone_weights is not None and (pair.other_family or method.begins_anew):
            flag = "backbone_weights" if method.method is None else "student_backbone_weights"
            flags[flag] = pair.student_backbone_weights
        return flags

    def _settings(self, command: Iterable[str], data: Path | str, dataset: str) -> list[str]:
        """A command as it would read on another machine."""
        places = [(Path(data), dataset), (self.runs, "RUNS"), (REPOSITORY, ".")]
        places += [(folder, f"TEACHER {name}") for name, folder in self.teachers.items()]
        return [elsewhere(text, places) for text in command]

    def steps(self, cell: Cell) -> int:
        """Optimiser steps of a cell."""
        return int(self._flags(self.grid.datasets[cell.dataset], self.grid.pairs[cell.pair], "student")["max_steps"])

    def sweep_cells(self, cells: Iterable[Cell]) -> list[Cell]:
        """Trials of the sweeps of these cells' methods, at the rates that were searched for those."""
        if self.grid.search is None:
            return []
        names = dict.fromkeys([*map(self.grid.searched_as, self.grid.sweeps), *self.grid.sweeps])
        found = []
        for dataset, pair, method in dict.fromkeys((cell.dataset, cell.pair, cell.method) for cell in cells):
            factor = self.factor(Cell(dataset, pair, method, 0))[0]
            for name in names:
                if self.grid.searched_as(name) == method:
                    found += self.grid.trials(Cell(dataset, pair, name, 0), factor)
        return found

    def factor(self, cell: Cell) -> tuple[float, bool]:
        """The factor on a cell's learning rate, and whether it was searched.

        A trial's own, else that whose trials on the held-out part had the best mean AP for the method.
        """
        if self.grid.search is None:
            return 1.0, False
        if cell.search is not None:
            return cell.search, True
        plain = Cell(cell.dataset, cell.pair, self.grid.searched_as(cell.method), 0)
        means: dict[float, float] = {}
        for factor in self.grid.search.factors:
            found = [self._trial_ap(trial) for trial in self.grid.trials(plain, factor)]
            known = [ap for ap in found if ap is not None]
            if len(known) < len(found):
                return 1.0, False
            means[factor] = sum(known) / len(known)
        return max(means, key=lambda factor: (means[factor], factor == 1.0)), True

    def is_searched(self, cell: Cell) -> bool:
        """Whether the search has chosen the learning rate of a cell's method."""
        return self.factor(replace(cell, search=None))[1]

    def _trial_ap(self, trial: Cell) -> float | None:
        """AP of a trial; 0 for one whose loss was not finite; None for one that was not made, or otherwise than now."""
        if not (self.runs / trial.name).exists() or state_of(self.task(trial)) == "changed":
            return None
        ap = preparing.ap_of(self.runs / trial.name)
        return 0.0 if ap is None and preparing.has_diverged(self.runs / trial.name) else ap

    def _curve(self, cell: Cell, dataset: Dataset, pair: Pair) -> dict[str, Any]:
        """Flags for a curve whose last point is the end of training."""
        if not cell.curve or cell.search is not None:
            return {}
        steps = self.steps(cell)
        if steps % cell.curve:
            raise ConfigError(f"curve {cell.curve} does not divide the {steps} steps of {dataset.name}/{pair.name}.")
        return {"eval_strategy": "steps", "eval_steps": steps // cell.curve}

    # ---- teachers ----------------------------------------------------------------------------------------

    def teacher(self, dataset: Dataset, pair: Pair) -> tuple[Path, list[str]]:
        """The folder of a row's teacher, and the tasks that make it."""
        given = self.teachers.get(f"{dataset.name}/{pair.name}", self.teachers.get(dataset.name))
        if given is not None:
            return given, []
        if pair.trained is not None:
            return repository_file(pair.trained), []
        return self.runs / "teachers" / dataset.name / pair.name / "last", [f"teachers/{dataset.name}/{pair.name}"]

    def _teacher_is_trained(self, dataset: str, pair: str) -> bool:
        return bool(self.teacher(self.grid.datasets[dataset], self.grid.pairs[pair])[1])

    def _teacher(self, dataset: Dataset, pair: Pair) -> Task:
        name = f"teachers/{dataset.name}/{pair.name}"
        data, needs = self._data(dataset)
        version = self._versioned(dataset)
        if dataset.teacher_drawn is not None:
            data, needs = self._teacher_drawing(dataset).folder.parent, [f"teacher_data/{dataset.name}"]
            version = data.name
        assert pair.teacher is not None
        model = repository_file(pair.teacher)
        if dataset.teacher_start is not None:
            model, needed = self.teacher(self.grid.datasets[dataset.teacher_start], pair)
            needs = [*needs, *needed]
        flags = as_flags(self._flags(dataset, pair, "teacher"))
        command = ("train", "--model", str(model), "--data", str(data), *flags, "--output_dir", str(self.runs / name))
        facts = {
            "kind": f"teacher {dataset.name} {pair.name}",
            "settings": self._settings(command, data, version),
        }
        start = model if model.suffix != ".json" else None
        return Task(name, self.runs / name / "summary.json", tuple(needs), command, facts=facts, teacher=start)

    # ---- data --------------------------------------------------------------------------------------------

    def _data(self, dataset: Dataset) -> tuple[Path, list[str]]:
        if dataset.name in self.data:
            return self.data[dataset.name], []
        if dataset.drawn is None:
            raise ConfigError(
                f"Where is '{dataset.name}'? Give --data {dataset.name}=FOLDER, or set {preparing.PARENT} to the "
                f"folder that holds a folder '{dataset.name}'."
            )
        return self._drawing(dataset).folder.parent, [f"data/{dataset.name}"]

    def _versioned(self, dataset: Dataset) -> str:
        """A data set's name with what tells its content from another one of that name."""
        if dataset.name in self.data:
            return f"{dataset.name}-{preparing.data_print(self.data[dataset.name])}"
        return f"{dataset.name}-{preparing.recipe_print(dataset.drawn or {})}"

    def _drawing(self, dataset: Dataset) -> Task:
        folder = self.runs / "data" / self._versioned(dataset)
        return _drawing_task(f"data/{dataset.name}", folder, dataset.drawn or {})

    def _teacher_drawing(self, dataset: Dataset) -> Task:
        recipe = dataset.teacher_drawn or {}
        folder = self.runs / "teacher_data" / f"{dataset.name}-{preparing.recipe_print(recipe)}"
        return _drawing_task(f"teacher_data/{dataset.name}", folder, recipe)

    def _holdout_folder(self, dataset: Dataset) -> Path:
        assert self.grid.search is not None
        return self.runs / "holdout" / f"{self._versioned(dataset)}-{self.grid.search.holdout:g}"

    def _holdout(self, dataset: Dataset) -> Task:
        assert self.grid.search is not None
        data, needs = self._data(dataset)
        folder = self._holdout_folder(dataset)
        make = partial(preparing.hold_out, data, folder, self.grid.search.holdout)
        return Task(f"holdout/{dataset.name}", folder / preparing.LAST_WRITTEN, tuple(needs), make=make)

    def _flags(self, dataset: Dataset, pair: Pair, who: str) -> dict[str, Any]:
        parts = [self.grid.flags, dataset.flags]
        parts += [getattr(place, f"{who}_flags") for place in (self.grid, dataset, pair)]
        flags = {name: value for part in parts for name, value in part.items()}
        for name in ("learning_rate", "max_steps"):
            if name not in flags:
                raise ConfigError(f"{dataset.name}/{pair.name}: the grid gives no {name}; give it in {who}_flags.")
        return flags


def _kind(cell: Cell, method: Method) -> str:
    """What cells take about as long: the same data, pair, and the same terms."""
    how = "plain" if method.learns_alone else cell.method
    return f"{cell.dataset} {cell.pair} {how}{' search' if cell.search is not None else ''}"


def _drawing_task(name: str, folder: Path, recipe: Mapping[str, Any]) -> Task:
    return Task(name, folder / preparing.LAST_WRITTEN, make=partial(preparing.draw, folder, recipe))
