"""Finished cells as records: what `benchmarks/results/accuracy.json` holds, one entry a cell."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from accuracy_grid import Cell
from accuracy_states import notes_of, state_of
from accuracy_tasks import Workplace

from qskd.errors import QskdError
from qskd.files import whole_file


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
    searched: bool  # whether the learning rate was chosen on held-out training images
    factor: float  # on the learning rate; until commit cd24c14, of a distilled student on its terms' weights
    learning_rate: float | None
    teacher: str | None  # fingerprint of its weights
    teacher_ap: float | None
    parameters: int | None
    teacher_parameters: int | None
    inherited: float | None  # share of the weights that began as the teacher's
    train_images: int
    image_size: tuple[int, ...]
    curve: tuple[tuple[int, float], ...]  # AP after so many steps
    changed: bool  # whether the grid now says other settings than the cell was trained with
    options: Mapping[str, Any] = field(default_factory=dict)  # of the preset at that time, as far as they are known
    preset: str | None = None  # as which the method is trained; None without a teacher, and where it was not noted


def read_records(place: Workplace) -> tuple[list[Record], list[str]]:
    """The records of all finished cells below the runs, and what is wrong with those that cannot be read."""
    records, problems = [], []
    found = place.runs.glob("cells/*/*/*/seed*/summary.json")
    for path in sorted(path for path in found if path.parent.name.removeprefix("seed").isdecimal()):
        dataset, pair, method, seed = path.parent.relative_to(place.runs / "cells").parts
        cell = Cell(dataset, pair, method, int(seed.removeprefix("seed")))
        try:
            records.append(_record(place, cell, path))
        except (KeyError, TypeError, ValueError, OSError) as error:
            problems.append(f"{cell.name}: {type(error).__name__}: {error}")
    return _with_teachers(records), problems


def _with_teachers(records: list[Record]) -> list[Record]:
    """With the teacher of the row also where a cell had none beside it."""
    known = {(one.dataset, one.pair): one for one in records if one.teacher_ap is not None}
    return [
        replace(one, teacher_ap=row.teacher_ap, teacher_parameters=row.teacher_parameters)
        if (row := known.get((one.dataset, one.pair))) is not None and one.teacher_ap is None
        else one
        for one in records
    ]


def merge_records(new: Iterable[Record], path: Path) -> list[Record]:
    """All records of a file and the new ones, which replace those of the same cell and kind of device; written.

    So the records of several machines, seeds and folders of runs come together in one file.
    """
    kept = {_key(one): one for one in (load_records(path) if path.is_file() else [])}
    kept |= {_key(one): one for one in new}
    records = sorted(kept.values(), key=_key)
    if records:
        rows = ",\n".join(json.dumps(asdict(record)) for record in records)
        with whole_file(path) as fresh:
            fresh.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    return records


def _key(record: Record) -> tuple[str, str, str, int, str]:
    return (record.dataset, record.pair, record.method, record.seed, record.device.split(",")[0])


def load_records(path: Path) -> list[Record]:
    """What ``merge_records`` wrote.

    Raises:
        QskdError: the file is something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            Record(**{**row, "image_size": tuple(row["image_size"]), "curve": tuple(map(tuple, row["curve"]))})
            for row in rows
        ]
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise QskdError(f"{path} holds no records of this benchmark ({reason}). Give another --out.") from error


