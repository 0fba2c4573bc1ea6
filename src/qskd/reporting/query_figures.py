"""Charts of what sets hard negatives apart; inline SVG for the page, one PNG for slides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qskd.reporting.curves import COLOURS, INK, SETTINGS, as_svg, unique_ids
from qskd.reporting.query_scene import ROLE_NAMES
from qskd.selection.groups import Role
from qskd.selection.statistics import SCORE_BINS, LayerNumbers, Numbers, RoleNumbers

ROLE_COLOURS = {Role.POSITIVE: COLOURS[2], Role.HARD_NEGATIVE: COLOURS[1], Role.EASY_NEGATIVE: COLOURS[0]}
_DASHES: dict[Role, Any] = {
    Role.POSITIVE: (None, None),
    Role.HARD_NEGATIVE: (6, 2),
    Role.EASY_NEGATIVE: (1.5, 1.5),
}
_MARKERS = {Role.POSITIVE: "o", Role.HARD_NEGATIVE: "s", Role.EASY_NEGATIVE: "^"}
_CELLS = 40  # of the GIoU axis
_ROWS = 24  # of the score axis, of equal height where the axis grows with the square root
_TICKS = (0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 1.0)
_SIZE = (4.9, 3.3)  # inches, as curves
_MOST_BARS = 16  # more hard negatives of one object are counted together

Draw = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Figured:
    """A chart: a title, what it shows in words, and how it looks."""

    title: str
    words: str
    svg: str  # names nothing that a user can choose


def layer_figures(numbers: Numbers, layer: int, threshold: float | None) -> list[Figured]:
    """The charts of one decoder layer, from 0."""
    one = numbers.layers[layer]
    made = [(title, words, draw) for title, words, draw in _of_layer(one, threshold)]
    return [_drawn(title, words, draw, f"l{layer}-{place}") for place, (title, words, draw) in enumerate(made)]


def depth_figures(numbers: Numbers) -> list[Figured]:
    """The charts over all decoder layers."""
    return [_drawn(title, words, draw, f"d{place}") for place, (title, words, draw) in enumerate(_over_layers(numbers))]


def save_png(numbers: Numbers, threshold: float | None, path: Path) -> None:
    """All charts, those of the last layer and those over layers, as one picture on white."""
    drawings = [*_of_layer(numbers.layers[-1], threshold), *_over_layers(numbers)]
    settings = SETTINGS | {name: "#222222" for name, value in SETTINGS.items() if value == INK}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(3 * _SIZE[0], 2 * _SIZE[1] + 0.6), layout="constrained")
        for place, (title, _, draw) in enumerate(drawings, start=1):
            axes = figure.add_subplot(2, 3, place)
            draw(axes)
            axes.set_title(title, fontsize=11)
        handles = [
            matplotlib.lines.Line2D([], [], color=ROLE_COLOURS[role], marker=_MARKERS[role], label=f"{name}s")
            for role, name in ROLE_NAMES.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, format="png", dpi=130, facecolor="white")


def _of_layer(layer: LayerNumbers, threshold: float | None) -> list[tuple[str, str, Draw]]:
    return [
        (
            "Overlap and score",
            "Each mark stands for queries of similar GIoU with their object and similar best score, and is the larger "
            "the more of their role's queries they are. The dotted line is the selection's threshold.",
            lambda axes: _overlap(axes, layer, threshold),
        ),
        (
            "Overlap with the object",
            "Share of the queries of each role, by GIoU.",
            lambda axes: _shares(axes, layer),
        ),
        (
            "Hard negatives of an object",
            "Number of objects, by how many hard negatives they have.",
            lambda axes: _per_object(axes, layer),
        ),
    ]


def _over_layers(numbers: Numbers) -> list[tuple[str, str, Draw]]:
    return [
        (
            "Median overlap, layer by layer",
            "GIoU of queries with their object.",
            lambda axes: _by_layer(axes, numbers, lambda one: one.giou.median if one.giou else None, "GIoU"),
        ),
        (
            "Median score, layer by layer",
            "The best score of any class.",
            lambda axes: _by_layer(
                axes, numbers, lambda one: one.score.median if one.score else None, "score", low=0.0
            ),
        ),
        (
            "Attention within objects, layer by layer",
            "Share of the attention of each role's queries. The dotted line is the area of the objects, which is what "
            "queries that look everywhere alike would have.",
            lambda axes: _by_layer(axes, numbers, _percent, "% of attention", low=0.0, level=numbers.object_area),
        ),
    ]


def _drawn(title: str, words: str, draw: Draw, prefix: str) -> Figured:
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=_SIZE, layout="constrained")
        draw(figure.add_subplot())
        return Figured(title, words, unique_ids(as_svg(figure), prefix))


def _overlap(axes: Any, layer: LayerNumbers, threshold: float | None) -> None:
    giou = (np.arange(_CELLS) + 0.5) / _CELLS * 2 - 1
    row_of = np.sqrt((np.arange(SCORE_BINS) + 0.5) / SCORE_BINS) * _ROWS
    belongs = row_of.astype(int)[:, None] == np.arange(_ROWS)  # [SCORE_BINS, rows]
    for role in (Role.EASY_NEGATIVE, Role.HARD_NEGATIVE, Role.POSITIVE):
        counts = layer.joint[role].reshape(_CELLS, -1, SCORE_BINS).sum(1) @ belongs  # [cells, rows]
        if not counts.sum():
            continue
        column, row = np.nonzero(counts)
        area = counts[column, row] / counts.sum()
        axes.scatter(
            giou[column],
            (row + 0.5) / _ROWS,
            s=7.0 + 1200.0 * area,
            c=ROLE_COLOURS[role],
            marker=_MARKERS[role],
            alpha=0.75,
            linewidths=0,
        )
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle=":", linewidth=1.2)
    axes.set_xlim(-1.04, 1.04)
    axes.set_xticks((-1, -0.5, 0, 0.5, 1))
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks(np.sqrt(_TICKS), [f"{tick:g}" for tick in _TICKS])
    axes.set_xlabel("GIoU with the object")
    axes.set_ylabel("best score (root scale)")
    axes.grid(True, color=INK, alpha=0.2, linewidth=0.7)


def _shares(axes: Any, layer: LayerNumbers) -> None:
    edges = np.linspace(-1, 1, _CELLS + 1)
    for role in ROLE_NAMES:
        counts = layer.joint[role].sum(1).reshape(_CELLS, -1).sum(1)
        if counts.sum():
            axes.stairs(
                100 * counts / counts.sum(),
                edges,
                color=ROLE_COLOURS[role],
                linewidth=1.8,
                linestyle={Role.POSITIVE: "-", Role.HARD_NEGATIVE: "--", Role.EASY_NEGATIVE: ":"}[role],
            )
    axes.set_xlim(-1, 1)
    axes.set_ylim(bottom=0)
    axes.set_xticks((-1, -0.5, 0, 0.5, 1))
    axes.set_xlabel("GIoU with the object")
    axes.set_ylabel("% of queries")


def _per_object(axes: Any, layer: LayerNumbers) -> None:
    counts = list(layer.hard_per_object)
    if len(counts) > _MOST_BARS:
        counts = [*counts[:_MOST_BARS], sum(counts[_MOST_BARS:])]
    axes.bar(range(len(counts)), counts, color=ROLE_COLOURS[Role.HARD_NEGATIVE], width=0.8)
    if layer.mean_hard is not None:
        axes.axvline(min(layer.mean_hard, len(counts) - 1), color=INK, linestyle=":", linewidth=1.2)
    if len(layer.hard_per_object) > _MOST_BARS:
        axes.set_xlabel(f"hard negatives (the last bar: {_MOST_BARS} or more)")
    else:
        axes.set_xlabel("hard negatives (dotted: mean)")
    axes.set_ylabel("objects")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _by_layer(
    axes: Any,
    numbers: Numbers,
    value: Callable[[RoleNumbers], float | None],
    label: str,
    *,
    low: float | None = None,
    level: float | None = None,
) -> None:
    for role in ROLE_NAMES:
        found = _points(numbers.layers, role, value)
        if found:
            axes.plot(
                *zip(*found, strict=True),
                color=ROLE_COLOURS[role],
                dashes=_DASHES[role],
                marker=_MARKERS[role],
                markersize=5,
                linewidth=1.8,
            )
    if level is not None:
        axes.axhline(100 * level, color=INK, linestyle=":", linewidth=1.2)
    axes.set_xlabel("decoder layer")
    axes.set_ylabel(label)
    axes.set_xlim(0.7, len(numbers.layers) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if low is not None:
        axes.set_ylim(bottom=low)
    axes.grid(True, axis="y", color=INK, alpha=0.25, linewidth=0.7)


def _points(
    layers: Sequence[LayerNumbers], role: Role, value: Callable[[RoleNumbers], float | None]
) -> list[tuple[int, float]]:
    values = [(place, value(layer.roles[role])) for place, layer in enumerate(layers, start=1)]
    return [(place, one) for place, one in values if one is not None]


def _percent(one: RoleNumbers) -> float | None:
    return None if one.foreground is None else 100 * one.foreground
