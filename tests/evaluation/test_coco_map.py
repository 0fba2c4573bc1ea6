"""COCO evaluation equals pycocotools on the same detections, and worked examples by hand."""

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders_detections import by_pycocotools, detections, ground_truth, random_scene
from qskd.errors import DataError
from qskd.evaluation.coco_map import CocoEvaluator, CocoMetrics
from qskd.evaluation.detections import Detections, detections_of
from qskd.models.view import DetrView

TWELVE = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)


def evaluate(truth: dict[str, Any], found: Sequence[Detections], **options: Any) -> CocoMetrics:
    evaluator = CocoEvaluator(truth, [category["id"] for category in truth["categories"]])
    evaluator.add([image["id"] for image in truth["images"]], found)
    return evaluator.result(**options)


def twelve(metrics: CocoMetrics) -> list[float]:
    """The numbers in pycocotools' order and notation, where -1 is undefined."""
    values = [getattr(metrics, name) for name in TWELVE]
    return [-1.0 if math.isnan(value) else value for value in values]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 6), classes=st.integers(1, 4), most=st.integers(1, 30))
def test_all_twelve_numbers_equal_pycocotools(seed, images, classes, most):
    truth, found = random_scene(seed, images, classes, most)
    if not sum(len(one.scores) for one in found):
        return  # pycocotools cannot load an empty result; that case is worked by hand below
    expected = by_pycocotools(truth, [image["id"] for image in truth["images"]], found)
    assert twelve(evaluate(truth, found)) == pytest.approx(expected.stats.tolist(), abs=1e-9)


@pytest.mark.parametrize("at_once", [1, 40])
def test_classes_evaluated_in_groups_give_the_same_numbers(monkeypatch, at_once):
    truth, found = random_scene(3, images=12, classes=5, most=9)
    whole = evaluate(truth, found)
    monkeypatch.setattr("qskd.evaluation.coco_map._AT_ONCE", at_once)
    assert evaluate(truth, found) == whole


def test_average_precision_by_class_equals_pycocotools():
    truth, found = random_scene(3, 8, 4, 12)
    truth["categories"].append({"id": 5, "name": "never seen"})
    table = by_pycocotools(truth, [image["id"] for image in truth["images"]], found).eval["precision"]
    metrics = evaluate(truth, found)
    assert list(metrics.per_class) == ["never seen", "class 0", "class 1", "class 2", "class 3"]
    assert math.isnan(metrics.per_class["never seen"])
    for index, value in list(enumerate(metrics.per_class.values()))[1:]:
        assert value == pytest.approx(table[:, :, index, 0, 2].mean(), abs=1e-9)


