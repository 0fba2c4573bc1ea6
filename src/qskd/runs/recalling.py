"""What the models of finished runs find on the validation images: as the runs kept it, or asked again."""

from collections.abc import Mapping, Sequence

from qskd.data.index import DetectionIndex
from qskd.errors import DataError, QskdError
from qskd.evaluation.detections import Detections
from qskd.evaluation.kept import KeptDetections, images_digest
from qskd.evaluation.matching import Truth, match
from qskd.evaluation.resampling import DRAWS
from qskd.reporting.closeup import CloseUp, extremes_of, model_closeups
from qskd.reporting.groups import finite, group_runs, teachers_of
from qskd.reporting.intervals import contrasts_of, sample_all, scores_of
from qskd.reporting.records import RunRecord
from qskd.reporting.tables import percent
from qskd.runs.evaluating import evaluate_keeping
from qskd.runs.sitting import Sitter

_AT_A_TIME = 8  # images in one forward pass
_SAME = 5e-5  # AP that rounding on another machine may change

Found = Mapping[int, Detections]
"""By image id, labels in the classes of the data."""


def find_all(sitters: Sequence[Sitter], index: DetectionIndex, notes: list[str]) -> dict[str, Found]:
    """The detections of every model by its name; without those that cannot be had, and a note on these.

    Args:
        sitters: the models.
        index: the images.
        notes: for the reader of the report; added to.
    """
    digest = images_digest(index.images.ids, index.images.file_names)
    found: dict[str, Found] = {}
    asked = []
    for sitter in sitters:
        try:
            kept = _kept(sitter, digest, notes)
            if kept is None:
                kept = evaluate_keeping(sitter.open(), index, sitter.size, _AT_A_TIME)[1]
                asked.append(sitter.shown.name)
        except QskdError as error:
            notes.append(f"No detections of {sitter.shown.title}: {error}")
            continue
        found[sitter.shown.name] = kept.by_image(index.class_names)
    if asked:
        notes.append(f"Asked again, since their runs kept no detections of these images: {', '.join(asked)}.")
    return found


def _kept(sitter: Sitter, digest: str, notes: list[str]) -> KeptDetections | None:
    """What the run kept; None where it did not, or on other images."""
    if not sitter.kept.is_file():
        return None
    try:
        kept = KeptDetections.load(sitter.kept)
    except DataError as error:
        notes.append(str(error))
        return None
    return kept if kept.images == digest else None


def look_closely(
    runs: Sequence[RunRecord],
    sitters: Sequence[Sitter],
    index: DetectionIndex,
    found: Mapping[str, Found],
    notes: list[str],
    images: int,
) -> CloseUp:
    """All that the detections tell.

    Args:
        runs: all of them.
        sitters: their models.
        index: the images.
        found: detections by name of the model.
        notes: for the reader of the report; added to.
        images: best and worst images to name, at most.
    """
    truth = Truth.of(index.ground_truth())
    matches = {name: match(truth, one) for name, one in found.items()}
    sampled = sample_all(matches)
    groups, teachers = group_runs(runs), teachers_of(runs)
    measured = {run.name: run.metrics for run in runs} | {name: one.metrics for name, one in teachers.items()}
    for name, one in sampled.items():
        said, now = finite(measured[name].get("AP")), finite(float(one.values[0, 0]))
        if said is not None and now is not None and abs(said - now) > _SAME:
            notes.append(f"The detections of {name} have AP {percent(now)}, but its summary says {percent(said)}.")
    file_names = dict(zip(index.images.ids.tolist(), index.images.file_names, strict=True))
    shown = [sitter.shown for sitter in sitters if sitter.is_shown]
    return CloseUp(
        scores_of(groups, list(teachers), sampled),
        contrasts_of(groups, {one.fingerprint: name for name, one in teachers.items()}, sampled),
        model_closeups(shown, matches),
        extremes_of(groups, shown, matches, file_names, images),
        dict(zip(truth.class_names, truth.objects().sum(axis=0).tolist(), strict=True)),
        len(truth.image_ids),
        DRAWS,
        tuple(notes),
    )
