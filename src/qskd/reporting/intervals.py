"""How sure the numbers are as far as the choice of validation images goes: a bootstrap over images.

All models see the same draws, so that a difference is that of two models on the same images, draw by draw. A group's
number is the mean over its seeds within a draw: the intervals say nothing of seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qskd.evaluation.detections import Array
from qskd.evaluation.matching import Matches
from qskd.evaluation.resampling import DRAWS, Sampled, draw_images, interval
from qskd.reporting.groups import Group, finite, reference_of
from qskd.reporting.records import Role, RunRecord


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and the middle 95% of what other draws of images give."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class Scores:
    """AP of a teacher or a group."""

    label: str
    role: Role
    values: Mapping[str, Interval]  # "AP", "AP50", "AP75", "class NAME"


@dataclass(frozen=True, slots=True)
class Contrast:
    """How much higher AP is in a distilled group than elsewhere."""

    label: str
    against: str
    kind: Literal["baseline", "teacher"]
    values: Mapping[str, Interval]


def sample_all(matches: Mapping[str, Matches], draws: int = DRAWS) -> dict[str, Sampled]:
    """Every model measured on the same draws of images, by name."""
    count = max((len(one.truth.image_ids) for one in matches.values()), default=0)
    times = draw_images(count, draws)
    return {name: Sampled.of(one, times) for name, one in matches.items()}


def scores_of(groups: Sequence[Group], teachers: Sequence[str], sampled: Mapping[str, Sampled]) -> tuple[Scores, ...]:
    """Teachers, then groups, as far as their detections are known."""
    found = [Scores(name, "teacher", _intervals(sampled[name])) for name in teachers if name in sampled]
    for group in groups:
        if runs := [run for run in group.runs if run.name in sampled]:
            found.append(Scores(group.label, group.role, _intervals(_mean(runs, sampled))))
    return tuple(found)


def contrasts_of(
    groups: Sequence[Group], teacher_names: Mapping[str, str], sampled: Mapping[str, Sampled]
) -> tuple[Contrast, ...]:
    """Each distilled group against its baseline, seed by seed where they have seeds in common, and its teacher.

    Args:
        groups: all of them.
        teacher_names: names by fingerprint.
        sampled: by name of the run or teacher.
    """
    found = []
    for group in groups:
        runs = [run for run in group.runs if run.name in sampled]
        reference = reference_of(group, groups)
        theirs = [run for run in reference.runs if run.name in sampled] if reference else []
        if runs and theirs and reference is not None:
            ours, others = _paired(runs, theirs)
            values = _difference(_mean(ours, sampled), _mean(others, sampled))
            found.append(Contrast(group.label, reference.label, "baseline", values))
        teacher = teacher_names.get(group.first.teacher.fingerprint, "") if group.first.teacher else ""
        if group.role == "distilled" and runs and teacher in sampled:
            values = _difference(_mean(runs, sampled), sampled[teacher])
            found.append(Contrast(group.label, teacher, "teacher", values))
    return tuple(found)


def _paired(ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> tuple[Sequence[RunRecord], Sequence[RunRecord]]:
    """The runs with seeds in common, or all where there are none."""
    seeds = {run.seed for run in ours} & {run.seed for run in theirs} - {None}
    if not seeds:
        return ours, theirs
    return [run for run in ours if run.seed in seeds], [run for run in theirs if run.seed in seeds]


def _mean(runs: Sequence[RunRecord], sampled: Mapping[str, Sampled]) -> Sampled:
    """The mean over seeds, of the means over runs of one seed; runs without seed count by themselves."""
    by_seed: dict[int | str, list[Array]] = {}
    for run in runs:
        by_seed.setdefault(run.name if run.seed is None else run.seed, []).append(sampled[run.name].values)
    values = np.mean([np.mean(tables, axis=0) for tables in by_seed.values()], axis=0)
    return Sampled(sampled[runs[0].name].names, values)


def _difference(ours: Sampled, theirs: Sampled) -> dict[str, Interval]:
    return _intervals(Sampled(ours.names, ours.values - theirs.values))


def _intervals(sampled: Sampled) -> dict[str, Interval]:
    found = {}
    for name, column in zip(sampled.names, sampled.values.T, strict=True):
        low, high = interval(column[1:]) or (None, None)
        found[name] = Interval(finite(float(column[0])), low, high)
    return found
