"""Finished runs side by side: every number of a report, before any of it is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qskd.reporting.closeup import CloseUp
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
    teachers_of,
)
from qskd.reporting.records import Role, RunRecord
from qskd.reporting.rows import CostRow, Row, all_rows, cells, cost_rows
from qskd.reporting.speed import SideBySide
from qskd.reporting.tables import SHOWN, percent, plain_values, share, signed_percent, text_table


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
    costs: tuple[CostRow, ...]
    groups: tuple[GroupRow, ...]
    gains: tuple[Gain, ...]
    classes: tuple[ClassRow, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    speed: SideBySide | None = None  # latencies measured for this report
    closeup: CloseUp = field(default_factory=CloseUp)  # what single detections tell

    @property
    def has_seeds(self) -> bool:
        """Whether any group has more than one run."""
        return any(len(group.seeds) > 1 for group in self.groups)

    def certainty(self, gain: Gain) -> str:
        """What the choice of validation images leaves open of a gain; empty where that is not known."""
        contrast = self.closeup.contrast(gain.label, "baseline")
        ap = contrast.values["AP"] if contrast else None
        if ap is None or ap.low is None or ap.high is None:
            return ""
        verdict = "0 is outside" if ap.is_clear else "0 is inside, so these images do not settle which is better"
        return (
            f"95% interval over the choice of the {self.closeup.images} validation images: "
            f"{signed_percent(ap.low)} to {signed_percent(ap.high)} ({verdict})."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for report.json."""
        plain: dict[str, Any] = plain_values(asdict(self))
        return plain

    def text(self) -> str:
        """The main table, what was gained, and what to be careful about."""
        header = "run  role  seed  AP  AP50  AP75  small  medium  large  gain  gap  Mparams  GFLOPs  ms  trained"
        table = text_table(header.split("  "), [cells(row) for row in self.rows])
        lines = [" ".join(filter(None, (gain.sentence(), self.certainty(gain)))) for gain in self.gains]
        return "\n".join([table, *lines, *(f"warning: {line}" for line in self.warnings), *self.notes])


def compare_runs(
    runs: Sequence[RunRecord], *, speed: SideBySide | None = None, closeup: CloseUp | None = None
) -> Findings:
    """Put runs side by side.

    Args:
        runs: at least one, with names of their own.
        speed: latencies that take the place of those that the runs measured.
        closeup: what single detections tell, where they are known.
    """
    groups = group_runs(runs)
    gains = tuple(_gain(group, reference) for group, reference in _pairs(groups))
    rows = all_rows(runs, groups, speed)
    return Findings(
        rows=rows,
        costs=cost_rows(rows, speed),
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
        warnings=tuple(warnings_about(runs, groups, latencies=speed is None)),
        notes=tuple(notes_about(groups)),
        speed=speed,
        closeup=closeup or CloseUp(),
    )


def _pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    found = [(group, reference_of(group, groups)) for group in groups]
    return [(group, reference) for group, reference in found if reference is not None]


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
