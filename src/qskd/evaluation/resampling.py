"""Average precision read from match tables: of the split itself, and of images drawn from it again and again.

Letters: R draws, I images, C classes, D detections, T = 10 IoU thresholds.
"""

from dataclasses import dataclass

import numpy as np

from qskd.evaluation.detections import Array
from qskd.evaluation.matching import Matches

RECALLS = np.linspace(0, 1, 101)
"""Where COCO reads precision."""

DRAWS = 1000
"""Resamples of a bootstrap."""

_SEED = 0
_AT_ONCE = 4_000_000  # entries of the largest table


def draw_images(count: int, draws: int = DRAWS, seed: int = _SEED) -> Array:
    """[R, I] how often each image is drawn when as many images as there are are drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(0, max(count, 1), (draws, count))
    return np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.int32)


def average_precision(matches: Matches, times: Array) -> Array:
    """[R, T, C] AP when image i counts ``times[r, i]`` times; NaN for a class without objects.

    The same as evaluating so many copies of each image, without matching anything again.
    """
    classes = range(matches.objects.shape[1])
    table = np.full((len(times), len(matches.is_right), len(classes)), np.nan)
    for class_ in classes:
        chosen = np.flatnonzero(matches.label == class_)
        rows = max(1, _AT_ONCE // max(len(chosen), 1))
        for start in range(0, len(times), rows):
            part = slice(start, start + rows)
            objects = times[part] @ matches.objects[:, class_]
            weights = times[part][:, matches.image[chosen]]
            right, ignored = matches.is_right[:, chosen], matches.is_ignored[:, chosen]
            table[part, :, class_] = _class_precision(weights, right, ignored, objects)
    return table


def _class_precision(weights: Array, is_right: Array, is_ignored: Array, objects: Array) -> Array:
    """[R, T] AP of one class; detections best score first, weights [R, D]."""
    table = np.full((len(weights), len(is_right)), np.nan)
    counted = np.cumsum(weights, axis=1, dtype=weights.dtype)
    for at in range(len(is_right)):
        right, ignored = np.flatnonzero(is_right[at]), np.flatnonzero(is_ignored[at])
        seen = counted[:, right]
        if len(ignored):
            skipped = np.cumsum(weights[:, ignored], axis=1, dtype=weights.dtype)
            seen -= np.pad(skipped, ((0, 0), (1, 0)))[:, np.searchsorted(ignored, right)]
        table[:, at] = precision_of(weights[:, right], seen, objects)
    return table


def precision_of(weights: Array, seen: Array, objects: Array) -> Array:
    """[R] AP over 101 recalls from the right detections alone: between two of them precision only falls.

    Args:
        weights: [R, P] of each right detection, best score first.
        seen: [R, P] detections down to it and with it, right or wrong.
        objects: [R] to be found.
    """
    if not weights.shape[1]:
        return np.where(objects > 0, 0.0, np.nan)
    recall, precision = _recall_precision(weights, seen, objects)
    reached = (recall * 100 + 1e-9).astype(np.int32)
    reached += RECALLS[reached] <= recall  # how many of the 101 recalls it reaches
    new = np.diff(reached, axis=1, prepend=0)
    return np.where(objects > 0, np.einsum("rp,rp->r", precision, new) / len(RECALLS), np.nan)


def _recall_precision(weights: Array, seen: Array, objects: Array) -> tuple[Array, Array]:
    """[R, P] recall at each right detection, and the best precision from there on."""
    right = np.cumsum(weights, axis=1, dtype=weights.dtype)
    precision = right / np.maximum(seen, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return right / np.maximum(objects, 1)[:, None], best


def precision_curves(matches: Matches, threshold: int) -> Array:
    """[C, 101] COCO's precision at each recall, at one of the IoU thresholds; NaN for a class without objects."""
    objects = matches.objects.sum(axis=0)
    curves = np.full((len(objects), len(RECALLS)), np.nan)
    right, ignored = matches.is_right[threshold], matches.is_ignored[threshold]
    for class_ in np.flatnonzero(objects):
        chosen = (matches.label == class_) & ~ignored
        is_right = right[chosen]
        seen = np.cumsum(np.ones(len(is_right), dtype=np.int64))[is_right][None]
        recall, precision = _recall_precision(np.ones_like(seen), seen, objects[[class_]])
        at = np.searchsorted(recall[0], RECALLS, side="left")
        curves[class_] = np.append(precision[0], 0.0)[np.minimum(at, seen.shape[1])]
    return curves


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The numbers of one model: of the split itself, then of each draw."""

    names: tuple[str, ...]  # AP, AP50, AP75, then AP of each class
    values: Array  # [1 + R, names]; NaN where undefined

    @classmethod
    def of(cls, matches: Matches, times: Array) -> "Sampled":
        """Measure a model on the split, and on images drawn from it ``times`` [R, I] over."""
        whole = np.ones((1, times.shape[1]), dtype=times.dtype)
        table = average_precision(matches, np.concatenate([whole, times]))  # [1 + R, T, C]
        means = [_mean(table), _mean(table[:, :1]), _mean(table[:, 5:6])]
        names = ("AP", "AP50", "AP75", *(f"class {name}" for name in matches.truth.class_names))
        return cls(names, np.concatenate([np.stack(means, axis=1), table.mean(axis=1)], axis=1))


def _mean(table: Array) -> Array:
    """[R] mean over thresholds and the classes that have objects."""
    flat = table.reshape(len(table), -1)
    known = ~np.isnan(flat)
    total = np.where(known, flat, 0.0).sum(axis=1)
    return np.divide(total, known.sum(axis=1), out=np.full(len(flat), np.nan), where=known.any(axis=1))


def interval(values: Array, coverage: float = 0.95) -> tuple[float, float] | None:
    """The middle 95% of a bootstrap; None where it is undefined in most draws."""
    known = values[~np.isnan(values)]
    if not len(known) or 2 * len(known) < len(values):
        return None
    low, high = np.quantile(known, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)
