"""Everything that can be wrong with an entry of COCO content: found, named, and mended or left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qskd.data.index import DetectionIndex
from qskd.data.mended import Mended
from qskd.data.mending import mend


def picture(folder: Path, name: str, width: int = 100, height: int = 80) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(name)).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / name)


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 100, "height": 80},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [30, 30, 40, 20], "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        picture(tmp_path, name)
    return tmp_path


def mended(folder: Path, changed: dict[str, Any]) -> Mended:
    found = mend(folder / "x.json", folder, "train", changed)
    if found.images and found.categories:
        index = DetectionIndex.of(folder / "x.json", folder, found.as_coco(), strict=True)  # nothing is wrong any more
        assert not index.problems.lines()
        assert len(index.annotations.ids) == len(found.annotations)
    return found


def kinds(found: Mended) -> set[str]:
    return {one.kind for one in found.findings}


def test_good_content_stays_as_it_is(folder: Path) -> None:
    found = mended(folder, content())
    assert found.findings == []
    assert [row["bbox"] for row in found.as_coco()["annotations"]] == [[10, 10, 20, 20], [30, 30, 40, 20]]
    assert found.as_coco()["categories"] == content()["categories"]


ANNOTATION = {"id": 3, "image_id": 1, "category_id": 1, "bbox": [50, 50, 10, 10]}

CASES = [
    ({"bbox": [5, 5, 0, 4]}, "degenerate box", 0),
    ({"bbox": [5, 5, -3, 4]}, "degenerate box", 0),
    ({"bbox": [200, 5, 10, 10]}, "box outside of its image", 0),
    ({"bbox": [90, 70, 20, 20]}, "box beyond the border", 1),
    ({"bbox": [11, 10, 20, 20]}, "nothing", 1),
    ({"bbox": [10.2, 10, 20, 20]}, "duplicate box", 0),
    ({"bbox": [10, 10, 20, 20], "category_id": 2}, "nothing", 1),
    ({"bbox": [1, 2, 3]}, "box that is not four numbers", 0),
    ({"bbox": "1 2 3 4"}, "box that is not four numbers", 0),
    ({"bbox": [1, 2, float("nan"), 4]}, "box that is not four numbers", 0),
    ({"bbox": [1, 2, 1e300, 4]}, "box that is not four numbers", 0),
    ({"bbox": [True, 2, 3, 4]}, "box that is not four numbers", 0),
    ({"image_id": 99}, "annotation of an unknown image", 0),
    ({"image_id": None}, "annotation of an unknown image", 0),
    ({"category_id": 99}, "annotation of an unknown category", 0),
    ({"category_id": "1"}, "annotation of an unknown category", 0),
    ({"iscrowd": 7}, "iscrowd neither 0 nor 1", 1),
    ({"id": 1}, "annotation id repeated", 1),
    ({"id": "x"}, "annotations without id", 1),
]


@pytest.mark.parametrize(("change", "kind", "kept"), CASES, ids=lambda value: str(value)[:40])
def test_every_kind_of_annotation(folder: Path, change: dict[str, Any], kind: str, kept: int) -> None:
    data = content()
    data["annotations"].append(ANNOTATION | change)
    found = mended(folder, data)
    assert kinds(found) == ({kind} if kind != "nothing" else set())
    assert len(found.annotations) == 2 + kept
    assert all(one.split == "train" for one in found.findings)


def test_a_box_beyond_the_border_is_cut_there(folder: Path) -> None:
    data = content()
    data["annotations"][0]["bbox"] = [90, -5, 20, 20]
    assert mended(folder, data).annotations[0]["bbox"] == [90, 0, 10, 15]


def test_images_by_kind(folder: Path) -> None:
    picture(folder, "turned.png", 80, 100)
    picture(folder, "half.png", 50, 40)
    (folder / "text.png").write_text("no image")
    data = content()
    rows = [
        ("../out.png", 100, 80),
        ("C:\\out.png", 100, 80),
        ("gone.png", 100, 80),
        ("text.png", 100, 80),
        ("turned.png", 100, 80),
        ("half.png", 100, 80),
        ("a.png", 100, 80),
    ]
    for number, (name, width, height) in enumerate(rows, start=3):
        data["images"].append({"id": number, "file_name": name, "width": width, "height": height})
    data["images"].append({"id": 1, "file_name": "again.png", "width": 1, "height": 1})
    data["images"].append({"id": 50, "file_name": ""})
    data["annotations"].append({"id": 3, "image_id": 8, "category_id": 1, "bbox": [20, 20, 60, 40]})
    data["annotations"].append({"id": 4, "image_id": 9, "category_id": 1, "bbox": [60, 20, 20, 20]})
    found = mended(folder, data)
    assert kinds(found) == {
        "file name leaves the image folder",
        "image file missing",
        "image unreadable",
        "image of another shape than said",
        "image of another size than said",
        "image file listed twice",
        "image id repeated",
        "image without id or file name",
    }
    assert [row["file_name"] for row in found.images.values()] == ["a.png", "b.png", "half.png"]
    boxes = {row["image_id"]: row["bbox"] for row in found.annotations}
    assert boxes[8] == [10, 10, 30, 20]  # the image is half as large as was said
    assert [row["image_id"] for row in found.annotations] == [1, 1, 2, 8]  # that of the second listing is the first's


def test_categories_by_kind(folder: Path) -> None:
    data = content()
    data["categories"] = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
        {"id": 5, "name": "dog"},
        {"id": 5, "name": "emu"},
        {"id": 9, "name": "fox"},
        {"id": "x", "name": "gnu"},
        {"id": 11},
    ]
    data["annotations"].append({"id": 3, "image_id": 1, "category_id": 5, "bbox": [50, 50, 10, 10]})
    found = mended(folder, data)
    assert kinds(found) == {
        "placeholder root category",
        "category name repeated",
        "category id repeated",
        "category without id or name",
        "category ids with gaps",
        "class without objects",
    }
    assert found.categories == {1: "cat", 2: "dog", 9: "fox"}
    assert found.annotations[1]["category_id"] == 2  # the second dog is the first


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, 3, {}, "x"])
def test_a_list_that_is_none_is_an_error(folder: Path, key: str, value: Any) -> None:
    assert f"no list of {key}" in kinds(mended(folder, content() | {key: value}))


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.lists(st.floats(), max_size=5)
)
ROW = st.dictionaries(
    st.sampled_from(
        ["id", "image_id", "category_id", "bbox", "iscrowd", "area", "file_name", "width", "height", "name"]
    ),
    ODD,
)


@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(ROW, max_size=4), st.lists(ROW, max_size=4), st.lists(ROW, max_size=4))
def test_whatever_is_added_is_found_or_harmless(folder: Path, images: Any, annotations: Any, categories: Any) -> None:
    data = content()
    data["images"] += images
    data["annotations"] += annotations
    data["categories"] += categories
    found = mended(folder, data)
    assert len(found.images) >= 2
    json.dumps(found.as_coco())
    for row in found.annotations:
        left, top, width, height = row["bbox"]
        image = found.images[row["image_id"]]
        assert left >= 0
        assert top >= 0
        assert left + width <= image["width"] + 1e-6
        assert top + height <= image["height"] + 1e-6


# ---- what a reader of the first version found ----------------------------------------------------------------


def test_areas_are_scaled_and_cut_with_their_boxes(folder: Path) -> None:
    picture(folder, "half.png", 50, 40)
    data = content()
    data["images"].append({"id": 3, "file_name": "half.png", "width": 100, "height": 80})
    data["annotations"] = [
        {"id": 1, "image_id": 3, "category_id": 1, "bbox": [20, 20, 40, 40], "area": 1000},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [90, 0, 20, 20], "area": 333},
        {"id": 3, "image_id": 1, "category_id": 2, "bbox": [0, 0, 20, 20], "area": 10**400},
        {"id": 4, "image_id": 1, "category_id": 2, "bbox": [0, 50, 20, 20], "area": 17.5},
    ]
    found = mended(folder, data)
    areas = {tuple(row["bbox"]): row["area"] for row in found.annotations}
    assert areas == {
        (10, 10, 20, 20): 250.0,  # half of both sides
        (90, 0, 10, 20): 200,  # cut: the box's own
        (0, 0, 20, 20): 400,
        (0, 50, 20, 20): 17.5,
    }


def test_an_image_on_its_side_whose_boxes_may_be_either_way_is_left_out(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (101, 100)).save(folder / "side.jpg", exif=exif)
    data = content()
    data["images"].append({"id": 3, "file_name": "side.jpg", "width": 101, "height": 100})
    found = mended(folder, data)
    assert kinds(found) == {"turned by its EXIF tag, but not by its annotations"}
    assert 3 not in found.images


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"id": 3, "file_name": "gone.png", "width": 9, "height": 9}, "image file missing"),
        ({"id": 3, "file_name": "../out.png", "width": 9, "height": 9}, "file name leaves the image folder"),
        ({"id": 3, "file_name": "side.jpg", "width": 101, "height": 100}, "turned by its EXIF tag"),
        ({"id": "3", "file_name": "c.png", "width": 9, "height": 9}, "image without id or file name"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_boxes_of_an_image_that_is_left_out_are_told_with_it(folder: Path, row: Any, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (101, 100)).save(folder / "side.jpg", exif=exif)
    data = content()
    data["images"].append(row)
    for number in (3, 4, 5):
        box = {"id": number, "image_id": row["id"], "category_id": 1, "bbox": [number, 1, 2, 2]}
        data["annotations"].append(box)
    (found,) = mended(folder, data).findings
    assert found.kind.startswith(kind)
    assert found.what.endswith("left out with its 3 boxes")


def test_classes_of_images_that_are_left_out_are_not_missing(folder: Path) -> None:
    data = content()
    data["categories"] = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
    ]
    for row in data["images"]:
        row["file_name"] = f"gone-{row['file_name']}"
    found = mended(folder, data)
    assert kinds(found) == {"image file missing", "placeholder root category"}
    assert found.categories == {1: "cat", 2: "dog"}


def test_a_class_that_is_its_own_parent_is_no_root(folder: Path) -> None:
    data = content()
    data["categories"] = [
        {"id": 1, "name": "cat", "supercategory": "cat"},
        {"id": 2, "name": "dog", "supercategory": "animal"},
        {"id": 3, "name": "person", "supercategory": "person"},
    ]
    found = mended(folder, data)
    assert kinds(found) == {"class without objects"}
    assert set(found.categories.values()) == {"cat", "dog", "person"}


def test_names_with_backslashes_and_dots_are_the_files_they_mean(folder: Path) -> None:
    picture(folder / "s", "x.png")
    data = content()
    data["images"].append({"id": 3, "file_name": "s\\x.png", "width": 100, "height": 80})
    data["images"].append({"id": 4, "file_name": "./a.png", "width": 100, "height": 80})
    data["images"].append({"id": 5, "file_name": "x" * 300 + ".png", "width": 100, "height": 80})
    found = mended(folder, data)
    assert [row["file_name"] for row in found.images.values()] == ["a.png", "b.png", "s/x.png"]
    assert kinds(found) == {"image file listed twice", "image file missing"}


def test_entries_that_are_no_objects_are_errors(folder: Path) -> None:
    data = content()
    data["images"].append(None)
    data["annotations"].append(3)
    assert [one.severity for one in mended(folder, data).findings] == ["error", "error"]
