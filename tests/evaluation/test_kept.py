import json

import numpy as np
import pytest

from builders_detections import random_scene
from qskd.errors import DataError
from qskd.evaluation.coco_map import CocoEvaluator
from qskd.evaluation.kept import KeptDetections, as_evaluated, images_digest
from qskd.evaluation.matching import Truth, match
from qskd.evaluation.resampling import Sampled, draw_images

NAMES = ("class 0", "class 1", "class 2")


def evaluated(seed=1):
    truth, found = random_scene(seed, 6, 3, 20)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
    evaluator = CocoEvaluator(truth, [10, 20, 30])
    evaluator.add([image["id"] for image in truth["images"]], found)
    return truth, evaluator, as_evaluated(truth, NAMES, evaluator.state())


def test_what_was_kept_has_the_same_ap(tmp_path):
    truth, evaluator, kept = evaluated()
    kept.save(tmp_path / "eval" / "kept.npz")
    again = KeptDetections.load(tmp_path / "eval" / "kept.npz")
    assert (again.class_names, again.images) == (NAMES, kept.images)
    sampled = Sampled.of(match(Truth.of(truth), again.by_image(NAMES)), draw_images(6, 1))
    wanted = evaluator.result()
    assert sampled.values[0, :3] == pytest.approx([wanted.AP, wanted.AP50, wanted.AP75], abs=1e-9)
    assert sampled.values[0, 3:] == pytest.approx(list(wanted.per_class.values()), abs=1e-9)


def test_scores_and_boxes_are_kept_to_the_bit(tmp_path):
    _, evaluator, kept = evaluated()
    kept.save(tmp_path / "kept.npz")
    state = KeptDetections.load(tmp_path / "kept.npz").state
    for one, other in zip(evaluator.state(), state, strict=True):
        np.testing.assert_array_equal(one, other)


def test_labels_follow_the_names_of_classes():
    _, _, kept = evaluated()
    plain, turned = kept.by_image(NAMES), kept.by_image(("class 2", "class 0"))
    for id_, found in plain.items():
        known = found.labels != 1
        np.testing.assert_array_equal(turned[id_].labels, np.where(found.labels[known] == 2, 0, 1))
        np.testing.assert_array_equal(turned[id_].scores, found.scores[known])


def test_images_are_the_same_in_any_order_but_not_under_other_names():
    assert images_digest([1, 2], ["a", "b"]) == images_digest([2, 1], ["b", "a"])
    assert len({images_digest(ids, names) for ids, names in (([1, 2], "ab"), ([1, 2], "ba"), ([1, 3], "ab"))}) == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive at all"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "kept.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"kept\.npz"):
        KeptDetections.load(tmp_path / "kept.npz")


HEAD = {"version": 1, "class_names": ["a", "b"], "images": "x"}
SOUND = {
    "head": np.array(json.dumps(HEAD)),
    "image_ids": np.array([1, 2]),
    "counts": np.array([1, 0], np.uint16),
    "scores": np.ones(1, np.float32),
    "labels": np.ones(1, np.uint16),
    "boxes": np.ones((1, 4), np.float32),
}
FORGED = {
    "a head that is a list": {"head": np.array("[]")},
    "a head nested without end": {"head": np.array("[" * 100_000)},
    "no names": {"head": np.array('{"version": 1, "images": "x"}')},
    "names that are numbers": {"head": np.array(json.dumps(HEAD | {"class_names": [1, 2]}))},
    "names that are one text": {"head": np.array(json.dumps(HEAD | {"class_names": "ab"}))},
    "images that are a list": {"head": np.array(json.dumps(HEAD | {"images": ["x"]}))},
    "another version": {"head": np.array(json.dumps(HEAD | {"version": 2}))},
    "a class without a name": {"labels": np.array([2], np.uint16)},
    "a class before the first": {"labels": np.array([-1])},
    "half a class": {"labels": np.array([0.5])},
    "more images than counts": {"image_ids": np.array([1, 2, 3])},
    "one image twice": {"image_ids": np.array([1, 1])},
    "a table of images": {"image_ids": np.array([[1, 2]]), "counts": np.array([[1, 0]])},
    "counts below nothing": {"counts": np.array([2, -1])},
    "counts that go round": {"counts": np.array([2**63 + 1, 2**63], np.uint64)},
    "counts of more": {"counts": np.array([1, 1])},
    "boxes of three numbers": {"boxes": np.ones((1, 3), np.float32)},
    "a box without end": {"boxes": np.full((1, 4), np.inf, np.float32)},
    "a score that is none": {"scores": np.full(1, np.nan, np.float32)},
    "scores in words": {"scores": np.array(["1"])},
    "an object": {"scores": np.array([{}], dtype=object)},
    "one number": {"scores": np.float32(1.0)},
}


def test_a_sound_file_is_read(tmp_path):
    np.savez_compressed(tmp_path / "kept.npz", **SOUND)
    found = KeptDetections.load(tmp_path / "kept.npz").by_image(["b"])
    assert {id_: one.labels.tolist() for id_, one in found.items()} == {1: [0], 2: []}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_a_forged_file_is_named(tmp_path, change):
    np.savez_compressed(tmp_path / "kept.npz", **(SOUND | change))
    with pytest.raises(DataError, match=r"kept\.npz"):
        KeptDetections.load(tmp_path / "kept.npz")


def test_a_file_whose_packed_bytes_are_damaged_is_named(tmp_path):
    np.savez_compressed(tmp_path / "kept.npz", **(SOUND | {"more": np.arange(5000)}))
    content = bytearray((tmp_path / "kept.npz").read_bytes())
    at = content.index(b"scores.npy") + len("scores.npy") + 20  # behind its local head
    content[at : at + 60] = b"\xff" * 60
    (tmp_path / "kept.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"kept\.npz"):
        KeptDetections.load(tmp_path / "kept.npz")
