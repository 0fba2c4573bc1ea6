"""From options to data, image sizes and models."""

import json

import pytest
import torch
from PIL import Image

from builders_data import coco_content, write_coco
from builders_runs import NAMES, edited
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError, DataError, UnsupportedFamily
from qskd.runs import building
from qskd.runs.options import DataOptions


def explicit(scenes, split):
    return {
        f"{split}_annotations": str(scenes / "annotations" / f"instances_{split}.json"),
        f"{split}_images": str(scenes / "images" / split),
    }


@pytest.mark.parametrize("how", ["folder", "files", "both"])
def test_data_is_a_folder_or_files(scenes, how):
    files = explicit(scenes, "train") | explicit(scenes, "val")
    options = {"folder": {"data": str(scenes)}, "files": files, "both": {"data": str(scenes)} | explicit(scenes, "val")}
    splits = building.open_splits(DataOptions(**options[how]))
    assert (len(splits.train), len(splits.val)) == (16, 6)
    assert splits.class_names == splits.val.class_names == NAMES


def test_named_files_need_no_validation_split(scenes):
    splits = building.open_splits(DataOptions(**explicit(scenes, "train")))
    assert splits.val is None
    train, val = building.datasets(splits, DataOptions(), ImageSize(square=64), seed=3)
    assert (len(train), val) == (16, None)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("half", ["annotations", "images"])
def test_half_a_pair_of_files_is_refused(scenes, split, half):
    given = {name: path for name, path in explicit(scenes, split).items() if name.endswith(half)}
    with pytest.raises(ConfigError, match=f"Give --{split}_annotations and --{split}_images together"):
        building.open_splits(DataOptions(data=str(scenes), **given))


def test_without_any_data_it_is_said_how_to_give_it(scenes):
    with pytest.raises(ConfigError, match=r"No data: give --data .* or --train_annotations FILE"):
        building.open_splits(DataOptions())
    with pytest.raises(ConfigError, match="or --val_annotations FILE"):
        building.open_split(DataOptions(), "val")


def test_a_class_of_the_validation_split_alone_is_refused(scenes, tmp_path):
    def rename(content):
        content["categories"][0]["name"] = "blob"

    data = edited(scenes, tmp_path / "data", rename, "val")
    with pytest.raises(DataError, match=r"instances_val.json: annotations of \['blob'\] have no place"):
        building.open_splits(DataOptions(data=str(data)))


def test_what_was_dropped_is_counted_and_may_be_refused(tmp_path):
    content = coco_content()
    content["annotations"][0]["bbox"] = [1, 2, 0, 5]
    content["annotations"][1]["bbox"] = [100, 2, 5, 5]
    write_coco(tmp_path, content)
    write_coco(tmp_path, split="val")
    lines = building.open_splits(DataOptions(data=str(tmp_path))).problems()
    assert len(lines) == 2
    assert any(line.startswith("train: 1 degenerate boxes") and "annotation id 100" in line for line in lines)
    assert any(line.startswith("train: 1 boxes entirely outside") and "annotation id 4" in line for line in lines)
    with pytest.raises(DataError, match="annotation id 100"):
        building.open_splits(DataOptions(data=str(tmp_path), strict_data=True))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(b""), "not an image file"),
        (lambda path: path.write_text("<html>404</html>"), "not an image file"),
        (lambda path: path.write_bytes(path.read_bytes()[:30]), "b.png"),
        (lambda path: Image.new("RGB", (30, 40)).save(path), "is 30 x 40 pixels .* says 40 x 30"),
    ],
    ids=["empty", "text", "cut-off", "other-size"],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_file_that_is_not_the_image_is_found_before_training(tmp_path, spoil, told, split):
    for name in ("train", "val"):
        write_coco(tmp_path / name, split="train")
    spoil(tmp_path / split / "images" / "b.png")
    paths = {
        f"{name}_{what}": str(tmp_path / name / path)
        for name in ("train", "val")
        for what, path in (("annotations", "annotations/instances_train.json"), ("images", "images"))
    }
    with pytest.raises(DataError, match=told) as caught:
        building.open_splits(DataOptions(**paths))
    assert str(tmp_path / split / "images" / "b.png") in str(caught.value)


def test_only_training_images_are_augmented(scenes):
    splits = building.open_splits(DataOptions(data=str(scenes)))
    train, val = building.datasets(splits, DataOptions(flip=1.0, crop=0.0, photometric=0.0), ImageSize(square=64), 0)
    plain = building.evaluation_dataset(splits.train, ImageSize(square=64))
    assert torch.equal(train[0].pixels, plain[0].pixels.flip(-1))
    assert torch.equal(val[0].pixels, building.evaluation_dataset(splits.val, ImageSize(square=64))[0].pixels)


def test_a_configuration_becomes_a_model_of_the_datas_classes(tiny_folders, tmp_path):
    config = json.loads((tiny_folders["rt_detr_student"] / "config.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps(config))
    adapter = building.open_model(str(tmp_path / "student.json"), ["cat", "owl"], box_frame="content")
    assert adapter.id2label == {0: "cat", 1: "owl"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is no file"),
        ("{", "is no JSON"),
        ("[1]", "holds a list"),
        ("{}", "has no model_type"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(tmp_path, content, told):
    path = tmp_path / "model.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=told):
        building.open_model(str(path), ["cat"], box_frame="content")


def test_a_model_to_be_used_needs_weights(tmp_path, tiny_folders):
    with pytest.raises(ConfigError, match="is a configuration without weights"):
        building.open_model("teacher.json", None, box_frame="content")
    (tmp_path / "config.json").write_text((tiny_folders["detr_teacher"] / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"holds no weights: looked for model\.safetensors"):
        building.open_model(str(tmp_path), None, box_frame="content")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UnsupportedFamily, match="vit"):
        building.open_model(str(tmp_path), None, box_frame="content")


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(5, 2, [0, 4]), (3, 9, [0, 1, 2]), (4, 1, [0]), (0, 3, []), (399, 200, [0, 2, 4, 6])],
    ids=["ends", "all", "one", "none", "nearly half"],
)
def test_a_few_are_chosen_evenly_from_first_to_last(total, count, expected):
    chosen = building.evenly(range(total), count)
    assert chosen[: len(expected)] == expected
    assert len(chosen) == min(total, count)
    assert not total or chosen[-1] == (total - 1 if count > 1 else 0)
