"""Kinds of mistakes: worked by hand, and their costs by mending them and asking pycocotools."""

import copy

import numpy as np
import pytest

from builders_detections import by_pycocotools, detections, ground_truth, random_scene, without_ties
from qskd.evaluation.error_types import TYPES, best_threshold, errors_of, image_scores
from qskd.evaluation.matching import Truth, match

CAT, DOG = 10, 20
OBJECT = (1, CAT, [0, 0, 10, 10])


def tables(truth, found):
    return match(Truth.of(truth), dict(zip((image["id"] for image in truth["images"]), found, strict=True)))


def counts(objects, *rows, threshold=0.0):
    found = errors_of(tables(ground_truth(objects, [1]), [detections(*rows)]), threshold)
    return found.right, {name: count for name, count in found.counts.items() if count}


@pytest.mark.parametrize(
    ("rows", "right", "wanted"),
    [
        ([(0.9, 0, [0, 0, 10, 10])], 1, {}),
        ([], 0, {"missed": 1}),
        ([(0.9, 1, [0, 0, 10, 10])], 0, {"classification": 1}),  # its class would only have to be mended
        ([(0.9, 0, [0, 0, 10, 4])], 0, {"localisation": 1}),  # IoU 0.4
        ([(0.9, 1, [0, 0, 10, 4])], 0, {"both": 1, "missed": 1}),
        ([(0.9, 0, [0, 0, 10, 10]), (0.8, 0, [0, 0, 10, 9])], 1, {"duplicate": 1}),
        ([(0.9, 0, [50, 50, 60, 60])], 0, {"background": 1, "missed": 1}),
        ([(0.9, 0, [0, 0, 10, 0.9])], 0, {"background": 1, "missed": 1}),  # IoU 0.09
        ([(0.9, 0, [0, 0, 10, 1])], 0, {"localisation": 1}),  # IoU 0.1
        ([(0.9, 0, [0, 0, 10, 5])], 1, {}),  # IoU 0.5
    ],
    ids=[
        "right",
        "missed",
        "classification",
        "localisation",
        "both",
        "duplicate",
        "background",
        "nearly",
        "at",
        "half",
    ],
)
def test_each_kind_of_mistake_is_told_apart(rows, right, wanted):
    assert counts([OBJECT], *rows) == (right, wanted)


def test_detections_below_the_threshold_are_left_out():
    rows = [(0.9, 0, [50, 50, 60, 60]), (0.3, 0, [0, 0, 10, 10])]
    assert counts([OBJECT], *rows, threshold=0.5) == (0, {"background": 1, "missed": 1})
    assert counts([OBJECT], *rows, threshold=0.2) == (1, {"background": 1})


def test_crowds_are_neither_missed_nor_mistaken():
    truth = ground_truth([OBJECT], [1])
    truth["annotations"][0]["iscrowd"] = 1
    found = errors_of(tables(truth, [detections((0.9, 0, [0, 0, 10, 10]))]), 0.0)
    assert (found.right, sum(found.counts.values())) == (0, 0)


def test_what_a_kind_costs_is_what_ap50_gains():
    # Two objects; the better score lies on nothing: AP50 is (precision 1/2 up to recall 0.5) 51/101 * 0.5.
    truth = ground_truth([OBJECT, (1, CAT, [50, 0, 10, 10])], [1], categories=1)
    found = tables(truth, [detections((0.9, 0, [80, 80, 90, 90]), (0.8, 0, [0, 0, 10, 10]))])
    cost = errors_of(found, 0.5).cost
    now = 51 / 101 / 2
    assert cost["background"] == pytest.approx(51 / 101 - now)  # without it, precision is 1
    assert cost["missed"] == pytest.approx(0.5 - now)  # one object of one: precision 1/2 up to recall 1
    assert {cost[name] for name in ("classification", "localisation", "both", "duplicate")} == {0.0}


