import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from builders_data import CATEGORIES, annotation, coco_content, write_coco
from qskd.data.formats.coco import CocoSource, image_folder, load_coco
from qskd.data.index import ImageRecord
from qskd.data.sources import open_source
from qskd.errors import DataError


def test_classes_are_ordered_by_category_id_and_keep_the_ids_of_the_file(tmp_path: Path) -> None:
    index = load_coco(*write_coco(tmp_path))
    assert index.class_names == ("cat", "dog", "owl")
    assert index.category_ids == (3, 7, 90)


def test_images_keep_the_order_of_the_file_and_boxes_become_corners(tmp_path: Path) -> None:
    index = load_coco(*write_coco(tmp_path))
    assert index.images[1] == ImageRecord(5, tmp_path / "images" / "b.png", 30, 40)
    assert [record.id for record in index.images] == [11, 5, 8]
    np.testing.assert_array_equal(index.boxes(0), [[0.5, 0.5, 20.5, 10.5]])
    np.testing.assert_array_equal(index.labels(0), [0])
    assert index.labels(1).tolist() == [2, 0]  # 90 is owl, 3 is cat; the crowd is left out
    np.testing.assert_array_equal(index.boxes(1), [[1, 2, 11, 22], [12, 3, 16, 8]])
    assert index.boxes(2).shape == (0, 4)
    np.testing.assert_array_equal(index.boxes(-2), index.boxes(1))


def test_a_slice_of_the_images_is_a_tuple_of_records(tmp_path: Path) -> None:
    images = load_coco(*write_coco(tmp_path)).images
    assert [record.id for record in images[1:]] == [5, 8]
    with pytest.raises(IndexError):
        images[3]


def test_ground_truth_keeps_crowds_areas_and_the_ids_of_the_file(tmp_path: Path) -> None:
    truth = load_coco(*write_coco(tmp_path)).ground_truth()
    by_id = {entry["id"]: entry for entry in truth["annotations"]}
    assert set(by_id) == {4, 100, 7, 9}
    assert by_id[7]["iscrowd"] == 1
    assert by_id[7]["area"] == 333.0
    assert by_id[4]["area"] == 200.0  # computed: 20 x 10
    assert by_id[100]["bbox"] == [1, 2, 10, 20]
    assert by_id[100]["category_id"] == 90
    assert by_id[9]["image_id"] == 5
    assert truth["categories"] == CATEGORIES
    assert json.loads(json.dumps(truth)) == truth


