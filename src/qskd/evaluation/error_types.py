"""What kind of mistakes a detector makes: six types, how many of each, and what each costs in AP50.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, with its thresholds
(foreground IoU 0.5, background IoU 0.1) and its order of tests. A departure: matching is COCO's own, so that AP50 is
COCO's; and where several wrong detections mean one object, the best of *one* type is mended, not of two types together.
"""

from dataclasses import dataclass

import numpy as np

from qskd.evaluation.detections import Array
from qskd.evaluation.matching import Matches
from qskd.evaluation.resampling import precision_of

BACKGROUND, FOREGROUND = 0.1, 0.5  # IoU
TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""In the order of the report; all but the last are types of wrong detections."""


@dataclass(frozen=True, slots=True)
class Errors:
    """The mistakes of one model."""

    threshold: float  # score from which detections were counted
    right: int  # detections of that score that found an object
    counts: dict[str, int]  # by type; detections of that score, and objects that none of them explains
    cost: dict[str, float | None]  # AP50 that mending all of a type would add; over detections of every score


def errors_of(matches: Matches, threshold: float) -> Errors:
    """Sort a model's mistakes into types.

    Args:
        matches: its detections.
        threshold: score from which a detection counts; the costs take all of them, as AP50 does.
    """
    kept = matches.score >= threshold
    types, missed = _types(matches, kept)
    counts = {name: int((types == at).sum()) for at, name in enumerate(TYPES[:-1])}
    counts[TYPES[-1]] = len(missed)
    return Errors(threshold, int((matches.is_right[0] & kept).sum()), counts, _costs(matches))


def best_threshold(matches: Matches) -> float:
    """The score at which F1 is highest over all classes and images, at IoU 0.5; 0.5 where nothing is right."""
    counts = ~matches.is_ignored[0]
    score, right = matches.score[counts], matches.is_right[0][counts]
    if not right.any():
        return FOREGROUND
    f1 = 2 * np.cumsum(right) / (np.arange(1, len(right) + 1) + matches.objects.sum())
    is_last = np.append(score[1:] < score[:-1], True)  # detections of one score come together
    return float(score[np.where(is_last, f1, -1.0).argmax()])


def image_scores(matches: Matches, threshold: float) -> Array:
    """[I] F1 of each image, averaged over COCO's ten IoU thresholds; 1 for nothing found where nothing is."""
    kept = matches.score >= threshold
    count = len(matches.truth.image_ids)
    scores = np.empty((len(matches.is_right), count))
    for at, (right, ignored) in enumerate(zip(matches.is_right, matches.is_ignored, strict=True)):
        hits = np.bincount(matches.image[kept & right], minlength=count)
        drawn = np.bincount(matches.image[kept & ~ignored], minlength=count)
        both = drawn + matches.objects.sum(axis=1)
        scores[at] = np.where(both > 0, 2 * hits / np.maximum(both, 1), 1.0)
    return scores.mean(axis=0)


def _types(matches: Matches, kept: Array) -> tuple[Array, Array]:
    """[D] type of each detection, -1 for right, ignored and left out ones; and the objects missed."""
    own, other = matches.overlap
    conditions = [  # the first that holds; the order is TIDE's
        ~kept | matches.is_right[0] | matches.is_ignored[0],
        (own >= BACKGROUND) & (own < FOREGROUND),
        other >= FOREGROUND,
        own >= FOREGROUND,
        np.maximum(own, other) < BACKGROUND,
    ]
    codes = [-1, *(TYPES.index(name) for name in ("localisation", "classification", "duplicate", "background"))]
    types = np.select(conditions, codes, TYPES.index("both"))
    found = matches.object_of[kept & matches.is_right[0]]
    meant = [matches.nearest[0, types == TYPES.index("localisation")]]
    meant.append(matches.nearest[1, types == TYPES.index("classification")])
    objects = np.flatnonzero(~matches.truth.is_ignored)
    return types, np.setdiff1d(objects, np.concatenate([found, *meant]))


def _costs(matches: Matches) -> dict[str, float | None]:
    """How much higher AP50 would be without the mistakes of each type."""
    types, missed = _types(matches, np.ones(len(matches.score), dtype=bool))
    objects = matches.objects.sum(axis=0)
    label, right, drop = matches.label, matches.is_right[0], matches.is_ignored[0]
    now = _ap50(label, right, drop, objects)
    cost: dict[str, float | None] = {}
    for at, name in enumerate(TYPES[:-1]):
        mended = _mended(matches, types == at, name)
        meant = matches.truth.labels[matches.nearest[1]] if len(matches.truth.labels) else label
        labels = np.where(mended, meant, label) if name == "classification" else label
        fixed = _ap50(labels, right | mended, drop | ((types == at) & ~mended), objects)
        cost[name] = None if now is None or fixed is None else fixed - now
    left = objects - np.bincount(matches.truth.labels[missed], minlength=len(objects))
    found = _ap50(label, right, drop, left, of=objects)
    return cost | {TYPES[-1]: None if now is None or found is None else found - now}


def _mended(matches: Matches, is_type: Array, name: str) -> Array:
    """[D] which wrong detections become right: the best that means an object which none has found."""
    mended = np.zeros(len(matches.score), dtype=bool)
    if name not in ("localisation", "classification"):
        return mended
    meant = matches.nearest[0 if name == "localisation" else 1]
    is_lost = ~np.isin(meant, matches.object_of[matches.is_right[0]])
    chosen = np.flatnonzero(is_type & is_lost)
    _, first = np.unique(meant[chosen], return_index=True)  # best score first
    mended[chosen[first]] = True
    return mended


def _ap50(label: Array, right: Array, drop: Array, objects: Array, of: Array | None = None) -> float | None:
    """AP50 over the classes with objects (``of``: with these many before some were taken away); None without any."""
    values = []
    for class_ in np.flatnonzero(objects if of is None else of):
        chosen = (label == class_) & ~drop
        hits = right[chosen]
        seen = np.flatnonzero(hits)[None] + 1
        value = precision_of(np.ones_like(seen), seen, objects[[class_]])[0]
        values.append(0.0 if np.isnan(value) else float(value))
    return float(np.mean(values)) if values else None