def mended(truth, found, kind):
    """The scene with every mistake of one kind set right, by a slow loop over images, detections and objects."""
    truth = copy.deepcopy(truth)
    new, lost, used = [], [], []
    for image, one in zip(truth["images"], found, strict=True):
        objects = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        rows = sorted(zip(*one, strict=True), key=lambda row: -row[0])
        taken = _taken(rows, objects)
        explained, kept, fixed = set(), [], set()
        for score, label, box in rows:
            what, which = _kind(score, label, box, objects, taken)
            if what in ("localisation", "classification"):
                explained.add(which)
            if what != kind:
                kept.append((score, label, box))
            elif what in ("localisation", "classification") and which not in {*taken.values(), *fixed}:
                fixed.add(which)
                x, y, w, h = objects[which]["bbox"]
                kept.append((score, objects[which]["category_id"] // 10 - 1, [x, y, x + w, y + h]))
        new.append(detections(*kept))
        lost += [row for at, row in enumerate(objects) if at not in {*taken.values(), *explained}]
        used.append(len(taken))
    if kind == "missed":
        truth["annotations"] = [row for row in truth["annotations"] if row not in lost]
    return truth, new, len(lost), sum(used)


def _iou(box, xywh):
    x, y, w, h = xywh
    width = min(box[2], x + w) - max(box[0], x)
    height = min(box[3], y + h) - max(box[1], y)
    inside = width * height if width > 0 and height > 0 else 0.0
    return inside / ((box[2] - box[0]) * (box[3] - box[1]) + w * h - inside)


def _taken(rows, objects):
    """Score of each right detection, and the object it found."""
    taken = {}
    for score, label, box in rows:
        free = [
            (_iou(box, row["bbox"]), at)
            for at, row in enumerate(objects)
            if row["category_id"] == 10 * (label + 1) and at not in taken.values()
        ]
        if free and max(free)[0] >= 0.5:
            taken[score] = max(free)[1]
    return taken


def _kind(score, label, box, objects, taken):
    if score in taken:
        return "right", -1
    own = max(((_iou(box, o["bbox"]), at) for at, o in enumerate(objects) if o["category_id"] == 10 * (label + 1)),
              default=(0.0, -1))  # fmt: skip
    other = max(((_iou(box, o["bbox"]), at) for at, o in enumerate(objects) if o["category_id"] != 10 * (label + 1)),
                default=(0.0, -1))  # fmt: skip
    if 0.1 <= own[0] < 0.5:
        return "localisation", own[1]
    if other[0] >= 0.5:
        return "classification", other[1]
    if own[0] >= 0.5:
        return "duplicate", -1
    return ("background" if max(own[0], other[0]) < 0.1 else "both"), -1


def ap50(truth, found):
    """pycocotools' AP50, class by class; 0 for a class whose objects are all gone."""
    table = by_pycocotools(truth, [image["id"] for image in truth["images"]], found).eval["precision"]
    return np.maximum(table[0, :, :, 0, 2], 0).mean(axis=0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", TYPES)
def test_costs_are_what_pycocotools_says_of_the_mended_scene(seed, kind):
    truth, found = random_scene(seed, 4, 3, 14)
    found = without_ties(found, seed)
    for row in truth["annotations"]:
        row["iscrowd"] = 0
    errors = errors_of(tables(truth, found), 0.0)
    changed, new, lost, right = mended(truth, found, kind)
    present = [10 * (at + 1) in {row["category_id"] for row in truth["annotations"]} for at in range(3)]
    wanted = (ap50(changed, new) - ap50(truth, found))[present].mean()
    assert errors.cost[kind] == pytest.approx(wanted, abs=1e-9)
    assert (errors.counts["missed"], errors.right) == (lost, right)


def test_without_objects_nothing_costs_anything():
    found = errors_of(tables(ground_truth([], [1]), [detections((0.9, 0, [0, 0, 1, 1]))]), 0.5)
    assert found.counts["background"] == 1
    assert set(found.cost.values()) == {None}


def test_the_best_threshold_has_the_highest_f1():
    rows = [
        (0.9, 0, [0, 0, 10, 10]),
        (0.8, 0, [80, 80, 90, 90]),
        (0.7, 0, [20, 0, 30, 10]),
        (0.6, 0, [70, 70, 90, 90]),
    ]
    objects = [OBJECT, (1, CAT, [20, 0, 10, 10])]
    # F1: 2/3, 2/4, 4/5, 4/6.
    assert best_threshold(tables(ground_truth(objects, [1]), [detections(*rows)])) == pytest.approx(0.7)
    assert best_threshold(tables(ground_truth(objects, [1]), [detections(rows[1])])) == 0.5


def test_an_image_counts_by_what_is_found_and_what_is_not():
    truth = ground_truth([(1, CAT, [0, 0, 10, 10]), (1, DOG, [50, 0, 10, 10])], [1, 2, 3])
    found = [
        detections((0.9, 0, [0, 0, 10, 8]), (0.8, 0, [80, 80, 90, 90]), (0.1, 1, [50, 0, 60, 10])),
        detections(),
        detections((0.9, 0, [0, 0, 1, 1])),
    ]
    # Image 1: IoU 0.8 is enough for 7 of 10 thresholds, F1 2 * 1 / (2 + 2); image 2 is empty and left so.
    assert image_scores(tables(truth, found), 0.5) == pytest.approx([0.7 * 0.5, 1.0, 0.0])
