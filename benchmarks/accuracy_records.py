"""Finished cells as records: what `benchmarks/results/accuracy.json` holds, one entry a cell."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accuracy_grid import Cell
from accuracy_preparing import INHERITED
from accuracy_running import notes_of, state_of
from accuracy_tasks import Task, Workplace


@dataclass(frozen=True, slots=True)
class Record:
    """One finished training of a student. AP is a fraction in [0, 1], of the weights at the end of training."""

    dataset: str
    pair: str
    method: str  # "none" is the student without a teacher
    seed: int
    ap: float
    ap50: float | None
    train_seconds: float | None  # of the steps, without evaluations; None where it cannot be told
    steps: int
    commit: str  # with a plus where files differed from it
    device: str
    searched: bool  # whether the factor was chosen on held-out training images
    factor: float  # on the weights of the terms, without a teacher on the learning rate
    teacher_ap: float | None
    parameters: int | None
    teacher_parameters: int | None
    inherited: float | None  # share of the weights that began as the teacher's
    train_images: int
    image_size: tuple[int, ...]
    curve: tuple[tuple[int, float], ...]  # AP after so many steps
    changed: bool  # whether the grid now says other settings than the cell was trained with


def read_records(place: Workplace, cells: Iterable[Cell]) -> list[Record]:
    """The records of all finished cells, in their order."""
    found = [(cell, task) for cell in cells if (task := place.task(cell)).done]
    return _with_teachers([_record(place, cell, task) for cell, task in found])


def _with_teachers(records: list[Record]) -> list[Record]:
    """With the teacher of the row also where a cell had none beside it."""
    known = {(one.dataset, one.pair): one for one in records if one.teacher_ap is not None}
    return [
        replace(one, teacher_ap=row.teacher_ap, teacher_parameters=row.teacher_parameters)
        if (row := known.get((one.dataset, one.pair))) is not None and one.teacher_ap is None
        else one
        for one in records
    ]


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write the list that the tables are made of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(asdict(record)) for record in records)
    path.write_text(f"[\n{rows}\n]\n" if rows else "[]\n", encoding="utf-8")


def load_records(path: Path) -> list[Record]:
    """What ``write_records`` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        Record(**{**row, "image_size": tuple(row["image_size"]), "curve": tuple(tuple(one) for one in row["curve"])})
        for row in rows
    ]


def _record(place: Workplace, cell: Cell, task: Task) -> Record:
    summary = json.loads(task.product.read_text())
    notes = notes_of(task)
    evaluations = _evaluations(task.folder)
    metrics = _last_metrics(summary, evaluations)
    of_teacher = summary.get("teacher") or {}
    start = place.runs / "starts" / cell.dataset / cell.pair / f"seed{cell.seed}" / INHERITED
    return Record(
        dataset=cell.dataset,
        pair=cell.pair,
        method=cell.method,
        seed=cell.seed,
        ap=metrics["AP"],
        ap50=metrics.get("AP50"),
        train_seconds=_train_seconds(summary, notes, evaluations),
        steps=summary["steps"],
        commit=notes.get("commit", "unknown"),
        device=f"{summary['device'].split(':')[0]}, {notes.get('hardware', 'unknown')}",
        searched=bool(notes.get("searched", False)),
        factor=float(notes.get("factor", 1.0)),
        teacher_ap=(of_teacher.get("metrics") or {}).get("AP"),
        parameters=summary["cost"].get("parameters"),
        teacher_parameters=(of_teacher.get("cost") or {}).get("parameters"),
        inherited=_share_inherited(start) if place.grid.method(cell.method).inherits else None,
        train_images=summary["train_images"],
        image_size=tuple(summary["image_size"]),
        curve=tuple((one["step"], one["eval_AP"]) for one in evaluations if "eval_AP" in one),
        changed=state_of(task) == "changed",
    )


def _last_metrics(summary: Mapping[str, Any], evaluations: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics of the last weights: with evaluations during training, the summary has those of the best ones."""
    if not evaluations:
        return dict(summary["metrics"])
    last = evaluations[-1]
    if last["step"] != summary["steps"]:
        raise ValueError(f"{summary['name']}: the last evaluation is of step {last['step']} of {summary['steps']}.")
    return {name.removeprefix("eval_"): value for name, value in last.items()}


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "eval_AP50" in entry]


def _train_seconds(
    summary: Mapping[str, Any], notes: Mapping[str, Any], evaluations: list[dict[str, Any]]
) -> float | None:
    """Seconds of all steps, from those of the last sitting."""
    sittings = notes.get("sittings") or [{"from_step": 0}]
    first, steps = sittings[-1]["from_step"], summary["steps"]
    measuring = sum(one.get("eval_runtime", 0.0) for one in evaluations if one["step"] > first)
    if first >= steps:
        return None
    return round((summary["train_seconds"] - measuring) * steps / (steps - first), 2)


def _share_inherited(path: Path) -> float | None:
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return round(found["inherited"] / found["weights"], 4)
