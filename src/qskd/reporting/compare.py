"""Finished runs side by side: every number of a report, before any of it is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qskd.reporting.comparability import notes_about, warnings_about
from qskd.reporting.groups import (
    Difference,
    Estimate,
    Group,
    class_metric,
    difference,
    finite,
    gap_closed,
    group_runs,
    metric,
    reference_of,
)
from qskd.reporting.records import Role, RunRecord, TeacherRecord
from qskd.reporting.tables import SHOWN, duration, number, percent, share, signed_percent, text_table


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


@dataclass(frozen=True, slots=True)
class Gain:
    """A distilled group against its baseline."""

    label: str
    reference: str
    metrics: Mapping[str, Difference]
    gap_closed: float | None
    teacher_ap: float | None
    parameters_of_teacher: float | None  # the student's share of the teacher's parameters

    def sentence(self) -> str:
        """The gain in words."""
        ap = self.metrics["AP"]
        if ap.mean is None:
            return f"{self.label}: no AP to compare with {self.reference}."
        error = f" ± {percent(ap.error)}" if ap.error is not None else ""
        how = f"{ap.n} {'paired ' if ap.paired else ''}seed{'s' if ap.n > 1 else ''}"
        text = f"{self.label}: {signed_percent(ap.mean)}{error} AP over {self.reference} ({how})"
        if self.gap_closed is not None:
            text += f", {share(self.gap_closed)} of the gap to the teacher closed"
        if self.parameters_of_teacher is not None:
            text += f", with {share(self.parameters_of_teacher)} of the teacher's parameters"
        return f"{text}."


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One line of the table of means: a group, with mean and standard deviation over its seeds."""

    label: str
    role: Role
    seeds: tuple[int | None, ...]
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """AP of one class: the teacher's, each group's mean, and each gain."""

    name: str
    teacher: float | None
    groups: tuple[float | None, ...]  # in the order of ``Findings.groups``
    gains: tuple[float | None, ...]  # in the order of ``Findings.gains``


@dataclass(frozen=True, slots=True)
class Findings:
    """All numbers of a report."""

    rows: tuple[Row, ...]
    groups: tuple[GroupRow, ...]
    gains: tuple[Gain, ...]
    classes: tuple[ClassRow, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def has_seeds(self) -> bool:
        """Whether any group has more than one run."""
        return any(len(group.seeds) > 1 for group in self.groups)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for report.json."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def text(self) -> str:
        """The main table, what was gained, and what to be careful about."""
        header = "run  role  seed  AP  AP50  AP75  small  medium  large  gain  gap  Mparams  GFLOPs  ms  trained"
        table = text_table(header.split("  "), [_cells(row) for row in self.rows])
        lines = [gain.sentence() for gain in self.gains]
        return "\n".join([table, *lines, *(f"warning: {line}" for line in self.warnings), *self.notes])


def compare_runs(runs: Sequence[RunRecord]) -> Findings:
    """Put runs side by side.

    Args:
        runs: at least one, with names of their own.
    """
    groups = group_runs(runs)
    gains = tuple(_gain(group, reference) for group, reference in _pairs(groups))
    students = [row for group in groups for row in _student_rows(group, reference_of(group, groups))]
    return Findings(
        rows=(*_teacher_rows(runs), *students),
        groups=tuple(
            GroupRow(
                group.label,
                group.role,
                tuple(run.seed for run in group.runs),
                {name: group.estimate(metric(name)) for name in SHOWN},
            )
            for group in groups
        ),
        gains=gains,
        classes=_class_rows(runs, groups),
        warnings=tuple(warnings_about(runs, groups)),
        notes=tuple(notes_about(groups)),
    )


def teachers_of(runs: Sequence[RunRecord]) -> dict[str, TeacherRecord]:
    """The teachers of all distillations by what the report calls them."""
    found: dict[str, tuple[TeacherRecord, str]] = {}
    for run in runs:
        if run.teacher is not None:
            found.setdefault(run.teacher.fingerprint, (run.teacher, run.name))
    names = {run.taught: run.name for run in runs if run.taught is not None}
    taken = {run.name for run in runs}
    titles: dict[str, TeacherRecord] = {}
    for position, (key, (teacher, pupil)) in enumerate(found.items(), start=1):
        plain = "teacher" if len(found) == 1 else f"teacher {position}"
        titles[names.get(key) or (f"{plain} of {pupil}" if plain in taken else plain)] = teacher
    return titles


def teacher_title(name: str) -> str:
    """What a teacher of that name is called where no column says what it is."""
    return name if name.lower().startswith("teacher") else f"teacher ({name})"


def _pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    found = [(group, reference_of(group, groups)) for group in groups]
    return [(group, reference) for group, reference in found if reference is not None]


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


def _gain(group: Group, reference: Group) -> Gain:
    gained = {name: difference(group, reference, metric(name)) for name in SHOWN}
    teacher = group.first.teacher
    teacher_ap = finite(teacher.metrics.get("AP")) if teacher else None
    size = teacher.cost.get("parameters") if teacher else None
    share = group.first.parameters / size if size and group.first.parameters else None
    closed = gap_closed(gained["AP"], teacher_ap)
    return Gain(group.label, reference.label, gained, closed, teacher_ap, share)


def _class_rows(runs: Sequence[RunRecord], groups: Sequence[Group]) -> tuple[ClassRow, ...]:
    students = [run for group in groups for run in group.runs]
    names = dict.fromkeys(name for run in students for name in run.metrics.get("per_class") or {})
    teacher = next(iter(teachers_of(runs).values()), None)
    of_teacher = (teacher.metrics.get("per_class") or {}) if teacher else {}
    pairs = _pairs(groups)
    return tuple(
        ClassRow(
            name,
            finite(of_teacher.get(name)),
            tuple(group.estimate(class_metric(name)).mean for group in groups),
            tuple(difference(group, reference, class_metric(name)).mean for group, reference in pairs),
        )
        for name in names
    )


def _cells(row: Row) -> list[str]:
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


def _plain(value: Any) -> Any:
    """The value with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return finite(value) if isinstance(value, float) else value
