"""Finished runs side by side in one report; `qskd compare`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError, QskdError
from qskd.models.loading import BoxFrame, weights_fingerprint
from qskd.reporting.compare import Findings, Row, compare_runs, teacher_title, teachers_of
from qskd.reporting.groups import Group, group_runs, reference_of
from qskd.reporting.pictures import SCORE, class_colour, data_uri, detection_sheet
from qskd.reporting.records import RunRecord
from qskd.reporting.report import Panel, Pictures, write_report
from qskd.runs import building, picturing
from qskd.runs.options import SourceOptions
from qskd.runs.reading import Run, name_teachers, open_runs, teacher_folder


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
    runs: Sequence[Path], output_dir: Path, *, data: SourceOptions | None = None, images: int = 6
) -> Comparison:
    """Write report.html, report.md, report.json and pictures.jpg about finished runs.

    Args:
        runs: run folders; one alone is reported by itself.
        output_dir: made if absent; an earlier report there is replaced.
        data: where the validation images of the pictures lie; by default where the runs had them.
        images: how many of them to draw detections on; 0 for none.

    Raises:
        ConfigError: a folder holds no finished run, or an option cannot be.
        DataError: ``data`` was given and cannot be used.
    """
    output_dir = Path(output_dir)
    if images < 0:
        raise ConfigError(f"--images is {images}; give a number of images, 0 for none.")
    if output_dir.is_file():
        raise ConfigError(f"--output_dir {output_dir} is a file; give a folder.")
    opened = name_teachers(open_runs(runs))
    records = [run.record for run in opened]
    findings = compare_runs(records)
    sheet = output_dir / "pictures.jpg"
    sheet.unlink(missing_ok=True)
    pictures = draw_pictures(opened, data, images, sheet) if images else Pictures()
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


@dataclass(frozen=True, slots=True)
class Sitter:
    """A model whose detections are to be drawn."""

    title: str
    folder: Path
    size: ImageSize
    box_frame: BoxFrame
    fingerprint: str = ""  # that its weights must have; empty for any


def draw_pictures(runs: Sequence[Run], data: SourceOptions | None, images: int, sheet: Path) -> Pictures:
    """Ground truth, teachers, baselines and distilled models on the same validation images.

    Args:
        runs: whose models to ask.
        data: where the images are; by default where the runs had them.
        images: how many, at most.
        sheet: image file to write all panels to.

    Raises:
        DataError: ``data`` was given and cannot be used.
    """
    index, why = _open_data(runs, data)
    positions = picturing.evenly_chosen(index, images) if index is not None else []
    if index is None or not positions:
        return Pictures(notes=[why])
    notes = [
        f"{len(positions)} of {len(index)} validation images, evenly spread over those that hold objects. Drawn are "
        f"detections with a score of at least {SCORE}; thin boxes are the best of a model that is less sure."
    ]
    columns = [picturing.labelled(index, positions)]
    for sitter in _sitters(runs, notes):
        try:
            columns.append(_seen_by(sitter, index, positions))
        except QskdError as error:
            notes.append(f"No pictures of {sitter.title}: {error}")
    try:
        return _as_pictures(index, positions, columns, notes, sheet)
    except QskdError as error:
        return Pictures(notes=[f"No pictures: {error}"])


def _open_data(runs: Sequence[Run], data: SourceOptions | None) -> tuple[DetectionIndex | None, str]:
    """The validation split, or why there is none."""
    if data is not None:
        return building.open_split(data, "val"), "No pictures: the validation split holds no images."
    reason = ""
    for run in runs:
        try:
            index = building.open_split(_data_of(run.record), "val")
        except QskdError as error:
            reason = reason or f" ({error})"
            continue
        if index is not None:
            return index, "No pictures: the validation split holds no images."
    return None, f"No pictures: the validation images are not where the runs had them{reason}. Give --data."


def _data_of(record: RunRecord) -> SourceOptions:
    config = record.config
    return SourceOptions(
        data=config.get("data"),
        train_annotations=config.get("train_annotations"),
        train_images=config.get("train_images"),
        val_annotations=config.get("val_annotations"),
        val_images=config.get("val_images"),
    )


def _sitters(runs: Sequence[Run], notes: list[str]) -> Iterator[Sitter]:
    """The teachers, then one run of each group."""
    for title, teacher in teachers_of([run.record for run in runs]).items():
        pupil = next(run.record for run in runs if run.record.teacher == teacher)
        run = next((run for run in runs if run.record.taught == teacher.fingerprint), None)
        folder = run.folder.model() if run else teacher_folder(pupil)
        if folder is None:
            notes.append(f"No pictures of the teacher: its folder {pupil.config.get('teacher', '')} is gone.")
            continue
        frame = pupil.config.get("teacher_box_frame", "content")
        yield Sitter(teacher_title(title), folder, _size(teacher.image_size), frame, teacher.fingerprint)
    folders = {run.record.name: run.folder for run in runs}
    groups = group_runs([run.record for run in runs])
    for group in groups:
        run_shown = _representative(group, groups)
        title = group.label if len(group.runs) == 1 else f"{group.label} (seed {run_shown.seed})"
        frame = run_shown.config.get("box_frame", "content")
        yield Sitter(title, folders[run_shown.name].model(), _size(run_shown.image_size), frame)


def _representative(group: Group, groups: Sequence[Group]) -> RunRecord:
    """The first run whose seed its baseline has too, so that pictures show a pair."""
    reference = reference_of(group, groups)
    seeds = {run.seed for run in reference.runs} if reference else set()
    return next((run for run in group.runs if run.seed in seeds), group.first)


def _size(edges: Sequence[int]) -> ImageSize:
    if len(edges) == 2:
        return ImageSize(shortest_edge=edges[0], longest_edge=edges[1])
    return ImageSize(square=edges[0] if edges else 640)


def _seen_by(sitter: Sitter, index: DetectionIndex, positions: Sequence[int]) -> picturing.Column:
    """What one model finds.

    Raises:
        QskdError: it cannot be loaded, is another model than it was, or knows none of the classes.
    """
    adapter = building.open_model(str(sitter.folder), None, box_frame=sitter.box_frame)
    if sitter.fingerprint and weights_fingerprint(adapter.model) != sitter.fingerprint:
        raise CheckpointError(f"{sitter.folder} holds other weights than those that were distilled.")
    adapter.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return picturing.detected(sitter.title, adapter, index, sitter.size, positions)


def _as_pictures(
    index: DetectionIndex,
    positions: Sequence[int],
    columns: Sequence[picturing.Column],
    notes: list[str],
    sheet: Path,
) -> Pictures:
    drawn = picturing.drawn(index, positions, columns)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    detection_sheet(drawn, [column.title for column in columns]).save(sheet, quality=88)
    rows = []
    for row, (position, images) in enumerate(zip(positions, drawn, strict=True)):
        captions = [column.objects[row].counted(index.class_names) for column in columns]
        panels = [
            Panel(column.title, caption, data_uri(image))
            for column, caption, image in zip(columns, captions, images, strict=True)
        ]
        rows.append((index.images.file_names[position], panels))
    seen = sorted({label for column in columns for objects in column.objects for label in objects.labels})
    legend = [(index.class_names[label], "#{:02x}{:02x}{:02x}".format(*class_colour(label))) for label in seen]
    return Pictures(rows, legend, notes, sheet.name)
