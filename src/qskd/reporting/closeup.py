"""What single detections tell of models: intervals over images, precision against recall, kinds of mistakes, images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qskd.evaluation.detections import Array
from qskd.evaluation.error_types import Errors, best_threshold, errors_of, image_scores
from qskd.evaluation.matching import Matches
from qskd.evaluation.resampling import precision_curves
from qskd.reporting.groups import Group, reference_of
from qskd.reporting.intervals import Contrast, Scores
from qskd.reporting.records import Role

CURVES = {"0.5": 0, "0.75": 5}
"""IoU thresholds that curves are drawn for, and their positions among COCO's ten."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A model that stands for its group, or a teacher."""

    title: str
    label: str  # of its group, or the teacher's name
    name: str  # of its run, or the teacher's
    role: Role


@dataclass(frozen=True, slots=True)
class ModelCloseUp:
    """One model's detections, summed up."""

    title: str
    label: str
    role: Role
    errors: Errors
    curves: Mapping[str, Mapping[str, tuple[float | None, ...]]]  # IoU, class ("" for all): precision at 101 recalls

    @classmethod
    def of(cls, shown: Shown, matches: Matches) -> "ModelCloseUp":
        """Sum up one model."""
        curves = {iou: _curves(matches, at) for iou, at in CURVES.items()}
        errors = errors_of(matches, best_threshold(matches))
        return cls(shown.title, shown.label, shown.role, errors, curves)


@dataclass(frozen=True, slots=True)
class ImageGain:
    """One image on which a distilled model is much better or much worse than its baseline."""

    image_id: int
    file_name: str
    before: float  # the baseline's score of the image
    after: float


@dataclass(frozen=True, slots=True)
class Extremes:
    """Where one method gains and loses most."""

    label: str
    reference: str
    titles: tuple[str, str]  # of the two models that were compared: baseline, distilled
    better: int  # images on which the distilled model is better
    worse: int
    best: tuple[ImageGain, ...]  # largest gain first
    worst: tuple[ImageGain, ...]  # largest loss first


@dataclass(frozen=True, slots=True)
class CloseUp:
    """All that single detections tell; empty where none are known."""

    scores: tuple[Scores, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    models: tuple[ModelCloseUp, ...] = ()
    extremes: tuple[Extremes, ...] = ()
    objects: Mapping[str, int] | None = None  # by class
    images: int = 0
    draws: int = 0
    notes: tuple[str, ...] = ()

    def contrast(self, label: str, kind: str) -> Contrast | None:
        """A group's difference to its baseline or its teacher."""
        return next((one for one in self.contrasts if (one.label, one.kind) == (label, kind)), None)


def model_closeups(shown: Sequence[Shown], matches: Mapping[str, Matches]) -> tuple[ModelCloseUp, ...]:
    """Every shown model whose detections are known."""
    return tuple(ModelCloseUp.of(one, matches[one.name]) for one in shown if one.name in matches)


def extremes_of(
    groups: Sequence[Group],
    shown: Sequence[Shown],
    matches: Mapping[str, Matches],
    file_names: Mapping[int, str],
    count: int,
) -> tuple[Extremes, ...]:
    """The images on which each distilled model gains and loses most.

    Args:
        groups: all of them.
        shown: the models that stand for them.
        matches: by name of the run.
        file_names: by image id.
        count: images of each kind, at most.
    """
    by_label = {one.label: one for one in shown if one.role != "teacher" and one.name in matches}
    found = []
    for group in groups:
        reference = reference_of(group, groups)
        if reference is not None and group.label in by_label and reference.label in by_label:
            pair = by_label[reference.label], by_label[group.label]
            before, after = (_scores(matches[one.name]) for one in pair)
            gained = after - before
            gains = [
                ImageGain(id_, file_names[id_], float(before[at]), float(after[at]))
                for at, id_ in enumerate(matches[pair[0].name].truth.image_ids)
            ]
            order = np.argsort(-gained, kind="stable").tolist()
            found.append(
                Extremes(
                    group.label,
                    reference.label,
                    (pair[0].title, pair[1].title),
                    int((gained > 0).sum()),
                    int((gained < 0).sum()),
                    tuple(gains[at] for at in order[:count] if gained[at] > 0),
                    tuple(gains[at] for at in order[::-1][:count] if gained[at] < 0),
                )
            )
    return tuple(found)


def _scores(matches: Matches) -> Array:
    return image_scores(matches, best_threshold(matches))


def _curves(matches: Matches, threshold: int) -> dict[str, tuple[float | None, ...]]:
    """By class, and under "" the mean over the classes that have objects."""
    table = precision_curves(matches, threshold)
    known = table[~np.isnan(table[:, 0])]
    named = {"": known.mean(axis=0) if len(known) else np.full(table.shape[1], np.nan)}
    named |= dict(zip(matches.truth.class_names, table, strict=True))
    return {
        name: tuple(None if np.isnan(value) else float(value) for value in values) for name, values in named.items()
    }
