"""The report's files: one web page that needs nothing else, Markdown, JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qskd.evaluation.error_types import TYPES
from qskd.files import write_whole
from qskd.reporting import curves, plots, tables
from qskd.reporting.compare import Findings
from qskd.reporting.groups import Group, finite, group_runs, teacher_title, teachers_of
from qskd.reporting.records import RunRecord


@dataclass(frozen=True, slots=True)
class Panel:
    """One image with boxes, beside others of the same image."""

    title: str
    caption: str  # what is on it, in words
    uri: str  # a data: address


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Images that were chosen for one reason."""

    title: str
    reason: str  # empty where an earlier set has given it
    rows: Sequence[tuple[str, Sequence[Panel]]]  # name of the image, its panels


@dataclass(frozen=True, slots=True)
class Pictures:
    """All panels of a report, or why there are none."""

    rows: Sequence[tuple[str, Sequence[Panel]]] = ()  # name of the image, its panels; evenly chosen
    extremes: Sequence[PictureSet] = ()  # where a method gains and loses most
    legend: Sequence[tuple[str, str]] = ()  # class, CSS colour
    notes: Sequence[str] = field(default_factory=tuple)
    sheet: str | None = None  # file beside the report that holds all panels


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report lies."""

    html: Path
    markdown: Path
    json: Path


def write_report(
    folder: Path, findings: Findings, runs: Sequence[RunRecord], pictures: Pictures, title: str = "Runs compared"
) -> ReportFiles:
    """Write report.html, report.md and report.json, replacing those of an earlier report.

    Args:
        folder: made if absent.
        findings: the numbers.
        runs: the same runs, for curves and settings.
        pictures: panels for the web page.
        title: of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(*(folder / f"report.{kind}" for kind in ("html", "md", "json")))
    styles = styles_of(runs)
    facts = {
        "title": title,
        "findings": findings,
        "runs": runs,
        "pictures": pictures,
        "charts": charts_of(runs),
        "overall_curves": plots.overall_curves(findings.closeup, styles),
        "class_curves": plots.class_curves(findings.closeup, styles),
        "error_bars": plots.error_bars(findings.closeup),
        "error_types": TYPES,
        "bars": _bars(findings),
        "has_teacher": any(run.teacher is not None for run in runs),
        "version": version("qskd"),
        "shown": tables.SHOWN,
    }
    environment = page_environment()
    for path in (files.html, files.markdown):
        text = environment.get_template(f"{path.name}.jinja").render(facts)
        write_whole(path, text)
    content = {"qskd": version("qskd"), **findings.as_dict(), "runs": [_settings(run) for run in runs]}
    content["picture_notes"] = list(pictures.notes)
    write_whole(files.json, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    return files


@dataclass(frozen=True, slots=True)
class _Bar:
    """AP of a teacher, or a group's mean, as a length."""

    label: str
    role: str
    ap: float
    width: float  # percent of the room there is


def _bars(findings: Findings) -> list[_Bar]:
    found: list[tuple[str, str, float | None]] = [
        (teacher_title(row.name), row.role, finite(row.metrics.get("AP")))
        for row in findings.rows
        if row.role == "teacher"
    ]
    found += [(group.label, group.role, group.metrics["AP"].mean) for group in findings.groups]
    known = [(label, role, ap) for label, role, ap in found if ap is not None]
    longest = max((ap for _, _, ap in known), default=0.0) or 1.0
    return [_Bar(label, role, ap, 80 * ap / longest) for label, role, ap in known]


def charts_of(runs: Sequence[RunRecord]) -> list[curves.Chart]:
    """AP and loss of all runs, then the loss parts of each group's first run; only what was logged."""
    groups, styles = group_runs(runs), styles_of(runs)
    teachers = _teacher_levels(runs, styles)
    ap = [line for group in groups for line in curves.ap_lines(group.runs, group.label, styles[group.label])]
    loss = [line for group in groups for line in curves.loss_lines(group.runs, group.label, styles[group.label])]
    found = []
    if ap:
        found.append(curves.chart("AP (%) on the validation images", ap, levels=teachers))
    if loss:
        found.append(curves.chart("Training loss, all parts together", loss))
    found += [drawn for group in groups if (drawn := _parts_chart(group)) is not None]
    return [
        curves.Chart(drawn.title, curves.unique_ids(drawn.svg, f"chart{number}"), drawn.legend)
        for number, drawn in enumerate(found)
    ]


def styles_of(runs: Sequence[RunRecord]) -> dict[str, curves.Style]:
    """How the lines of each group and each teacher look, in every chart."""
    labels = [*(group.label for group in group_runs(runs)), *teachers_of(runs)]
    return {label: curves.Style.of(position) for position, label in enumerate(labels)}


def _teacher_levels(runs: Sequence[RunRecord], styles: Mapping[str, curves.Style]) -> list[curves.Line]:
    levels = []
    for name, teacher in teachers_of(runs).items():
        ap = teacher.metrics.get("AP")
        if isinstance(ap, int | float):
            levels.append(curves.Line(teacher_title(name), [(0.0, 100 * ap)], styles[name]))
    return levels


def _parts_chart(group: Group) -> curves.Chart | None:
    lines = curves.part_lines(group.first)
    if len(lines) < 2:
        return None
    return curves.chart(f"Loss parts of {group.label} (run {group.first.name})", lines, logarithmic=True)


def _settings(run: RunRecord) -> dict[str, Any]:
    return {
        "name": run.name,
        "kind": run.kind,
        "role": run.role,
        "method": run.method,
        "family": run.family,
        "start": run.start,
        "configuration": run.configuration,
        "seed": run.seed,
        "steps": run.steps,
        "train_images": run.train_images,
        "image_size": list(run.image_size),
        "validation_digest": run.validation,
        "config": dict(run.config),
        "environment": dict(run.environment),
    }


def page_environment() -> Environment:
    """Where the templates of reports lie, and how values are written in them; web pages escape all of them."""
    environment = Environment(
        loader=PackageLoader("qskd.reporting"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        finalize=_in_order,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "percent": tables.percent,
        "signed": _signed,
        "sign": _sign,
        "number": tables.number,
        "duration": tables.duration,
        "millions": lambda value: "-" if value is None else tables.number(value / 1e6, 2),
        "share": tables.share,
        "colour": plots.error_colour,
        "short": lambda name: name.removeprefix("AP_") if name.startswith("AP_") else name,
        "drawing": Markup,  # SVG made here, without any name in it
        "plain": markdown_text,
        "as_yaml": _as_yaml,
    }
    environment.filters |= filters
    return environment


_BIDI = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C))


def _in_order(value: Any) -> Any:
    """A value without the letters that turn what stands around it about."""
    return value.translate(_BIDI) if type(value) is str else value


def _signed(value: float | None) -> str:
    shown = tables.signed_percent(value)
    return shown if shown == "-" else shown.replace("-", "\N{MINUS SIGN}")


def _sign(value: float | None) -> str:
    """The CSS class of a difference."""
    return {"+": "up", "\N{MINUS SIGN}": "down"}.get(_signed(value)[0], "")


def markdown_text(value: object) -> str:
    """Any text as one line of Markdown in which nothing of it is markup, not even inside of a table."""
    text = " ".join(str(_in_order(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|~#!$" else letter for letter in text)


def _as_yaml(config: Mapping[str, Any]) -> str:
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False, default=str)}" for key, value in config.items())
