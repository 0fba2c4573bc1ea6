"""Training curves as inline SVG that reads on a phone, on paper and in the dark."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from qskd.reporting.groups import finite
from qskd.reporting.records import RunRecord

COLOURS = ("#3b82c4", "#d9541e", "#12947a", "#9a6fd0", "#a67c00", "#cc5490")
"""Told apart without red-green vision, with a contrast of at least 3:1 on white and on near-black."""

DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2.5), (2, 2), (8, 2, 2, 2))
"""Lengths of dash and gap in points; no colour is the only thing that tells two lines apart."""

INK = "#767677"
"""Replaced by the page's own text colour in ``as_svg``."""

_SIZE = (4.9, 3.1)  # inches of 72 points: close to a phone's width, so that 11-point text stays 11 pixels
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qskd",
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}
"""How matplotlib draws for a page."""

_LAYER = re.compile(r"(_(aux|dn|enc|denoising|encoder|layer))*(_\d+)?$")
_NO_PART = re.compile(r"^(step|epoch|loss|grad_norm|learning_rate|total_flos)$|^(eval|train)_")


@dataclass(frozen=True, slots=True)
class Style:
    """How one line looks; names are written beside the chart, not in it."""

    colour: str
    dashes: tuple[float, ...]

    @classmethod
    def of(cls, position: int) -> "Style":
        """A style for each position; the first 24 differ, the first four in colour and dashes."""
        round_, within = divmod(position, len(COLOURS))
        return cls(COLOURS[within], DASHES[(within + round_) % len(DASHES)])

    @property
    def css(self) -> str:
        """The dashes as an SVG attribute."""
        return " ".join(f"{length:g}" for length in self.dashes) or "none"


@dataclass(frozen=True, slots=True)
class Line:
    """A line or a level of a chart."""

    label: str  # lines of one label share an entry of the legend
    points: Sequence[tuple[float, float]]  # a single point without step is drawn as a level across the chart
    style: Style


@dataclass(frozen=True, slots=True)
class Chart:
    """A finished drawing."""

    title: str
    svg: str  # holds no text but numbers and "step"
    legend: tuple[tuple[str, Style], ...]


def ap_lines(runs: Sequence[RunRecord], label: str, style: Style) -> list[Line]:
    """AP in percent against training step, one line a run."""
    return [Line(label, points, style) for run in runs if (points := series(run.log, "eval_AP", scale=100))]


def loss_lines(runs: Sequence[RunRecord], label: str, style: Style) -> list[Line]:
    """The whole training loss against the step, one line a run."""
    return [Line(label, points, style) for run in runs if (points := series(run.log, "loss"))]


def part_lines(run: RunRecord) -> list[Line]:
    """Each part of a run's loss, its decoder layers and denoising groups added up; largest first."""
    parts: dict[str, list[tuple[float, float]]] = {}
    for entry in run.log:
        for name, value in loss_parts(entry).items():
            parts.setdefault(name, []).append((float(entry["step"]), value))
    ordered = sorted(parts.items(), key=lambda item: -item[1][-1][1])
    return [Line(name, points, Style.of(position)) for position, (name, points) in enumerate(ordered)]


def loss_parts(entry: Mapping[str, Any]) -> dict[str, float]:
    """The weighted loss parts of a log entry, those of several layers added up; empty for other entries."""
    parts: dict[str, float] = {}
    if finite(entry.get("loss")) is None or finite(entry.get("step")) is None:
        return parts
    for key, value in entry.items():
        if not _NO_PART.search(key) and (number := finite(value)) is not None:
            name = _LAYER.sub("", key)
            parts[name] = parts.get(name, 0.0) + number
    return parts


def series(log: Sequence[Mapping[str, Any]], key: str, *, scale: float = 1.0) -> list[tuple[float, float]]:
    """(step, value * scale) of every entry that has a number under ``key``, in the order of steps."""
    found: dict[float, float] = {}
    for entry in log:
        step, value = finite(entry.get("step")), finite(entry.get(key))
        if step is not None and value is not None:
            found[step] = value * scale  # of a step logged twice, the later one
    return sorted(found.items())


def chart(title: str, lines: Sequence[Line], *, levels: Sequence[Line] = (), logarithmic: bool = False) -> Chart:
    """Draw lines over training steps.

    Args:
        title: stands above the drawing, and is what screen readers say.
        lines: at least one.
        levels: drawn across the whole chart at the height of their first point.
        logarithmic: scale the vertical axis so, if all values are positive.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            marker = "o" if len(line.points) < 30 else ""
            axes.plot(
                *zip(*line.points, strict=True),
                color=line.style.colour,
                dashes=line.style.dashes or (None, None),
                linewidth=1.8,
                marker=marker,
                markersize=3.5,
            )
        for level in levels:
            axes.axhline(
                level.points[0][1], color=level.style.colour, dashes=level.style.dashes or (None, None), linewidth=1.5
            )
        _finish(axes, logarithmic and all(y > 0 for line in lines for _, y in line.points))
        svg = as_svg(figure)
    legend = {line.label: line.style for line in (*levels, *lines)}
    return Chart(title, svg, tuple(legend.items()))


def _finish(axes: Any, logarithmic: bool) -> None:
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.grid(True, axis="y", color=INK, alpha=0.25, linewidth=0.7)


def as_svg(figure: Figure) -> str:
    """The <svg> element alone: no prologue, metadata, namespaces or ids, which would clash within one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r'<svg aria-hidden="true" \1', text, count=1)
    text = re.sub(r'<g id="[\w.]+"', "<g", text)
    return text.replace(INK, "currentColor").strip()


def unique_ids(svg: str, prefix: str) -> str:
    """The SVG with every id, and every reference to one, prefixed."""
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", svg)
