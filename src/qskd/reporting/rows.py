"""The main table of a report: a line for each teacher and each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from qskd.reporting.groups import Group, difference, finite, gap_closed, metric, reference_of, teachers_of
from qskd.reporting.records import Role, RunRecord
from qskd.reporting.speed import SideBySide
from qskd.reporting.tables import SHOWN, duration, number, percent, share, signed_percent


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the main table: a run, or a teacher."""

    name: str
    role: Role
    label: str  # of its group
    seed: int | None
    metrics: Mapping[str, Any]
    parameters: int | None
    gflops: float | None
    latency_ms: float | None  # median
    latency_p90_ms: float | None
    train_seconds: float | None
    difference: float | None = None  # AP above the baseline of the same seed, or above the baselines' mean
    gap_closed: float | None = None  # share of the way from that baseline to the teacher


def all_rows(runs: Sequence[RunRecord], groups: Sequence[Group], speed: SideBySide | None) -> tuple[Row, ...]:
    """Teachers, then the runs of each group.

    Args:
        runs: all of them.
        groups: the same runs without teachers.
        speed: latencies that take the place of those that the runs measured.
    """
    students = [row for group in groups for row in _student_rows(group, reference_of(group, groups))]
    return tuple(_timed(row, speed) for row in (*_teacher_rows(runs), *students))


@dataclass(frozen=True, slots=True)
class CostRow:
    """What a teacher or the model of a group costs."""

    label: str
    role: Role
    parameters: int | None
    gflops: float | None
    latency_ms: float | None
    latency_p90_ms: float | None
    faster: float | None  # times as fast as the slowest teacher, if both were timed for the report
    train_seconds: float | None  # mean over seeds


def cost_rows(rows: Sequence[Row], speed: SideBySide | None) -> tuple[CostRow, ...]:
    """One line for each teacher and each group, in the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.name if row.role == "teacher" else row.label, []).append(row)
    costs = []
    for label, same in found.items():
        first, trained = same[0], [row.train_seconds for row in same if row.train_seconds is not None]
        costs.append(
            CostRow(
                label,
                first.role,
                first.parameters,
                first.gflops,
                first.latency_ms,
                first.latency_p90_ms,
                speed.times_faster(label) if speed else None,
                fmean(trained) if trained else None,
            )
        )
    return tuple(costs)


def cells(row: Row) -> list[str]:
    """The line as text, in the order of the console's table."""
    return [
        row.name,
        row.label if row.role != "teacher" else row.role,
        "-" if row.seed is None else str(row.seed),
        *(percent(row.metrics.get(name)) for name in SHOWN),
        signed_percent(row.difference),
        share(row.gap_closed),
        "-" if row.parameters is None else number(row.parameters / 1e6, 2),
        number(row.gflops, 2),
        number(row.latency_ms),
        duration(row.train_seconds),
    ]


def _timed(row: Row, speed: SideBySide | None) -> Row:
    """The row with the latency of its model as measured for the report; unknown where others were."""
    if speed is None:
        return row
    found = speed.of(row.name if row.role == "teacher" else row.label)
    median, p90 = (found.median_ms, found.p90_ms) if found else (None, None)
    return replace(row, latency_ms=median, latency_p90_ms=p90)


def _teacher_rows(runs: Sequence[RunRecord]) -> list[Row]:
    by_name = {run.name: run for run in runs if run.role == "teacher"}
    rows = []
    for name, teacher in teachers_of(runs).items():
        run = by_name.get(name)
        rows.append(
            _row(
                name,
                "teacher",
                "teacher",
                run.seed if run else None,
                teacher.metrics,
                teacher.cost,
                run.train_seconds if run else None,
            )
        )
    return rows


def _student_rows(group: Group, reference: Group | None) -> list[Row]:
    rows = []
    for run in group.runs:
        gained = difference(Group(group.label, group.role, (run,)), reference, metric("AP")) if reference else None
        teacher = run.teacher.metrics.get("AP") if run.teacher else None
        rows.append(
            _row(
                run.name,
                group.role,
                group.label,
                run.seed,
                run.metrics,
                run.cost,
                run.train_seconds,
                difference=gained.mean if gained else None,
                gap_closed=gap_closed(gained, teacher) if gained else None,
            )
        )
    return rows


def _row(
    name: str,
    role: Role,
    label: str,
    seed: int | None,
    metrics: Mapping[str, Any],
    cost: Mapping[str, Any],
    train_seconds: float | None,
    **gain: float | None,
) -> Row:
    costs = {key: finite(cost.get(key)) for key in ("gflops", "latency_ms", "latency_p90_ms")}
    return Row(
        name=name,
        role=role,
        label=label,
        seed=seed,
        metrics=metrics,
        parameters=cost.get("parameters"),
        train_seconds=train_seconds,
        **costs,
        **gain,
    )
