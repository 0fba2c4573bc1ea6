"""What a check of data finds: one entry a thing, with where it is and how much it matters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Errors stop a training or spoil it; warnings are mended by the reader or by ``--fix``; notes are good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    severity: Severity
    kind: str  # a few words, the same for all of its kind
    where: str  # file, and entry or line
    what: str = ""  # numbers and names
    split: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def line(self) -> str:
        """For the console."""
        return f"{self.where}: {self.what}" if self.what else self.where


@dataclass(frozen=True, slots=True)
class Group:
    """All findings of one kind."""

    severity: Severity
    kind: str
    findings: tuple[Finding, ...]


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """Findings by kind: errors first, then warnings and notes, and of each the most frequent first."""
    counts = Counter((one.severity, one.kind) for one in findings)
    order = sorted(counts, key=lambda key: (SEVERITIES.index(key[0]), -counts[key], key[1]))
    members: dict[tuple[Severity, str], list[Finding]] = {key: [] for key in order}
    for one in findings:
        members[one.severity, one.kind].append(one)
    return [Group(*key, tuple(members[key])) for key in order]
