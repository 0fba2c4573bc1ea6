"""Numbers as lines and tables of text."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

SHOWN = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def percent(value: float | None) -> str:
    """A metric in [0, 1] as a percentage with one decimal; a dash where it is undefined."""
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def signed_percent(value: float | None) -> str:
    """A difference of two metrics in percentage points with its sign; ``0.0`` has none."""
    shown = percent(value)
    if shown in ("-", "0.0", "-0.0"):
        return shown.removeprefix("-") or "-"
    return shown if shown.startswith("-") else f"+{shown}"


def share(value: float | None) -> str:
    """A part of a whole in percent, without decimals and without a minus before 0; a dash where it is undefined."""
    return "-" if value is None or value != value else f"{round(100 * value) + 0:d}%"


def number(value: float | None, digits: int = 1) -> str:
    """A number with that many decimals; a dash where there is none."""
    return "-" if value is None or value != value else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that people would use."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def metrics_line(metrics: Mapping[str, Any]) -> str:
    """The six AP numbers on one line."""
    return "  ".join(f"{name} {percent(metrics.get(name))}" for name in SHOWN)


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """Columns aligned with spaces; the first to the left, the others to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def plain_values(value: Any) -> Any:
    """The value with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(entry) for entry in value]
    return (value if isfinite(value) else None) if isinstance(value, float) else value
