"""Latencies of several models, measured in turn on one machine for one report."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qskd.reporting.records import Role


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds that one image takes one model."""

    label: str  # of the group, or the teacher's name
    role: Role
    median_ms: float
    p90_ms: float
    image_size: tuple[int, int]  # (height, width) in pixels

    @classmethod
    def of(cls, label: str, role: Role, milliseconds: Sequence[float], image_size: tuple[int, int]) -> "Latency":
        """Median and 90th percentile of the repeats."""
        median, p90 = np.percentile(milliseconds, [50, 90])
        return cls(label, role, float(median), float(p90), image_size)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """All models of a report, timed image by image in turn: what slows the machine down slows all of them."""

    latencies: tuple[Latency, ...]
    rounds: int
    device: str
    threads: int

    def of(self, label: str) -> Latency | None:
        """That of one group or teacher."""
        return next((one for one in self.latencies if one.label == label), None)

    def times_faster(self, label: str) -> float | None:
        """How many times as fast as the slowest teacher; None where there is none, or for a teacher."""
        teachers = [one.median_ms for one in self.latencies if one.role == "teacher"]
        found = self.of(label)
        return max(teachers) / found.median_ms if teachers and found and found.role != "teacher" else None
