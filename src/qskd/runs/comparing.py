"""Finished runs side by side in one report; `qskd compare`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qskd.errors import ConfigError
from qskd.files import make_folder
from qskd.reporting.closeup import CloseUp
from qskd.reporting.compare import Findings, compare_runs
from qskd.reporting.report import Pictures, write_report
from qskd.reporting.rows import Row
from qskd.runs.options import SourceOptions, no_option
from qskd.runs.picturing import draw_pictures
from qskd.runs.reading import Run, name_teachers, open_runs
from qskd.runs.recalling import find_all, look_closely
from qskd.runs.recorded_data import MOVED, moved_data
from qskd.runs.sitting import Sitter, open_data, sitters_of
from qskd.runs.timing import time_side_by_side


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found and where it was written."""

    rows: tuple[Row, ...]  # teachers, then baselines, then distilled runs
    table: str  # for the console: the rows, the gains in words, warnings, notes
    findings: Findings  # every number of the report
    html: Path
    markdown: Path
    json: Path
    pictures: Path | None  # the drawn detections as one JPEG; None where there are none


def compare(
    runs: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str] = "comparison",
    *,
    images: int = 6,
    latency: bool = True,
    **data: str | os.PathLike[str] | None,
) -> Comparison:
    """Write report.html, report.md, report.json and pictures.jpg about finished runs.

    Args:
        runs: run folders; one alone is reported by itself.
        output_dir: made if absent; an earlier report there is replaced.
        images: how many of them to draw detections on, evenly chosen; and as many again where a method gains and
            loses most. 0 for none.
        latency: measure all models in turn on this machine; else the report shows what each run measured at its end.
        data: where the validation images lie, if not where the runs had them: ``data``, or ``val_annotations`` with
            ``val_images``. ``val_split``, ``data_format`` and ``box_format`` of ``data`` are those of the first run,
            unless they are given, too.

    Raises:
        ConfigError: a folder holds no finished run, or an option cannot be.
        DataError: data was given and cannot be used.

    Example:
        >>> qskd.compare(["runs/plain", "runs/qskd"], "report", data="moved/scenes", latency=False)  # doctest: +SKIP
    """
    output_dir = Path(output_dir)
    if images < 0:
        raise ConfigError(f"--images is {images}; give a number of images, 0 for none.")
    if not isinstance(latency, bool):
        raise ConfigError(f"latency is {latency!r}; give True or False.")
    for name in data.keys() - set(MOVED):
        raise no_option(name, (*MOVED, "output_dir", "images", "latency"))
    opened = name_teachers(open_runs([Path(run) for run in runs]))
    moved = moved_data(opened[0].record.config, data)
    make_folder(output_dir, "--output_dir")
    records = [run.record for run in opened]
    sitters = sitters_of(opened)
    notes: list[str] = []
    speed = time_side_by_side(sitters, notes) if latency else None
    sheet = output_dir / "pictures.jpg"
    sheet.unlink(missing_ok=True)
    closeup, pictures = _look(opened, sitters, moved, images, sheet, notes)
    findings = compare_runs(records, speed=speed, closeup=closeup)
    files = write_report(output_dir, findings, records, pictures)
    return Comparison(
        findings.rows,
        findings.text(),
        findings,
        files.html,
        files.markdown,
        files.json,
        sheet if pictures.rows else None,
    )


def _look(
    runs: Sequence[Run],
    sitters: Sequence[Sitter],
    moved: SourceOptions | None,
    images: int,
    sheet: Path,
    notes: list[str],
) -> tuple[CloseUp, Pictures]:
    """What the detections on the validation images tell, in numbers and drawn."""
    index, why = open_data(runs, moved)
    if index is None:
        notes.append(f"Nothing is said about single detections: {why}")
        return CloseUp(notes=tuple(notes)), Pictures()
    found = find_all(sitters, index, notes)
    records = [run.record for run in runs]
    closeup = look_closely(records, sitters, index, found, notes, (images + 1) // 2)
    return closeup, draw_pictures(index, sitters, found, closeup, images, sheet) if images else Pictures()
