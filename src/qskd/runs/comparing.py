"""Finished runs side by side in one report; `qskd compare`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qskd.errors import ConfigError
from qskd.files import make_folder
from qskd.reporting.closeup import CloseUp
from qskd.reporting.compare import Findings, compare_runs
from qskd.reporting.report import Pictures, write_report
from qskd.reporting.rows import Row
from qskd.runs.options import SourceOptions
from qskd.runs.picturing import draw_pictures
from qskd.runs.reading import Run, name_teachers, open_runs
from qskd.runs.recalling import find_all, look_closely
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
    runs: Sequence[Path],
    output_dir: Path,
    *,
    data: SourceOptions | None = None,
    images: int = 6,
    latency: bool = True,
) -> Comparison:
    """Write report.html, report.md, report.json and pictures.jpg about finished runs.

    Args:
        runs: run folders; one alone is reported by itself.
        output_dir: made if absent; an earlier report there is replaced.
        data: where the validation images lie; by default where the runs had them.
        images: how many of them to draw detections on, evenly chosen; and as many again where a method gains and
            loses most. 0 for none.
        latency: measure all models in turn on this machine; else the report shows what each run measured at its end.

    Raises:
        ConfigError: a folder holds no finished run, or an option cannot be.
        DataError: ``data`` was given and cannot be used.
    """
    output_dir = Path(output_dir)
    if images < 0:
        raise ConfigError(f"--images is {images}; give a number of images, 0 for none.")
    opened = name_teachers(open_runs(runs))
    make_folder(output_dir, "--output_dir")
    records = [run.record for run in opened]
    sitters = sitters_of(opened)
    notes: list[str] = []
    speed = time_side_by_side(sitters, notes) if latency else None
    sheet = output_dir / "pictures.jpg"
    sheet.unlink(missing_ok=True)
    closeup, pictures = _look(opened, sitters, data, images, sheet, notes)
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
    data: SourceOptions | None,
    images: int,
    sheet: Path,
    notes: list[str],
) -> tuple[CloseUp, Pictures]:
    """What the detections on the validation images tell, in numbers and drawn."""
    index, why = open_data(runs, data)
    if index is None:
        notes.append(f"Nothing is said about single detections: {why}")
        return CloseUp(notes=tuple(notes)), Pictures()
    found = find_all(sitters, index, notes)
    records = [run.record for run in runs]
    closeup = look_closely(records, sitters, index, found, notes, (images + 1) // 2)
    return closeup, draw_pictures(index, sitters, found, closeup, images, sheet) if images else Pictures()