def test_annotation_ids_from_zero_are_renumbered_because_pycocotools_takes_0_for_no_match(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = coco_content()
    content["annotations"] = [annotation(0, 11, 3, [2, 2, 10, 10], area=100)]
    truth = load_coco(*write_coco(tmp_path, content)).ground_truth()
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    found = coco.loadRes(np.array([[11, 2, 2, 10, 10, 0.9, 3]]))
    evaluation = COCOeval(coco, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_given_names_set_the_order_and_absent_ones_get_ids_that_the_file_does_not_use(tmp_path: Path) -> None:
    paths = write_coco(tmp_path)
    index = load_coco(*paths, class_names=["person", "owl", "cat", "dog"])
    assert index.labels(1).tolist() == [1, 2]
    assert index.category_ids[1:] == (90, 3, 7)
    assert index.category_ids[0] not in (3, 7, 90)
    assert [c["name"] for c in index.ground_truth()["categories"]] == ["person", "owl", "cat", "dog"]


def test_a_category_without_annotations_may_be_absent_from_the_given_names(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != 7]
    index = load_coco(*write_coco(tmp_path, content), class_names=["owl", "cat"])
    assert index.category_ids == (90, 3)


def test_a_category_with_annotations_that_no_given_name_covers_is_refused_with_both_lists(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match=r"\['dog'\].*\['cat', 'owl'\].*\['cat', 'dog', 'owl'\]"):
        load_coco(*write_coco(tmp_path), class_names=["cat", "owl"])


@pytest.mark.parametrize("names", [["cat", "cat", "dog", "owl"], []])
def test_given_names_must_differ_and_exist(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match="each once"):
        load_coco(*write_coco(tmp_path), class_names=names)


QUESTIONABLE = [
    annotation(1, 11, 3, [5, 5, 0, 10]),  # degenerate
    annotation(2, 11, 3, [5, 5, 10, -2]),
    annotation(3, 11, 3, [40, 5, 10, 10]),  # outside: begins where the image ends
    annotation(4, 11, 3, [35, 25, 10, 10]),  # clipped to 5 x 5
    annotation(5, 11, 3, [-5, 0, 50, 30.001]),  # clipped
    annotation(6, 11, 3, [0, 0, 40.005, 30]),  # a rounding error is no news
]


def test_boxes_that_cannot_be_used_are_dropped_counted_and_named(tmp_path: Path) -> None:
    content = {**coco_content(), "annotations": QUESTIONABLE}
    index = load_coco(*write_coco(tmp_path, content))
    np.testing.assert_array_equal(index.boxes(0), [[35, 25, 40, 30], [0, 0, 40, 30], [0, 0, 40, 30]])
    counts = {kind.split()[0] + kind.split()[-1]: n for kind, n in index.problems.counts.items()}
    assert counts == {"degeneratedropped": 2, "boxesdropped": 1, "boxesimage": 2}
    lines = "\n".join(index.problems.lines())
    for id_ in (1, 2, 3, 4, 5):
        assert f"annotation id {id_} " in lines
    assert "annotation id 6 " not in lines


def test_ground_truth_keeps_the_unclipped_boxes_as_published_scores_do(tmp_path: Path) -> None:
    content = {**coco_content(), "annotations": QUESTIONABLE}
    truth = load_coco(*write_coco(tmp_path, content)).ground_truth()
    assert [entry["id"] for entry in truth["annotations"]] == [4, 5, 6]
    assert truth["annotations"][0]["bbox"] == [35, 25, 10, 10]


@pytest.mark.parametrize("row", [0, 2], ids=["degenerate", "outside"])
def test_strict_refuses_what_would_be_dropped(tmp_path: Path, row: int) -> None:
    paths = write_coco(tmp_path, {**coco_content(), "annotations": [QUESTIONABLE[row]]})
    with pytest.raises(DataError, match=f"annotation id {row + 1} "):
        load_coco(*paths, strict=True)


def test_strict_accepts_boxes_that_are_only_clipped(tmp_path: Path) -> None:
    paths = write_coco(tmp_path, {**coco_content(), "annotations": [QUESTIONABLE[3]]})
    assert len(load_coco(*paths, strict=True).boxes(0)) == 1


def test_only_a_few_entries_of_a_problem_are_named(tmp_path: Path) -> None:
    many = [annotation(number, 11, 3, [5, 5, 0, 10]) for number in range(1, 50)]
    index = load_coco(*write_coco(tmp_path, {**coco_content(), "annotations": many}))
    (line,) = index.problems.lines()
    assert line.startswith("49 ")
    assert line.count("annotation id") == 5
    assert line.endswith("...)")


def test_an_image_file_under_two_ids_is_reported(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][1]["file_name"] = "a.png"
    index = load_coco(*write_coco(tmp_path, content))
    assert index.problems.lines() == ["1 image files that several image ids share (a.png)"]


def test_images_may_lie_in_subfolders(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][0]["file_name"] = "deep/er/a.png"
    path, images = write_coco(tmp_path, content)
    (images / "deep" / "er").mkdir(parents=True)
    (images / "a.png").rename(images / "deep" / "er" / "a.png")
    assert load_coco(path, images).images[0].path.exists()


Change = Callable[[dict[str, Any]], Any]


def change(*keys: str | int, to: Any) -> Change:
    """Sets content[key][key]... to a value."""

    def apply(content: dict[str, Any]) -> None:
        place: Any = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return apply


def remove(*keys: str | int) -> Change:
    def apply(content: dict[str, Any]) -> None:
        place: Any = content
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return apply


NAN, INF = float("nan"), float("inf")
BAD_CONTENT: dict[str, tuple[Change, str]] = {
    "no images": (remove("images"), "has no 'images'"),
    "no annotations": (remove("annotations"), "has no 'annotations'"),
    "no categories": (remove("categories"), "has no 'categories'"),
    "images not a list": (change("images", to={}), "'images' is a dict"),
    "no image at all": (change("images", to=[]), "'images' is empty"),
    "no category at all": (change("categories", to=[]), "'categories' is empty"),
    "an image is a number": (change("images", 1, to=3), r"images\[1\] is 3"),
    "image without id": (remove("images", 1, "id"), r"images\[1\] has no 'id'"),
    "image without file_name": (remove("images", 1, "file_name"), r"images\[1\] \(id 5\) has no 'file_name'"),
    "image without height": (remove("images", 0, "height"), "has no 'height'"),
    "annotation without bbox": (remove("annotations", 1, "bbox"), r"annotations\[1\] \(id 4\) has no 'bbox'"),
    "annotation without category": (remove("annotations", 1, "category_id"), "has no 'category_id'"),
    "category without name": (remove("categories", 1, "name"), "has no 'name'"),
    "text as image id": (change("images", 0, "id", to="11"), r"has id '11'; expected a whole number"),
    "huge image id": (change("images", 0, "id", to=2**70), "expected a whole number"),
    "half an image id": (change("images", 0, "id", to=1.5), "expected a whole number"),
    "true as id": (change("images", 0, "id", to=True), "expected a whole number"),
    "NaN as height": (change("images", 0, "height", to=NAN), "expected a whole number"),
    "zero width": (change("images", 0, "width", to=0), "image id 11 has height 30 and width 0"),
    "empty file name": (change("images", 0, "file_name", to=""), "expected a text"),
    "number as file name": (change("images", 0, "file_name", to=7), "expected a text"),
    "repeated image id": (change("images", 0, "id", to=5), "image id 5 occurs 2 times"),
    "repeated annotation id": (change("annotations", 0, "id", to=4), "annotation id 4 occurs 2 times"),
    "repeated category id": (change("categories", 0, "id", to=3), "category id 3 occurs 2 times"),
    "repeated category name": (
        change("categories", 0, "name", to="cat"),
        "category name 'cat' occurs more than once",
    ),
    "annotation of no image": (
        change("annotations", 2, "image_id", to=6),
        "annotation id 7 belongs to image 6",
    ),
    "annotation of no category": (
        change("annotations", 2, "category_id", to=4),
        "annotation id 7 belongs to category 4",
    ),
    "list as category": (change("annotations", 2, "category_id", to=[3]), "expected a whole number"),
    "three numbers": (change("annotations", 0, "bbox", to=[1, 2, 3]), "annotation id 100 has bbox"),
    "five numbers": (change("annotations", 3, "bbox", to=[1, 2, 3, 4, 5]), "annotation id 9 has bbox"),
    "text box": (change("annotations", 3, "bbox", to=["1", "2", "3", "4"]), "annotation id 9 has bbox"),
    "null box": (change("annotations", 3, "bbox", to=None), "annotation id 9 has bbox None"),
    "null in box": (change("annotations", 3, "bbox", to=[1, None, 3, 4]), "annotation id 9 has bbox"),
    "NaN box": (change("annotations", 3, "bbox", to=[1, NAN, 3, 4]), "annotation id 9 has bbox"),
    "infinite box": (change("annotations", 3, "bbox", to=[1, 2, INF, 4]), "annotation id 9 has bbox"),
    "astronomic box": (change("annotations", 3, "bbox", to=[1, 2, 10**30, 4]), "annotation id 9 has bbox"),
    "object as box": (change("annotations", 3, "bbox", to={"x": 1}), "annotation id 9 has bbox"),
    "iscrowd 2": (change("annotations", 3, "iscrowd", to=2), "annotation id 9 has iscrowd 2"),
    "iscrowd text": (change("annotations", 3, "iscrowd", to="no"), "annotation id 9 has iscrowd 'no'"),
    "NaN area": (change("annotations", 3, "area", to=NAN), "annotation id 9 has area nan"),
    "negative area": (change("annotations", 3, "area", to=-1), "annotation id 9 has area -1"),
    "text area": (change("annotations", 3, "area", to="big"), "annotation id 9 has area 'big'"),
    "parent folder": (change("images", 0, "file_name", to="../a.png"), "leaves the image folder"),
    "parent inside": (change("images", 0, "file_name", to="x/../../a.png"), "leaves the image folder"),
    "absolute": (change("images", 0, "file_name", to="/etc/passwd"), "leaves the image folder"),
    "absolute windows": (change("images", 0, "file_name", to="C:\\a.png"), "leaves the image folder"),
    "parent windows": (change("images", 0, "file_name", to="..\\a.png"), "leaves the image folder"),
    "missing image": (change("images", 0, "file_name", to="z.png"), "1 of 3 image files are not in .*z.png"),
    "wrong case": (change("images", 0, "file_name", to="A.png"), "1 of 3 image files are not in"),
    "folder as image": (change("images", 0, "file_name", to="."), "1 of 3 image files"),
    "zero byte in name": (change("images", 0, "file_name", to="a\0/b.png"), "1 of 3 image files"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_CONTENT.values(), ids=BAD_CONTENT.keys())
def test_a_bad_entry_is_refused_by_name(tmp_path: Path, spoil: Change, message: str) -> None:
    content = coco_content()
    spoil(content)
    path, images = write_coco(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        load_coco(path, images)
    assert str(path) in str(caught.value)


BAD_BYTES: dict[str, tuple[bytes, str]] = {
    "truncated": (b'{"images": [{"id": 1,', r"line 1, column 22 \(character 21\)"),
    "empty": (b"", "line 1, column 1"),
    "a list": (b"[]", "holds a list"),
    "not text": (b"\xff\xfe\x00\x81", "not a JSON text file"),
    "too deep": (b"[" * 200_000, "not a JSON text file"),
}


@pytest.mark.parametrize(("data", "message"), BAD_BYTES.values(), ids=BAD_BYTES.keys())
def test_a_file_that_is_no_coco_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path, images = write_coco(tmp_path)
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        load_coco(path, images)


def test_an_absent_annotation_file_or_image_folder_is_named(tmp_path: Path) -> None:
    path, images = write_coco(tmp_path)
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        load_coco(tmp_path / "none.json", images)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load_coco(path, tmp_path / "nowhere")


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path, images = write_coco(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_coco(path, images)) == 3


def test_an_index_survives_pickling(tmp_path: Path) -> None:
    index = load_coco(*write_coco(tmp_path))
    copy = pickle.loads(pickle.dumps(index))
    assert copy.ground_truth() == index.ground_truth()
    assert copy.images[2] == index.images[2]


LAYOUTS = [
    ("annotations/instances_val.json", "images"),
    ("annotations/instances_val.json", "images/val"),
    ("annotations/instances_val.json", "val"),
    ("annotations/instances_val2017.json", "val2017"),
    ("annotations/instances_val2017.json", "images/val2017"),
]


@pytest.mark.parametrize(("file", "folder"), LAYOUTS)
def test_a_split_is_found_in_every_usual_layout(tmp_path: Path, file: str, folder: str) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text("{}")
    (tmp_path / folder).mkdir(parents=True)
    source = CocoSource.find(tmp_path)
    assert source is not None
    assert source.files == {"val": tmp_path / file}
    assert image_folder(tmp_path, tmp_path / file, "val", {}) == tmp_path / folder


def test_an_absent_split_says_which_there_are(tmp_path: Path) -> None:
    write_coco(tmp_path)
    with pytest.raises(DataError, match=r"has no split 'test' \(found: train; read as coco\).*qskd split"):
        open_source(tmp_path).load("test")
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "absent")


coordinate = st.floats(0, 35, allow_nan=False).map(lambda number: round(number, 3))
side = st.floats(0.01, 60, allow_nan=False).map(lambda number: round(number, 3))
rows = st.lists(
    st.tuples(
        st.sampled_from([11, 5, 8]),
        st.sampled_from([3, 7, 90]),
        st.tuples(coordinate, coordinate.map(lambda y: y * 0.8), side, side),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows, order=st.randoms(use_true_random=False))
def test_any_valid_file_comes_back_as_ground_truth(tmp_path: Path, rows: list[Any], order: Any) -> None:
    entries = [
        annotation(number, image, category, list(box), iscrowd=int(crowd), area=box[2] * box[3])
        for number, (image, category, box, crowd) in enumerate(rows, start=1)
    ]
    order.shuffle(entries)
    index = load_coco(*write_coco(tmp_path, {**coco_content(), "annotations": entries}))
    truth = index.ground_truth()["annotations"]
    assert sorted(truth, key=lambda entry: entry["id"]) == sorted(entries, key=lambda entry: entry["id"])
    for at, record in enumerate(index.images):
        mine = [entry for entry in entries if entry["image_id"] == record.id and not entry["iscrowd"]]
        assert sorted(index.labels(at).tolist()) == sorted([3, 7, 90].index(entry["category_id"]) for entry in mine)
        expected = sorted(
            [x, y, min(x + width, 40), min(y + height, 30)] for x, y, width, height in (entry["bbox"] for entry in mine)
        )
        np.testing.assert_allclose(
            np.reshape(sorted(index.boxes(at).tolist()), (-1, 4)), np.array(expected).reshape(-1, 4)
        )
