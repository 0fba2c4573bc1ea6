"""Which JSON files of a folder are COCO's, and which of its folders holds their images."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders_coco import coco
from builders_data import annotation, coco_content, write_coco
from builders_formats import CLASSES, PICTURES, encoded, put, put_images
from builders_layouts import LAYOUTS
from qskd.data.formats.coco import CocoSource, load_coco, without_root
from qskd.data.sources import open_source
from qskd.errors import DataError

OTHERS = {
    "label studio's notes": ("notes.json", {"categories": [{"id": 0, "name": "a"}], "info": {"year": 2024}}),
    "a dataset's description": ("dataset_info.json", {"features": {"annotations": [{"bbox": {}}]}, "images": []}),
    "a state": ("state.json", {"images": []}),
    "settings": ("train.json", {"images": "here", "annotations": "there"}),
    "detections": ("val.json", [{"image_id": 1}]),
    "no json": ("train.json", "images: []"),
    "utf-16": ("test.json", '{"images": []}'.encode("utf-16")),
}


@pytest.mark.parametrize(("name", "content"), OTHERS.values(), ids=OTHERS.keys())
def test_other_programs_files_are_not_taken_for_cocos(name: str, content: Any, tmp_path: Path) -> None:
    put(tmp_path / name, content)
    put(tmp_path / "train" / name, content)
    assert CocoSource.find(tmp_path) is None


def test_a_file_that_begins_with_something_long_is_still_cocos(tmp_path: Path) -> None:
    put(tmp_path / "labels.json", {"info": {"description": "x" * 100_000}} | coco("train"))
    put_images(tmp_path / "data", "train")
    assert open_source(tmp_path).splits == ("train",)


def test_files_of_keypoints_and_captions_do_not_hide_those_of_objects(tmp_path: Path) -> None:
    LAYOUTS["coco-2017"].write(tmp_path)
    for kind in ("person_keypoints", "captions", "stuff"):
        put(tmp_path / "annotations" / f"{kind}_train2017.json", {"images": [], "annotations": []})
    assert open_source(tmp_path).load("train").class_names == CLASSES


def test_of_several_annotation_files_one_has_to_be_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put_images(tmp_path / "images", split)
        put(tmp_path / "annotations" / f"{split}_v1.json", coco(split))
    assert open_source(tmp_path).splits == ("train", "test")
    put(tmp_path / "annotations" / "train_v2.json", coco("train"))
    wanted = r"several files .* 'train': .*train_v1\.json, .*train_v2\.json.*--train_annotations FILE"
    with pytest.raises(DataError, match=wanted):
        open_source(tmp_path).load("train")
    assert len(open_source(tmp_path).load("test")) == 1  # what is clear is read
    put(tmp_path / "annotations" / "test_v2.json", coco("test"))
    with pytest.raises(DataError, match=wanted):
        open_source(tmp_path)
    put(tmp_path / "annotations" / "instances_train.json", coco("train"))  # the usual name says which is meant
    assert open_source(tmp_path).splits == ("train",)


def test_of_two_folders_of_a_split_or_two_files_in_one_none_is_picked(tmp_path: Path) -> None:
    for folder in ("train", "val", "valid"):
        put(tmp_path / folder / "_annotations.coco.json", coco("train"))
    source = open_source(tmp_path)
    assert source.splits == ("train",)
    with pytest.raises(DataError, match=r"several files or folders for the split 'val': .*/val/.*/valid/"):
        source.load("val")
    for name in ("a.json", "b.json"):
        put(tmp_path / "test" / name, coco("train"))
    with pytest.raises(DataError, match=r"'test': .*a\.json, .*b\.json"):
        open_source(tmp_path).load("test")


def test_one_file_an_image_is_no_choice_of_annotation_files(tmp_path: Path) -> None:
    put(tmp_path / "annotations" / "instances_val.json", coco("train"))
    for number in range(20):
        put(tmp_path / "train" / f"{number}.json", {"images": [], "annotations": []})
    with pytest.raises(DataError, match="no split 'train'"):
        open_source(tmp_path).load("train")


def test_a_split_of_any_name_is_read_as_it_is_called(tmp_path: Path) -> None:
    put(tmp_path / "annotations" / "instances_nights.json", coco("test"))
    put_images(tmp_path / "images", "test")
    assert open_source(tmp_path).splits == ("nights",)
    assert len(open_source(tmp_path).load("nights")) == 1
    with pytest.raises(DataError, match=r"no split 'train' \(found: nights.*--train_split"):
        open_source(tmp_path).load("train")


def test_the_folder_that_holds_most_images_is_the_one(tmp_path: Path) -> None:
    """The first image is missing where the others are; what is said names that folder and that image."""
    put(tmp_path / "annotations" / "instances_train.json", coco("train"))
    put_images(tmp_path / "train", "train", slice(1, None))
    put(tmp_path / "images" / "other.jpg", encoded("other.jpg", 8, 8))
    with pytest.raises(DataError, match=rf"1 of 4 image files are not in {tmp_path}/train: a\.jpg"):
        open_source(tmp_path).load("train")


@pytest.mark.parametrize("name", ["val", "valid"])
def test_images_may_lie_in_the_images_of_a_split(name: str, tmp_path: Path) -> None:
    put(tmp_path / "annotations" / "val.json", coco("test"))
    put_images(tmp_path / name / "images", "test")
    index = open_source(tmp_path).load("val")
    assert index.images.folder == tmp_path / name / "images"


def test_without_any_folder_of_images_the_usual_ones_are_named(tmp_path: Path) -> None:
    put(tmp_path / "data" / "annotations" / "instances_train.json", coco("train"))
    with pytest.raises(DataError, match=r"No image folder for the split 'train'; looked for .*data/images/train, "):
        open_source(tmp_path / "data").load("train")
    (tmp_path / "data" / "images").mkdir()
    with pytest.raises(DataError, match=r"4 of 4 image files are not in .*/data/images: a\.jpg"):
        open_source(tmp_path / "data").load("train")


def test_the_category_of_a_whole_project_is_left_out(tmp_path: Path) -> None:
    index = open_source(LAYOUTS["coco-roboflow project named like a class"].write(tmp_path)).load("train")
    assert index.class_names == CLASSES
    assert index.category_ids == (1, 2, 3)
    path = tmp_path / "train" / "_annotations.coco.json"
    assert load_coco(path, tmp_path / "train").class_names == CLASSES


def test_a_category_that_is_used_or_no_parent_stays() -> None:
    used = coco("train", root="pets")
    used["annotations"][0]["category_id"] = 0
    assert without_root(used) is used
    plain = coco("train")
    assert without_root(plain) is plain
    other = coco("train", root="pets")
    other["categories"][2]["supercategory"] = "birds"
    assert without_root(other) is other


def test_a_file_really_named_with_a_backslash_is_found(tmp_path: Path) -> None:
    content = coco("test", prefix="x\\")
    put(tmp_path / "annotations" / "instances_test.json", content)
    (picture,) = PICTURES["test"]
    put(tmp_path / "images" / f"x\\{picture.name}", encoded(picture.name, picture.width, picture.height))
    index = load_coco(tmp_path / "annotations" / "instances_test.json", tmp_path / "images")
    assert index.images.file_names == (f"x\\{picture.name}",)


NUMBERS = {
    "a box beyond a float": ({"bbox": [10**400, 1, 2, 0.5]}, "annotation id 9 has bbox"),
    "an area beyond a float": ({"area": 10**400}, "annotation id 9 has area 1000"),
    "an area beyond any image": ({"area": 1e308}, "annotation id 9 has area 1e"),
}


@pytest.mark.parametrize(("change", "message"), NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers_beyond_all_bounds_are_refused_by_id(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"].append(annotation(10, 5, 3, [1, 2.5, 3, 4]))
    content["annotations"][3] |= change
    with pytest.raises(DataError, match=message) as caught:
        load_coco(*write_coco(tmp_path, content))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", ["categories", "images"])
def test_halves_of_signs_are_no_names(key: str, tmp_path: Path) -> None:
    content = coco_content()
    content[key][0]["name" if key == "categories" else "file_name"] = "a\ud800"
    path, images = write_coco(tmp_path)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"instances_train\.json: {key}\[0\].*expected a text"):
        load_coco(path, images)


def test_a_name_too_long_for_any_disk_is_an_absent_file(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][0]["file_name"] = "x" * 5000
    write_coco(tmp_path, content)
    with pytest.raises(DataError, match="1 of 3 image files are not in"):
        open_source(tmp_path).load("train")
