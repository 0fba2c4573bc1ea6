"""Match tables give pycocotools' numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders_detections import by_pycocotools, class_ap, detections, ground_truth, random_scene
from qskd.evaluation.matching import Truth, match
from qskd.evaluation.resampling import average_precision, precision_curves


def tables(truth, found):
    return match(Truth.of(truth), dict(zip((image["id"] for image in truth["images"]), found, strict=True)))


def reference(truth, found):
    """pycocotools' evaluation; it takes images in the order of their ids."""
    by_id = dict(zip((image["id"] for image in truth["images"]), found, strict=True))
    return by_pycocotools(truth, sorted(by_id), [by_id[id_] for id_ in sorted(by_id)])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 6), classes=st.integers(1, 4), most=st.integers(1, 30))
def test_ap_and_curves_equal_pycocotools(seed, images, classes, most):
    truth, found = random_scene(seed, images, classes, most)
    if not sum(len(one.scores) for one in found):
        return  # pycocotools cannot load no results
    matches, wanted = tables(truth, found), reference(truth, found)
    ap = average_precision(matches, np.ones((1, images), dtype=np.int32))[0]
    np.testing.assert_allclose(ap, class_ap(wanted), atol=1e-9)
    for threshold in (0, 5):
        precision = wanted.eval["precision"][threshold, :, :, 0, 2].T
        curves = precision_curves(matches, threshold)
        np.testing.assert_allclose(curves, np.where(precision < 0, np.nan, precision), atol=1e-9)


def test_more_than_100_detections_of_a_class_count_as_pycocotools_counts_them():
    truth, _ = random_scene(5, 2, 1, 20)
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 300, (130, 2))
    rows = [(float(score), 0, [x, y, x + 90, y + 90]) for score, (x, y) in zip(rng.random(130), corner, strict=True)]
    found = [detections(*rows), detections()]
    ap = average_precision(tables(truth, found), np.ones((1, 2), dtype=np.int32))[0]
    np.testing.assert_allclose(ap, class_ap(reference(truth, found)), atol=1e-9)


def test_each_object_is_matched_once_and_by_the_best_score():
    truth = ground_truth([(1, 10, [0, 0, 10, 10])], [1])
    matches = tables(truth, [detections((0.5, 0, [0, 0, 10, 10]), (0.9, 0, [0, 0, 10, 8]))])
    assert matches.score.tolist() == pytest.approx([0.9, 0.5])
    assert matches.is_right.T[0].tolist() == [True] * 7 + [False] * 3  # IoU 0.8
    assert matches.is_right.T[1].tolist() == [False] * 7 + [True] * 3
    assert matches.object_of.tolist() == [0, -1]


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong():
    truth = ground_truth([(1, 10, [0, 0, 100, 100])], [1])
    truth["annotations"][0]["iscrowd"] = 1
    matches = tables(truth, [detections((0.5, 0, [0, 0, 10, 10]), (0.4, 1, [0, 0, 10, 10]))])
    assert matches.is_ignored.all(axis=0).tolist() == [True, False]
    assert not matches.is_right.any()
    assert matches.overlap.max() == 0  # a crowd is nobody's nearest object


def test_the_nearest_objects_of_the_own_class_and_of_others_are_known():
    truth = ground_truth([(1, 10, [0, 0, 10, 10]), (1, 20, [5, 0, 10, 10])], [1])
    matches = tables(truth, [detections((0.5, 1, [0, 0, 10, 10]))])
    assert matches.nearest[:, 0].tolist() == [1, 0]
    assert matches.overlap[:, 0] == pytest.approx([1 / 3, 1.0])


@pytest.mark.parametrize("found", [{}, {1: detections()}, {1: detections((0.5, 0, [0, 0, 1, 1]))}])
def test_images_without_objects_or_detections_are_matched(found):
    matches = match(Truth.of(ground_truth([], [1, 2])), found)
    assert not matches.is_right.any()
    assert matches.objects.tolist() == [[0, 0], [0, 0]]
    assert np.isnan(average_precision(matches, np.ones((1, 2), dtype=np.int32))).all()


def test_no_images_are_no_error():
    assert len(match(Truth.of(ground_truth([], [])), {}).score) == 0


def test_of_two_objects_overlapped_alike_the_later_one_is_taken_as_pycocotools_does():
    truth = ground_truth([(1, 10, [0, 0, 10, 10]), (1, 10, [2, 0, 10, 10])], [1], categories=1)
    truth["annotations"] = [{**row, "iscrowd": 0} for row in truth["annotations"]]
    found = [detections((0.9, 0, [1, 0, 11, 10]), (0.8, 0, [0, 0, 10, 10]))]  # IoU 9/11 with both; 1 with the first
    matches = tables(truth, found)
    assert matches.object_of.tolist() == [1, 0]
    ap = average_precision(matches, np.ones((1, 1), dtype=np.int32))[0]
    np.testing.assert_allclose(ap, class_ap(reference(truth, found)), atol=1e-9)
