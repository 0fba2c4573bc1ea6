"""Runs of one recipe as one group: means over seeds, and differences seed by seed."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

from qskd.reporting.records import Role, RunRecord, TeacherRecord

Reader = Callable[[RunRecord], float | None]
"""Takes one number from a run; None where it is undefined."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of ``n`` values with its uncertainty; what that is, says the function that made it."""

    mean: float | None
    error: float | None  # None where fewer than two values leave it unknown
    n: int


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """A mean difference and its standard error."""

    paired: bool  # seed by seed
    baseline: float | None  # mean of the values that were subtracted


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    role: Role
    runs: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        """The run that stands for the group where only one can be shown."""
        return self.runs[0]

    def estimate(self, read: Reader) -> Estimate:
        """Mean and sample standard deviation over the runs in which the number is defined."""
        values = [value for run in self.runs if (value := finite(read(run))) is not None]
        return Estimate(_mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def by_seed(self, read: Reader) -> dict[int, float]:
        """The number for each seed; the mean where a seed was run more than once."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            if run.seed is not None and (value := finite(read(run))) is not None:
                found.setdefault(run.seed, []).append(value)
        return {seed: statistics.fmean(values) for seed, values in found.items()}


def metric(name: str) -> Reader:
    """Reads one of the COCO metrics."""
    return lambda run: run.metrics.get(name)


def class_metric(name: str) -> Reader:
    """Reads the AP of one class."""
    return lambda run: (run.metrics.get("per_class") or {}).get(name)


def difference(group: Group, reference: Group, read: Reader) -> Difference:
    """How much higher a number is in a group than in its reference.

    With seeds in common: mean of the differences seed by seed and its standard error, sd / sqrt(n), which
    leaves out what the seed does to both. Else the difference of the means, with Welch's standard error.
    """
    ours, theirs = group.by_seed(read), reference.by_seed(read)
    seeds = sorted(ours.keys() & theirs.keys())
    if seeds:
        differences = [ours[seed] - theirs[seed] for seed in seeds]
        error = statistics.stdev(differences) / sqrt(len(seeds)) if len(seeds) > 1 else None
        baseline = _mean([theirs[seed] for seed in seeds])
        return Difference(_mean(differences), error, len(seeds), True, baseline)
    one, other = group.estimate(read), reference.estimate(read)
    if one.mean is None or other.mean is None:
        return Difference(None, None, 0, False, other.mean)
    known = one.error is not None and other.error is not None
    error = sqrt((one.error or 0) ** 2 / one.n + (other.error or 0) ** 2 / other.n) if known else None
    return Difference(one.mean - other.mean, error, min(one.n, other.n), False, other.mean)


def gap_closed(gained: Difference, teacher: float | None) -> float | None:
    """Share of the way from the baseline to the teacher; None unless the teacher is above the baseline."""
    teacher = finite(teacher)
    if gained.mean is None or gained.baseline is None or teacher is None or teacher <= gained.baseline:
        return None
    return gained.mean / (teacher - gained.baseline)


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Baselines first, then distilled groups, each with a label of its own; teachers are left out."""
    found: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in runs:
        if run.role != "teacher":
            found.setdefault(_key(run), []).append(run)
    ordered = sorted(found.values(), key=lambda members: members[0].role)  # stable: otherwise as given
    members = [tuple(sorted(group, key=lambda run: (run.seed is None, run.seed))) for group in ordered]
    labels = _labels([group[0] for group in members])
    return [Group(label, group[0].role, group) for label, group in zip(labels, members, strict=True)]


def reference_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """The baseline that a distilled group is measured by: the one most like it.

    The same architecture counts most, then the same start (where it is not known: a distillation without terms
    begins with the same weights), then common seeds, then the fewest options that differ.
    """
    if group.role != "distilled":
        return None
    baselines = [other for other in groups if other.role == "baseline"]
    return min(baselines, key=lambda other: _distance(group.first, other.first, group, other), default=None)


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


def _distance(run: RunRecord, other: RunRecord, group: Group, reference: Group) -> tuple[Any, ...]:
    seeds = {run.seed for run in group.runs} & {run.seed for run in reference.runs}
    keys = run.recipe.keys() | other.recipe.keys()
    return (
        (run.family, run.parameters) != (other.family, other.parameters),
        run.began_unlike(other),
        run.kind != other.kind,
        -len(seeds),
        sum(run.recipe.get(key) != other.recipe.get(key) for key in keys),
    )


def finite(value: float | None) -> float | None:
    """The value, or None where it is no number: JSON lines written by Python may hold NaN."""
    return value if isinstance(value, int | float) and isfinite(value) else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _key(run: RunRecord) -> tuple[str, ...]:
    recipe = json.dumps(run.recipe, sort_keys=True, default=str)
    teacher = run.teacher.fingerprint if run.teacher else ""
    model = (run.family, str(run.parameters), run.configuration, run.start)
    return (run.role, run.kind, run.method, *model, teacher, recipe)


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each group's first run: the method, and with it whatever tells it from its namesakes."""
    plain = ["baseline" if run.role == "baseline" else run.method for run in runs]
    labels = []
    for run, name in zip(runs, plain, strict=True):
        namesakes = [other for other, label in zip(runs, plain, strict=True) if label == name]
        labels.append(", ".join([name, *_traits(run, namesakes)]))
    return [
        label if labels.count(label) == 1 else f"{label} ({run.name})" for label, run in zip(labels, runs, strict=True)
    ]


def _traits(run: RunRecord, namesakes: Sequence[RunRecord]) -> list[str]:
    traits = []
    if len({other.kind for other in namesakes}) > 1:
        traits.append("plain" if run.kind == "train" else "distilled without terms")
    if len({(other.family, other.parameters) for other in namesakes}) > 1:
        traits.append(f"{run.family} {run.parameters / 1e6:.2f} M" if run.parameters else run.family)
    traits += _beginnings(run, namesakes)
    same_kind: list[Mapping[str, Any]] = [other.recipe for other in namesakes if other.kind == run.kind]
    keys = sorted({key for recipe in same_kind for key in recipe})
    told = [key for key in keys if len({json.dumps(recipe.get(key), default=str) for recipe in same_kind}) > 1]
    traits += [f"{key} {run.recipe.get(key, 'default')}" for key in told if key != "method"]
    return traits


def _beginnings(run: RunRecord, namesakes: Sequence[RunRecord]) -> list[str]:
    """What a run began with, if that tells it from others of the same architecture."""

    def alike(other: RunRecord) -> tuple[Any, ...]:
        return other.kind, other.family, other.parameters

    others = [other for other in namesakes if alike(other) == alike(run)]
    if len({other.start for other in others}) > 1:
        return [f"from {run.start or 'unknown weights'}"]
    if len({other.configuration for other in others}) > 1:
        return [f"configuration {run.configuration or 'unknown'}"]
    return []
