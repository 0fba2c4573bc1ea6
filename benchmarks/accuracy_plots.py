"""Plots of the benchmark: AP against training cost, and differences to the baseline with their intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from accuracy_grid import BASELINE
from accuracy_tables import CONFIDENCE, Table, has_one_curve, mean_curve, seconds_per_step

mpl.use("Agg")
import matplotlib.pyplot as plt

_COLOURS = (
    "#b45309",
    "#6d28d9",
    "#be123c",
    "#1d4ed8",
    "#4d7c0f",
    "#a21caf",
    "#0ea5e9",
    "#92400e",
    "#334155",
)
_STRONG = {BASELINE: "#6b7280", "qskd": "#0f766e"}


def plot_all(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write the plots that there are numbers for; their files."""
    made = [plot_costs(tables, folder / "accuracy_cost.png"), plot_gains(tables, folder / "accuracy_gains.png")]
    return [path for path in made if path is not None]


def plot_costs(tables: Sequence[Table], path: Path) -> Path | None:
    """One panel for each table with curves: AP against training time, in units of the baseline's whole training."""
    shown = [table for table in tables if any(row.records[0].curve for row in table.rows)]
    if not shown:
        return None
    figure, panels = _panels(len(shown), 4.6, 3.6)
    for panel, table in zip(panels, shown, strict=False):
        _draw_costs(panel, table)
    return _save(figure, path)


def _draw_costs(panel: Any, table: Table) -> None:
    base = table.row(BASELINE)
    unit = seconds_per_step(base.records) if base else None
    whole = base.records[0].steps if base else 1
    for number, row in enumerate(table.rows):
        records = [record for record in row.records if record.curve]
        if not has_one_curve(records):
            continue
        own = seconds_per_step(records)
        curve = mean_curve(records)
        scale = own / unit if own and unit else 1.0
        steps = [0.0, *(scale * step / whole for step, _ in curve)]
        aps = [0.0, *(100 * ap for _, ap in curve)]
        panel.plot(steps, aps, label=row.method, color=_colour(row.method, number), marker=".", linewidth=1.6)
    if base is not None:
        panel.axhline(100 * base.ap.mean, color=_STRONG[BASELINE], linewidth=0.8, linestyle="--")
    panel.set_title(f"{table.dataset}, {table.pair}", fontsize=10)
    what = "training time" if unit else "steps"
    panel.set_xlabel(what if base is None else f"{what} (1 = all of {BASELINE}'s)")
    panel.set_ylabel("AP")
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=7, frameon=False, loc="lower right")


def plot_gains(tables: Sequence[Table], path: Path) -> Path | None:
    """One panel for each table: AP above the baseline's, with the interval over seeds and every seed as a dot."""
    shown = [table for table in tables if any(row.gain for row in table.rows)]
    if not shown:
        return None
    most = max(sum(row.gain is not None for row in table.rows) for table in shown)
    figure, panels = _panels(len(shown), 4.6, 1.2 + 0.34 * most)
    for panel, table in zip(panels, shown, strict=False):
        _draw_gains(panel, table)
    return _save(figure, path)


def _draw_gains(panel: Any, table: Table) -> None:
    rows = [row for row in table.rows if row.gain is not None]
    base = table.row(BASELINE)
    theirs = {record.seed: record.ap for record in base.records} if base else {}
    for place, row in enumerate(rows):
        assert row.gain is not None
        colour = _colour(row.method, place + 1)
        width = 100 * row.gain.half_width if row.gain.half_width is not None else 0
        panel.errorbar(100 * row.gain.mean, place, xerr=width, fmt="o", color=colour, capsize=3, linewidth=1.6)
        each = [100 * (one.ap - theirs[one.seed]) for one in row.records if one.seed in theirs]
        panel.plot(each, [place + 0.22] * len(each), ".", color=colour, markersize=4, alpha=0.6)
    panel.axvline(0, color=_STRONG[BASELINE], linewidth=0.8)
    panel.set_yticks(range(len(rows)), [row.method for row in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_title(f"{table.dataset}, {table.pair}", fontsize=10)
    panel.set_xlabel(f"AP above {BASELINE}'s ({CONFIDENCE:.0%} interval over seeds)", fontsize=8)


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    panels = list(axes.flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels


def _colour(method: str, number: int) -> str:
    return _STRONG.get(method, _COLOURS[number % len(_COLOURS)])


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