def _record(place: Workplace, cell: Cell, path: Path) -> Record:
    folder = path.parent
    summary = json.loads(path.read_text())
    notes = notes_of(folder)
    evaluations = _evaluations(folder)
    metrics = _last_metrics(summary, evaluations)
    of_teacher = summary.get("teacher") or {}
    return Record(
        dataset=cell.dataset,
        pair=cell.pair,
        method=cell.method,
        seed=cell.seed,
        ap=metrics["AP"],
        ap50=metrics.get("AP50"),
        train_seconds=_train_seconds(summary, notes, evaluations),
        steps=summary["steps"],
        commit=_said(notes, "commit"),
        device=f"{summary['device'].split(':')[0]}, {_said(notes, 'hardware')}",
        searched=bool(notes.get("searched", False)) or _is_chosen(place, cell, notes),
        factor=float(notes.get("factor", 1.0)),
        learning_rate=_learning_rate(notes),
        teacher=str(of_teacher.get("fingerprint", ""))[:12] or None,
        teacher_ap=(of_teacher.get("metrics") or {}).get("AP"),
        parameters=summary["cost"].get("parameters"),
        teacher_parameters=(of_teacher.get("cost") or {}).get("parameters"),
        inherited=_share_inherited(summary),
        train_images=summary["train_images"],
        image_size=tuple(summary["image_size"]),
        curve=tuple((one["step"], one["eval_AP"]) for one in evaluations if "eval_AP" in one),
        changed=_is_changed(place, cell),
        options=notes.get("options") or {},
        preset=notes.get("preset"),
    )


def _said(notes: Mapping[str, Any], name: str) -> str:
    """What the sittings of a cell say of themselves, each thing once; earlier versions noted the last one alone."""
    found = [one[name] for one in notes.get("sittings") or [] if name in one] or [notes.get(name, "unknown")]
    return " and ".join(dict.fromkeys(found))


def _is_known(place: Workplace, cell: Cell) -> bool:
    """Whether the grid can say how a cell would be trained now."""
    grid = place.grid
    known = cell.dataset in grid.datasets and cell.pair in grid.pairs and grid.searched_as(cell.method) in grid.methods
    return known and not place.missing_data(cell)


def _is_changed(place: Workplace, cell: Cell) -> bool:
    """Whether the grid says other settings by now; not told of what the grid does not know."""
    if not _is_known(place, cell):
        return False
    return state_of(place.task(replace(cell, curve=place.grid.curve_of(cell)))) == "changed"


def _is_chosen(place: Workplace, cell: Cell, notes: Mapping[str, Any]) -> bool:
    """Whether a search that was made later prefers the rate at which the cell was trained."""
    if not _is_known(place, cell):
        return False
    return place.factor(cell) == (float(notes.get("factor", 0.0)), True)


def _learning_rate(notes: Mapping[str, Any]) -> float | None:
    settings = notes.get("settings") or []
    return float(settings[settings.index("--learning_rate") + 1]) if "--learning_rate" in settings else None


def _last_metrics(summary: Mapping[str, Any], evaluations: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics of the last weights: with evaluations during training, the summary has those of the best ones."""
    if not evaluations:
        return dict(summary["metrics"])
    last = evaluations[-1]
    if last["step"] != summary["steps"]:
        raise ValueError(f"{summary['name']}: the last evaluation is of step {last['step']} of {summary['steps']}.")
    return {name.removeprefix("eval_"): value for name, value in last.items()}


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, in order.

    Raises:
        ValueError: a step stands twice in the log: two calls have trained the cell at once, over each other's files.
    """
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for kind in ("loss", "eval_AP50"):
        steps = [entry["step"] for entry in entries if kind in entry]
        if any(later <= step for step, later in pairwise(steps)):
            raise ValueError("its log goes back in steps, as when two calls train a cell at once; train it again")
    return [entry for entry in entries if "eval_AP50" in entry]


def _train_seconds(
    summary: Mapping[str, Any], notes: Mapping[str, Any], evaluations: list[dict[str, Any]]
) -> float | None:
    """Seconds of all steps, from those of the last sitting."""
    last = (notes.get("sittings") or [{"from_step": 0}])[-1]
    first, steps = last["from_step"], summary["steps"]
    made_up = first if last.get("owes_evaluation") else -1  # one that the sitting before was interrupted in
    measured = [one for one in evaluations if one["step"] > first or one["step"] == made_up]
    measuring = sum(one.get("eval_runtime", 0.0) for one in measured)
    if first >= steps:
        return None
    return round((summary["train_seconds"] - measuring) * steps / (steps - first), 2)


def _share_inherited(summary: Mapping[str, Any]) -> float | None:
    """The share of its weights that a student began with."""
    share = (summary.get("start") or {}).get("inherited")
    return None if share is None else float(share)
