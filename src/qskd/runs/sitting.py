"""The models that a report looks at: which they are, where they lie, and on which images they are looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, QskdError
from qskd.models.adapter import DetrAdapter
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.loading import BoxFrame
from qskd.reporting.closeup import Shown
from qskd.reporting.groups import Group, group_runs, reference_of, teacher_title, teachers_of
from qskd.reporting.records import RunRecord
from qskd.runs import building
from qskd.runs.options import SourceOptions
from qskd.runs.reading import Run, teacher_folder
from qskd.runs.recorded_data import data_of


@dataclass(frozen=True, slots=True)
class Sitter:
    """A model that is looked at: a teacher, or that of a run."""

    shown: Shown
    is_shown: bool  # whether it stands for its group
    folder: Path | None  # of its weights; None where that is gone
    kept: Path  # file that its detections were kept in, if the run kept them
    size: ImageSize
    box_frame: BoxFrame
    fingerprint: str = ""  # that its weights must have; empty for any
    origin: str = ""  # what the run called its folder

    def open(self) -> DetrAdapter:
        """The model, on the device that is there.

        Raises:
            QskdError: it is gone, cannot be loaded, or is another model than it was.
        """
        if self.folder is None:
            raise CheckpointError(f"its folder {self.origin} is gone.")
        adapter = building.open_model(str(self.folder), None, box_frame=self.box_frame)
        if self.fingerprint and weights_fingerprint(adapter.model) != self.fingerprint:
            raise CheckpointError(f"{self.folder} holds other weights than those that were distilled.")
        adapter.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return adapter


def sitters_of(runs: Sequence[Run]) -> list[Sitter]:
    """The teachers, then every run of each group; one of each group is shown."""
    groups = group_runs([run.record for run in runs])
    folders = {run.record.name: run for run in runs}
    found = [_teacher(runs, name) for name in teachers_of([run.record for run in runs])]
    for group in groups:
        chosen = _representative(group, groups)
        for record in group.runs:
            title = group.label if len(group.runs) == 1 else f"{group.label} (seed {record.seed})"
            folder = folders[record.name].folder
            found.append(
                Sitter(
                    Shown(title, group.label, record.name, group.role),
                    record is chosen,
                    folder.model(),
                    folder.detections,
                    _size(record.image_size),
                    _frame(record.config.get("box_frame")),
                )
            )
    return found


def _teacher(runs: Sequence[Run], name: str) -> Sitter:
    """The teacher of that name, as the first run that it taught saw it."""
    teacher = teachers_of([run.record for run in runs])[name]
    pupil = next(run for run in runs if run.record.teacher == teacher)
    own = next((run for run in runs if run.record.taught == teacher.fingerprint), None)
    config = pupil.record.config
    return Sitter(
        Shown(teacher_title(name), name, name, "teacher"),
        True,
        own.folder.model() if own else teacher_folder(pupil.record),
        pupil.folder.teacher_detections,
        _size(teacher.image_size),
        _frame(config.get("teacher_box_frame")),
        teacher.fingerprint,
        str(config.get("teacher", "")),
    )


def _representative(group: Group, groups: Sequence[Group]) -> RunRecord:
    """The first run whose seed its baseline has too, so that what is shown is a pair."""
    reference = reference_of(group, groups)
    seeds = {run.seed for run in reference.runs} if reference else set()
    return next((run for run in group.runs if run.seed in seeds), group.first)


def _frame(said: object) -> BoxFrame:
    return "canvas" if said == "canvas" else "content"


def _size(edges: Sequence[int]) -> ImageSize:
    if len(edges) == 2:
        return ImageSize(shortest_edge=edges[0], longest_edge=edges[1])
    return ImageSize(square=edges[0] if edges else 640)


def open_data(runs: Sequence[Run], data: SourceOptions | None) -> tuple[DetectionIndex | None, str]:
    """The validation split, or why there is none.

    Raises:
        DataError: ``data`` was given and cannot be used.
    """
    empty = "the validation split holds no images."
    if data is not None:
        index = building.open_split(data, "val")
        return (index, "") if index is not None and len(index) else (None, empty)
    reason = ""
    for run in runs:
        try:
            index = building.open_split(data_of(run.record.config), "val")
        except QskdError as error:
            reason = reason or f" ({error})"
            continue
        if index is not None:
            return (index, "") if len(index) else (None, empty)
    return None, f"the validation images are not where the runs had them{reason}. Give --data."