def test_a_random_scene_has_crowds_ties_duplicates_and_all_sizes():
    truth, found = random_scene(3, 8, 4, 12)
    areas = [one["area"] for one in truth["annotations"]]
    assert any(one["iscrowd"] for one in truth["annotations"])
    assert min(areas) < 32**2 < sorted(areas)[len(areas) // 2] < 96**2 < max(areas)
    assert any(len(np.unique(one.scores)) < len(one.scores) for one in found)
    assert any(len(np.unique(one.boxes, axis=0)) < len(one.boxes) for one in found)


def test_one_of_two_objects_found_worked_by_hand():
    # One object is found exactly, first; the other never: precision 1 up to recall 1/2, so at 51 of the 101
    # recall points, at every IoU threshold.
    truth = ground_truth([(1, 10, [10, 10, 50, 50]), (1, 10, [200, 200, 50, 50])], [1])
    metrics = evaluate(truth, [detections((0.9, 0, [10, 10, 60, 60]), (0.8, 0, [400, 10, 450, 60]))])
    assert metrics.flat()["AP"] == pytest.approx(51 / 101)
    assert metrics.AP_medium == pytest.approx(51 / 101)  # 2500 pixels
    assert metrics.flat()["AR100"] == pytest.approx(0.5)
    assert math.isnan(metrics.AP_small)
    assert (metrics.num_images, metrics.num_detections) == (1, 2)


def test_an_overlap_of_three_quarters_counts_up_to_that_threshold():
    # IoU 0.75: six of the ten thresholds 0.50, 0.55 ... 0.95.
    truth = ground_truth([(1, 10, [0, 0, 100, 100])], [1])
    metrics = evaluate(truth, [detections((0.9, 0, [0, 0, 100, 75]))])
    assert (metrics.AP50, metrics.AP75) == (1.0, 1.0)
    assert metrics.flat()["AP"] == pytest.approx(0.6)


def test_detections_inside_a_crowd_are_neither_right_nor_wrong():
    truth = ground_truth([(1, 10, [0, 0, 400, 400]), (1, 10, [500, 10, 50, 50])], [1])
    truth["annotations"][0]["iscrowd"] = 1
    inside = [(0.9, 0, [10.0, 10.0, 60.0, 60.0]), (0.8, 0, [100.0, 100.0, 200.0, 200.0])]
    metrics = evaluate(truth, [detections(*inside, (0.5, 0, [500, 10, 550, 60]))])
    assert metrics.flat()["AP"] == pytest.approx(1.0)


def test_nothing_detected_is_zero_and_nothing_to_detect_is_undefined():
    truth = ground_truth([(1, 10, [0, 0, 100, 100])], [1, 2])
    assert evaluate(truth, [detections(), detections()]).AP == 0.0
    empty = evaluate(ground_truth([], [1, 2]), [detections((0.5, 1, [0, 0, 9, 9])), detections()])
    assert math.isnan(empty.AP)
    assert empty.as_dict()["AP"] is None
    assert empty.as_dict()["per_class"] == {"class 0": None, "class 1": None}
    assert "AP" not in empty.flat()
    json.dumps(empty.as_dict(), allow_nan=False)


def test_flat_numbers_are_the_twelve():
    truth, found = random_scene(3, 8, 4, 12)
    assert tuple(evaluate(truth, found).flat()) == TWELVE


def test_a_class_that_the_data_has_not_is_dropped():
    truth = ground_truth([(1, 10, [0, 0, 100, 100])], [1], categories=1)
    evaluator = CocoEvaluator(truth, [-1, 10])
    evaluator.add([1], [detections((0.9, 0, [0, 0, 100, 100]), (0.5, 1, [0, 0, 100, 100]))])
    metrics = evaluator.result()
    assert (metrics.AP, metrics.num_detections) == (1.0, 1)


def test_annotations_numbered_from_zero_count_like_any_other():
    truth = ground_truth([(1, 10, [0, 0, 100, 100])], [1])
    truth["annotations"][0]["id"] = 0
    assert evaluate(truth, [detections((0.9, 0, [0, 0, 100, 100]))]).AP == 1.0


def test_ground_truth_is_left_as_it_was_and_nothing_is_printed(capfd):
    truth, found = random_scene(3, 4, 2, 12)
    before = copy.deepcopy(truth)
    evaluate(truth, found)
    assert truth == before
    assert capfd.readouterr() == ("", "")


def test_several_processes_that_repeat_images_give_the_numbers_of_one():
    truth, found = random_scene(5, 7, 3, 10)
    ids, categories = [image["id"] for image in truth["images"]], [10, 20, 30]
    shares = [[0, 3, 6], [1, 4, 0], [2, 5, 1]]  # as a distributed sampler deals seven images to three
    processes = []
    for share in shares:
        evaluator = CocoEvaluator(truth, categories)
        evaluator.add([ids[i] for i in share], [found[i] for i in share])
        processes.append(evaluator)
    processes[0].merge([process.state() for process in processes])
    assert processes[0].result() == evaluate(truth, found)


def test_an_empty_state_merges_and_the_evaluator_can_be_reset():
    truth, found = random_scene(5, 3, 3, 10)
    ids = [image["id"] for image in truth["images"]]
    idle, busy = CocoEvaluator(truth, [10, 20, 30]), CocoEvaluator(truth, [10, 20, 30])
    busy.add(ids, found)
    busy.merge([idle.state()])
    assert busy.result() == busy.result() == evaluate(truth, found)
    busy.reset()
    assert busy.result(subset=True).num_images == 0


def test_an_image_added_twice_keeps_its_first_detections():
    evaluator = CocoEvaluator(ground_truth([(1, 10, [0, 0, 100, 100])], [1]), [10, 20])
    evaluator.add([1], [detections((0.9, 0, [0, 0, 100, 100]))])
    evaluator.add([1], [detections()])
    assert evaluator.result().num_detections == 1


def test_only_detections_are_kept_as_compact_arrays():
    truth, found = random_scene(5, 6, 3, 30)
    evaluator = CocoEvaluator(truth, [10, 20, 30])
    evaluator.add([image["id"] for image in truth["images"]], found)
    state = evaluator.state()
    assert state.rows.dtype == np.float32
    assert state.rows.shape == (sum(len(one.scores) for one in found), 6)


def test_images_never_seen_are_refused_unless_a_subset_was_asked_for():
    truth, found = random_scene(7, 5, 2, 12)
    ids = [image["id"] for image in truth["images"]]
    evaluator = CocoEvaluator(truth, [10, 20])
    evaluator.add(ids[:2], found[:2])
    with pytest.raises(DataError, match=r"3 of 5 images .* subset=True"):
        evaluator.result()
    metrics = evaluator.result(subset=True)
    expected = by_pycocotools(truth, ids[:2], found[:2]).stats.tolist()
    assert twelve(metrics) == pytest.approx(expected, abs=1e-9)
    assert metrics.num_images == 2


@pytest.mark.parametrize(
    ("image", "row", "message"),
    [
        (9, (0.5, 0, [0.0, 0.0, 1.0, 1.0]), "Image 9 is not in the ground truth"),
        (1, (math.nan, 0, [0.0, 0.0, 1.0, 1.0]), "not finite"),
        (1, (0.5, 0, [0.0, 0.0, math.inf, 1.0]), "not finite"),
        (1, (0.5, 2, [0.0, 0.0, 1.0, 1.0]), "class 2.*2 classes"),
    ],
)
def test_detections_that_cannot_be_scored_are_refused(image, row, message):
    evaluator = CocoEvaluator(ground_truth([], [1]), [10, 20])
    with pytest.raises(DataError, match=message):
        evaluator.add([image], [detections(row)])


def test_category_ids_that_the_file_lacks_are_refused():
    with pytest.raises(DataError, match=r"\[11\].*-1"):
        CocoEvaluator(ground_truth([], [1]), [10, 11])


def view_of(logits: list, boxes: list, no_object: list | None = None) -> DetrView:
    """One image, two layers, the first of them worthless."""
    last = torch.tensor([[logits]]), torch.tensor([[boxes]])
    other = None if no_object is None else torch.tensor([[no_object]])
    stacked = [torch.cat([torch.full_like(one, 0.3), one]) for one in last]
    if other is not None:
        other = torch.cat([torch.full_like(other, 0.3), other])
    return DetrView(stacked[0], other, stacked[1], (), (), ())


def test_sigmoid_heads_may_find_several_classes_with_one_query():
    view = view_of([[2.0, -9.0, 1.0], [-1.0, -9.0, 0.0]], [[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]])
    (found,) = detections_of(view, [(100, 200)], top=3)
    np.testing.assert_allclose(found.scores, torch.tensor([2.0, 1.0, 0.0]).sigmoid(), rtol=1e-6)
    assert found.labels.tolist() == [0, 2, 2]
    np.testing.assert_allclose(found.boxes, [[80, 30, 120, 70], [80, 30, 120, 70], [0, 0, 100, 100]], atol=1e-4)


def test_softmax_heads_find_the_best_class_of_each_query():
    logits, no_object = [[math.log(3.0), 0.0], [0.0, math.log(6.0)]], [0.0, 0.0]
    view = view_of(logits, [[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]], no_object)
    (found,) = detections_of(view, [(100, 200)])
    np.testing.assert_allclose(found.scores, [6 / 8, 3 / 5], rtol=1e-6)
    assert found.labels.tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes, [[0, 0, 100, 100], [80, 30, 120, 70]], atol=1e-4)


@pytest.mark.parametrize("softmax", [True, False])
def test_each_image_of_a_batch_is_read_in_its_own_size(softmax):
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 3, 9, 4, generator=generator), torch.rand(2, 3, 9, 4, generator=generator)
    no_object = torch.zeros(2, 3, 9) if softmax else None
    sizes = [(100, 200), (50, 60), (480, 640)]
    together = detections_of(DetrView(logits, no_object, boxes, (), (), ()), sizes, top=5)
    for index, size in enumerate(sizes):
        rows = slice(index, index + 1)
        alone = DetrView(logits[:, rows], None if no_object is None else no_object[:, rows], boxes[:, rows], (), (), ())
        for one, other in zip(detections_of(alone, [size], top=5)[0], together[index], strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(together[index].scores) == 5


def test_as_many_sizes_as_images_are_needed():
    view = view_of([[2.0, 1.0]], [[0.5, 0.5, 0.2, 0.4]])
    with pytest.raises(ValueError, match="2 original sizes for 1 images"):
        detections_of(view, [(1, 1), (2, 2)])
