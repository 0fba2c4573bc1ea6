"""Precision against recall, and kinds of mistakes, drawn: small SVG and bars that need no plotting library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qskd.evaluation.error_types import TYPES
from qskd.reporting.closeup import CURVES, CloseUp
from qskd.reporting.curves import COLOURS, Chart, Style

CLASSES = 12
"""Classes with curves of their own, those with most objects; report.json has all of them."""

_WIDTH, _HEIGHT = 353, 240  # as the charts of training
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 8, 343, 198  # of the axes
_TICKS = (0, 25, 50, 75, 100)


@dataclass(frozen=True, slots=True)
class ErrorBar:
    """One model's mistakes as lengths."""

    title: str
    total: int
    parts: tuple[tuple[str, str, int, float], ...]  # type, colour, count, percent of the room there is


def overall_curves(closeup: CloseUp, styles: Mapping[str, Style]) -> list[Chart]:
    """A chart for each IoU threshold: the mean over classes."""
    return [_chart(closeup, styles, iou, "", f"All classes, IoU {iou}") for iou in CURVES] if closeup.models else []


def class_curves(closeup: CloseUp, styles: Mapping[str, Style]) -> list[Chart]:
    """A chart for each of the most frequent classes and each IoU threshold."""
    if not closeup.models or closeup.objects is None:
        return []
    present = [(count, name) for name, count in closeup.objects.items() if count]
    frequent = [name for _, name in sorted(present, key=lambda one: -one[0])[:CLASSES]]
    return [_chart(closeup, styles, iou, name, f"{name}, IoU {iou}") for name in frequent for iou in CURVES]


def error_bars(closeup: CloseUp) -> list[ErrorBar]:
    """The mistakes of all models, on one scale."""
    most = max((sum(one.errors.counts.values()) for one in closeup.models), default=0) or 1
    bars = []
    for one in closeup.models:
        counts = one.errors.counts
        parts = tuple((name, error_colour(name), counts[name], 100 * counts[name] / most) for name in TYPES)
        bars.append(ErrorBar(one.title, sum(counts.values()), parts))
    return bars


def error_colour(name: str) -> str:
    """The colour of a type of mistakes."""
    return COLOURS[TYPES.index(name)]


def _chart(closeup: CloseUp, styles: Mapping[str, Style], iou: str, class_: str, title: str) -> Chart:
    lines = [(one.title, styles[one.label], one.curves[iou][class_]) for one in closeup.models]
    drawn = "".join(_line(values, style) for _, style, values in reversed(lines))  # the first on top
    svg = f'<svg aria-hidden="true" viewBox="0 0 {_WIDTH} {_HEIGHT}">{_axes()}{drawn}</svg>'
    return Chart(title, svg, tuple((label, style) for label, style, _ in lines))


def _axes() -> str:
    """Grid, numbers and names of both axes, in percent."""
    parts = []
    for tick in _TICKS:
        x, y = _x(tick / 100), _y(tick / 100)
        parts.append(f'<path d="M{_LEFT} {y:g}H{_RIGHT}" stroke="currentColor" stroke-opacity=".22"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{tick}</text>')
        parts.append(f'<text x="{x:g}" y="{_BOTTOM + 16}" text-anchor="middle">{tick}</text>')
    middle = ((_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2)
    parts.append(f'<text x="{middle[0]:g}" y="{_HEIGHT - 8}" text-anchor="middle">recall (%)</text>')
    turned = f'transform="translate(12 {middle[1]:g}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">precision (%)</text>')
    return f'<g font-size="11" fill="currentColor">{"".join(parts)}</g>'


def _line(values: Sequence[float | None], style: Style) -> str:
    """One curve; it ends where no recall is reached any more."""
    known = [(at / 100, value) for at, value in enumerate(values) if value is not None]
    if not known:
        return ""
    reached = [point for point in known if point[1] > 0]
    points = [*reached, *known[len(reached) : len(reached) + 1]]
    kept = [
        point
        for at, point in enumerate(points)
        if not 0 < at < len(points) - 1 or not points[at - 1][1] == point[1] == points[at + 1][1]
    ]
    path = "L".join(f"{_x(recall):.1f} {_y(precision):.1f}" for recall, precision in kept)
    dashes = "" if style.css == "none" else f' stroke-dasharray="{style.css}"'
    return f'<path d="M{path}" fill="none" stroke="{style.colour}" stroke-width="1.8"{dashes}/>'


def _x(recall: float) -> float:
    return _LEFT + recall * (_RIGHT - _LEFT)


def _y(precision: float) -> float:
    return _BOTTOM - precision * (_BOTTOM - _TOP)
