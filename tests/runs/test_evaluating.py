"""`eval`: a model of whatever vocabulary on a split of whatever data."""

import json
from pathlib import Path

import pytest

import qskd
from builders_runs import NAMES, edited
from qskd.data.sources import open_source
from qskd.data.transforms import ImageSize
from qskd.errors import ConfigError, DataError, LabelMapError
from qskd.models.loading import load_model
from qskd.runs.evaluating import evaluate_adapter

TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"
METRICS = {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "per_class", "num_images"}


@pytest.fixture(scope="module")
def on_val(scenes):
    return qskd.evaluate(model=TEACHER, data=scenes, image_size=64)


def test_a_good_model_scores_and_the_numbers_are_plain(on_val):
    assert on_val.keys() >= METRICS
    assert 0.1 < on_val["AP"] < on_val["AP50"] <= 1.0
    assert set(on_val["per_class"]) == set(NAMES)
    assert json.loads(json.dumps(on_val, allow_nan=False)) == on_val


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_nothing(scenes, on_val, batch_size):
    found = qskd.evaluate(model=TEACHER, data=scenes, image_size=64, batch_size=batch_size)
    assert found["AP"] == pytest.approx(on_val["AP"], abs=1e-6)
    assert found["num_images"] == 6


def test_any_split_can_be_measured(scenes):
    assert qskd.evaluate(model=TEACHER, data=scenes, split="train", image_size=64)["num_images"] == 16


def test_files_can_be_named_instead_of_a_folder(scenes, on_val):
    annotations, images = scenes / "annotations" / "instances_val.json", scenes / "images" / "val"
    files = {"val_annotations": annotations, "val_images": images}
    assert qskd.evaluate(model=TEACHER, image_size=64, **files) == on_val


def renumber(content):
    for category in content["categories"]:
        category["id"] = 100 - category["id"]
    for row in content["annotations"]:
        row["category_id"] = 100 - row["category_id"]


def test_classes_are_matched_by_name_not_by_number(scenes, on_val, tmp_path):
    """The same scenes with their categories numbered backwards."""
    found = qskd.evaluate(model=TEACHER, data=edited(scenes, tmp_path / "data", renumber, "val"), image_size=64)
    assert list(found["per_class"]) == [*reversed(NAMES)]
    for name, wanted in on_val["per_class"].items():
        assert found["per_class"][name] == (wanted if wanted is None else pytest.approx(wanted, abs=1e-6))


def test_a_class_the_model_does_not_have_is_never_found(scenes, on_val, tmp_path):
    def rename(content):
        content["categories"][0]["name"] = "blob"

    found = qskd.evaluate(model=TEACHER, data=edited(scenes, tmp_path / "data", rename, "val"), image_size=64)
    assert on_val["per_class"][NAMES[0]] > 0.05
    assert found["per_class"]["blob"] == 0.0


def test_a_sample_is_spread_over_the_split(scenes, tmp_path):
    """Sorted files: no object in the first half."""

    def empty_half(content):
        gone = {image["id"] for image in content["images"][:8]}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] not in gone]

    index = open_source(edited(scenes, tmp_path / "data", empty_half, "train")).load("train")
    found = evaluate_adapter(load_model(TEACHER), index, ImageSize(square=64), 4, first=5)
    assert found["num_images"] == 5
    assert found["AP"] is not None
    whole = evaluate_adapter(load_model(TEACHER), index, ImageSize(square=64), 4, first=100)
    assert whole["num_images"] == 16


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"model": None}, ConfigError, "--model was not given"),
        ({"split": "tset"}, DataError, "has no split 'tset'"),
        (
            {"split": "foo", "val_annotations": "v", "val_images": "i"},
            ConfigError,
            "--split foo names a split of --data",
        ),
        ({"batch_size": 0}, ConfigError, "--batch_size is 0"),
        ({"image_size": 33}, ConfigError, "Try 32"),
        ({"modle": "x"}, ConfigError, "no option 'modle'. Did you mean 'model'"),
    ],
)
def test_bad_options_are_refused(scenes, options, kind, told):
    with pytest.raises(kind, match=told):
        qskd.evaluate(**({"model": TEACHER, "data": scenes, "image_size": 64} | options))


def test_a_model_that_knows_no_class_of_the_data_is_refused(scenes, tmp_path):
    def rename(content):
        for number, category in enumerate(content["categories"]):
            category["name"] = f"cell {number}"

    with pytest.raises(LabelMapError, match="no class name in common"):
        qskd.evaluate(model=TEACHER, data=edited(scenes, tmp_path / "data", rename, "val"), image_size=64)
