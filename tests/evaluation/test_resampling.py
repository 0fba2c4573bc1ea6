"""Bootstraps from match tables equal evaluating copies of images with pycocotools."""

import copy

import numpy as np
import pytest

from builders_detections import by_pycocotools, class_ap, random_scene, without_ties
from qskd.evaluation.matching import Truth, match
from qskd.evaluation.resampling import Sampled, average_precision, draw_images, interval


def scene(seed=3, images=5, classes=3):
    truth, found = random_scene(seed, images, classes, 12)
    return truth, without_ties(found)


def tables(truth, found):
    return match(Truth.of(truth), dict(zip((image["id"] for image in truth["images"]), found, strict=True)))


def copied(truth, found, times):
    """The scene with image i (in the order of ids) so many times; copies are images of their own."""
    order = np.argsort([image["id"] for image in truth["images"]])
    images, annotations, more = [], [], []
    for at, count in zip(order, times, strict=True):
        image = truth["images"][at]
        for _ in range(count):
            id_ = len(images) + 1
            images.append({**image, "id": id_})
            own = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
            annotations += [{**one, "image_id": id_, "id": len(annotations) + n + 1} for n, one in enumerate(own)]
            more.append(found[at])
    return {**copy.deepcopy(truth), "images": images, "annotations": annotations}, more


def naive(truth, found, times):
    """[10, C] AP of the copies."""
    truth, found = copied(truth, found, times)
    return class_ap(by_pycocotools(truth, [image["id"] for image in truth["images"]], found))


def test_ap_of_a_draw_is_the_ap_of_so_many_copies():
    truth, found = scene()
    times = draw_images(5, 12, seed=1)
    tables_ = average_precision(tables(truth, found), times)
    wanted = np.stack([naive(truth, found, row) for row in times])
    assert times.max() > 2
    np.testing.assert_allclose(tables_, wanted, atol=1e-9)


def test_intervals_of_ap_and_classes_are_those_of_the_copies():
    truth, found = scene(seed=8)
    times = draw_images(5, 25, seed=2)
    sampled = Sampled.of(tables(truth, found), times)
    wanted = np.stack([naive(truth, found, row) for row in times])  # [R, 10, C]
    columns = {
        "AP": np.nanmean(wanted, axis=(1, 2)),
        "AP50": np.nanmean(wanted[:, 0], axis=1),
        "AP75": np.nanmean(wanted[:, 5], axis=1),
        "class class 1": wanted[:, :, 1].mean(axis=1),
    }
    for name, values in columns.items():
        found_values = sampled.values[1:, sampled.names.index(name)]
        assert interval(found_values) == pytest.approx(np.nanquantile(values, [0.025, 0.975]), abs=1e-9)
    whole = naive(truth, found, [1] * 5)
    assert sampled.values[0, 0] == pytest.approx(np.nanmean(whole), abs=1e-9)


def test_large_tables_are_worked_off_in_parts(monkeypatch):
    truth, found = scene()
    matches, times = tables(truth, found), draw_images(5, 20)
    at_once = average_precision(matches, times)
    monkeypatch.setattr("qskd.evaluation.resampling._AT_ONCE", 50)
    np.testing.assert_array_equal(average_precision(matches, times), at_once)


def test_draws_are_as_many_images_as_there_are_and_the_same_each_time():
    times = draw_images(7, 300)
    assert (times.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(times, draw_images(7, 300))
    # A mean of 300 x 7 draws of 7 images: each image about once.
    assert np.abs(times.mean(axis=0) - 1).max() < 0.25


def test_an_interval_is_the_middle_of_the_defined_draws():
    values = np.array([*range(101), np.nan], dtype=float)
    assert interval(values) == pytest.approx((2.5, 97.5))


@pytest.mark.parametrize("values", [[], [np.nan], [1.0, np.nan, np.nan]])
def test_a_number_that_most_draws_leave_undefined_has_no_interval(values):
    assert interval(np.array(values)) is None
