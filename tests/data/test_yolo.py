"""YOLO data that cannot be used, or that holds more than it should."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from builders_formats import CLASSES, PICTURES, encoded, expected, found, put, put_images
from builders_layouts import LAYOUTS
from builders_yolo import put_labels, put_yaml
from qskd.data.formats.yolo import YoloSource
from qskd.data.formats.yolo_folders import label_file
from qskd.data.index import DetectionIndex
from qskd.data.sources import open_source
from qskd.errors import DataError


def one_image(folder: Path, labels: str | bytes, description: str | bytes | None = None) -> Path:
    """An image of 64 x 32 pixels with a label file."""
    put(folder / "images" / "a.jpg", encoded("a.jpg", 64, 32))
    put(folder / "labels" / "a.txt", labels)
    if description is None:
        put_yaml(folder / "data.yaml", train="images")
    else:
        put(folder / "data.yaml", description)
    return folder


def load(folder: Path) -> DetectionIndex:
    return open_source(folder, "yolo").load("train")


def test_a_box_is_a_centre_and_a_size_in_fractions(tmp_path: Path) -> None:
    index = load(one_image(tmp_path, "2 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.5 0.5"))
    np.testing.assert_allclose(index.boxes(0), [[24, 8, 40, 24], [0, 0, 32, 16]])  # of 64 x 32
    assert index.labels(0).tolist() == [2, 0]


def test_an_outline_is_its_bounding_box(tmp_path: Path) -> None:
    index = load(one_image(tmp_path, "1 0.5 0.25 0.75 0.5 0.25 1"))
    np.testing.assert_allclose(index.boxes(0), [[16, 8, 48, 32]])


def test_an_oriented_box_is_its_bounding_box(tmp_path: Path) -> None:
    index = load(one_image(tmp_path, "1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5"))
    np.testing.assert_allclose(index.boxes(0), [[16, 8, 48, 24]])


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n\n", "  \n\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_ends_of_lines_and_marks_of_bytes_make_no_difference(end: str, mark: bytes, tmp_path: Path) -> None:
    index = load(one_image(tmp_path, mark + f"0 .5 .5 .5 .5{end}1\t0.5  0.5 0.5 0.5{end}".encode()))
    assert index.labels(0).tolist() == [0, 1]


BAD_LABELS = {
    "text": ("0 0.5 0.5 0.5 0.5\ncat 0.5 0.5 0.5 0.5", r"a\.txt, line 2: 'cat .* are not all numbers"),
    "pixels": ("0 30 20 10 10", r"a\.txt, line 1: 30 is no fraction.*not pixels"),
    "unknown class": ("3 0.5 0.5 0.5 0.5", r"a\.txt, line 1: class 3; expected .* 0 to 2.*data\.yaml names 3 classes"),
    "negative class": ("-1 0.5 0.5 0.5 0.5", r"a\.txt, line 1: class -1"),
    "half a class": ("0.5 0.5 0.5 0.5 0.5", r"line 1: class 0\.5"),
    "confidence": ("0 0.5 0.5 0.5 0.5 0.93", r"line 1: has 6 numbers.*confidence"),
    "too few": ("0 0.5 0.5", "line 1: has 3 numbers"),
    "class alone": ("\n\n0", "line 3: has 1 numbers"),
    "NaN": ("0 nan 0.5 0.5 0.5", "line 1: .*finite"),
    "infinite": ("0 0.5 0.5 inf 0.5", "line 1: .*finite"),
    "huge": ("0 0.5 0.5 1e308 0.5", "line 1: .*no fraction"),
    "overflowing": ("0 0.5 0.5 1e999 0.5", "line 1: .*finite"),
    "huge class": ("1e300 0.5 0.5 0.1 0.5", "line 1: class 1e300"),
    "commas": ("0,0.5,0.5,0.5,0.5", "line 1: .*not all numbers"),
    "zero bytes": ("0 0.5 0.5 0.5 0.5\0", "line 1: .*not all numbers"),
    "utf-16": ("0 0.5 0.5 0.5 0.5".encode("utf-16"), r"a\.txt: is no UTF-8 text"),
    "binary": (bytes(range(256)), r"a\.txt: is no UTF-8 text"),
    "long line": ("0 " * 100_000, r"a\.txt, line 1: has 100000 numbers"),
}


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS.values(), ids=BAD_LABELS.keys())
def test_a_bad_label_is_refused_by_file_and_line(labels: str | bytes, message: str, tmp_path: Path) -> None:
    folder = one_image(tmp_path, labels)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert len(str(caught.value)) < 1000


def test_boxes_that_cannot_be_used_are_counted_by_file_and_line(tmp_path: Path) -> None:
    labels = "0 0.5 0.5 0 0.5\n0 0.5 0.5 -0.5 0.5\n1 1.5 0.5 0.2 0.2\n2 0.9 0.5 0.4 0.5\n"
    problems = load(one_image(tmp_path, labels)).problems
    text = "\n".join(problems.lines())
    assert sorted(problems.counts.values()) == [1, 1, 2]
    assert "2 degenerate boxes" in text
    for line in (1, 2, 3, 4):
        assert f"a.txt, line {line} [" in text
    with pytest.raises(DataError, match=r"a\.txt, line 3"):
        open_source(tmp_path).load("train", strict=True)


def test_images_without_a_label_file_are_empty_and_counted(tmp_path: Path) -> None:
    put_images(tmp_path / "images", "train")
    put_labels(tmp_path / "labels", "train", part=slice(0, 1))
    put_yaml(tmp_path / "data.yaml", train="images")
    index = load(tmp_path)
    assert len(index) == 4
    assert index.problems.lines()[0].startswith("3 images without a label file, taken for empty (b.two.png")


BAD_DESCRIPTIONS = {
    "no splits": ("names: [a]\nnc: 1", "data.yaml: names no images under train, val or test"),
    "no names": ("train: images", r"data.yaml: 'names' is None; expected the class names"),
    "names a text": ("train: images\nnames: cat", "data.yaml: 'names' is 'cat'"),
    "empty names": ("train: images\nnames: []", "data.yaml: 'names' is"),
    "names of names": ("train: images\nnames: [[a], b]", r"data.yaml: 'names' holds \['a'\]"),
    "empty name": ("train: images\nnames: [a, '']", "data.yaml: 'names' holds ''"),
    "names with a gap": ("train: images\nnames: {0: a, 2: b}", r"data.yaml: 'names' has the numbers \[0, 2\]"),
    "names by name": ("train: images\nnames: {cat: 0}", "data.yaml: the keys of 'names' must be class numbers"),
    "names twice": ("train: images\nnames: [a, a, b]", "data.yaml: the category name 'a' occurs more than once"),
    "wrong count": ("train: images\nnc: 4\nnames: [a, b, c]", "data.yaml: nc is 4, but 'names' holds 3"),
    "absent images": ("train: nowhere\nnames: [a]", r"data.yaml: 'nowhere' is not there; looked for it from .*\."),
    "images a number": ("train: [[1]]\nnames: [a]", "data.yaml: names images as"),
    "images a mapping": ("train: {a: b}\nnames: [a]", "data.yaml: names images as"),
    "whole disk": ("train: /\nnames: [a]", "data.yaml: '/' is neither a folder of images nor"),
    "any file": ("train: /etc/passwd\nnames: [a]", "data.yaml: '/etc/passwd' is neither a folder of images nor"),
    "endless file": ("train: /dev/zero\nnames: [a]", "data.yaml: '/dev/zero' is neither"),
    "above the disk": ("train: " + "../" * 40 + "\nnames: [a]", "data.yaml: '.*' is neither"),
    "zero byte": (b"train: a\0b\nnames: [a]", "data.yaml: not valid YAML"),
    "zero byte escaped": ('train: "a\\0b"\nnames: [a]', "data.yaml: 'a\0b' is not there"),
    "long name": (f"train: {'x' * 9000}\nnames: [a]", "data.yaml: 'x+' is not there"),
    "cut off": ("train: [images", "data.yaml: not valid YAML"),
    "a list": ("- train", "data.yaml: holds a list"),
    "empty": ("", "data.yaml: holds nothing"),
    "utf-16": ("train: images\nnames: [a]".encode("utf-16"), r"data.yaml: is no UTF-8"),
    "latin-1": ("train: images\nnames: [größe]".encode("latin-1"), r"data.yaml: is no UTF-8"),
    "too deep": ("train: " + "[" * 50_000, "data.yaml: not valid YAML"),
    "far too long": ("names: [a]\ntrain: images\n#" + "x" * (1 << 20), "data.yaml: has .* characters"),
}


@pytest.mark.parametrize(("text", "message"), BAD_DESCRIPTIONS.values(), ids=BAD_DESCRIPTIONS.keys())
def test_a_bad_description_is_refused_by_name(text: str | bytes, message: str, tmp_path: Path) -> None:
    folder = one_image(tmp_path, "0 0.5 0.5 0.5 0.5", text)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert str(tmp_path / "data.yaml") in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_tag_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made by a tag"
    text = f"train: images\nnames: !!python/object/apply:os.system ['touch \"{target}\"']\nnc: !!float nan\n"
    load(one_image(tmp_path / "data", "0 0.5 0.5 0.5 0.5", text))
    assert not target.exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("key", ["names", "train", "path"])
def test_aliases_that_stand_for_billions_are_refused(key: str, tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    settings = {"names": "[a]", "train": "images", key: "*a11"}
    lines += [f"{name}: {value}" for name, value in settings.items()]
    with pytest.raises(DataError, match=r"data\.yaml: not valid YAML.*alias"):
        load(one_image(tmp_path, "", "\n".join(lines)))


def test_class_names_stay_the_text_they_are(tmp_path: Path) -> None:
    index = load(one_image(tmp_path, "0 0.5 0.5 0.5 0.5", "train: images\nnames: [no, on, 007, 1e3, ~x, 2020-99-99]"))
    assert index.class_names == ("no", "on", "007", "1e3", "~x", "2020-99-99")


def test_a_split_whose_images_are_absent_is_refused_when_it_is_read(tmp_path: Path) -> None:
    source = open_source(LAYOUTS["yolo-test named but absent"].write(tmp_path))
    with pytest.raises(DataError, match=r"data\.yaml: 'test-dev2017.txt' is not there"):
        source.load("test")


def test_folders_without_a_description_are_no_choice_and_need_labels(tmp_path: Path) -> None:
    put(tmp_path / "classes.txt", "a\n")
    for split in ("train", "val", "valid", "test"):
        put(tmp_path / split / "images" / "a.jpg", encoded("a.jpg", 64, 32))
        if split != "test":
            put(tmp_path / split / "labels" / "a.txt", "0 .5 .5 .5 .5")
    source = open_source(tmp_path)
    assert source.splits == ("train",)
    with pytest.raises(DataError, match=r"several files or folders for the split 'val': .*/val, .*/valid"):
        source.load("val")
    with pytest.raises(DataError, match=r"test holds images of the split 'test', but there are no annotations"):
        source.load("test")


def test_a_path_that_is_not_there_is_told_with_what_was_tried(tmp_path: Path) -> None:
    put(tmp_path / "data.yaml", "path: ../datasets/mine\ntrain: images/train\nnames: [a]\n")
    wanted = r"'images/train' is not there.*Its 'path: .*/mine' is not there \(tried .*\.\./datasets/mine, .*/mine\)"
    with pytest.raises(DataError, match=wanted):
        open_source(tmp_path)


@pytest.mark.parametrize("path", ["../datasets/mine", "C:\\data\\mine", "/nowhere/mine"])
def test_a_path_that_was_moved_beside_its_description_is_found(path: str, tmp_path: Path) -> None:
    put(tmp_path / "mine" / "images" / "train" / "a.jpg", encoded("a.jpg", 64, 32))
    put(tmp_path / "mine" / "labels" / "train" / "a.txt", "0 .5 .5 .5 .5")
    put(tmp_path / "mine.yaml", f"path: {path}\ntrain: images/train\nnames: [a]\n")
    assert open_source(tmp_path).load("train").images.folder == tmp_path / "mine" / "images" / "train"


def test_labels_without_names_of_classes_are_refused_with_what_to_write(tmp_path: Path) -> None:
    put_images(tmp_path / "images" / "train", "train")
    put_labels(tmp_path / "labels" / "train", "train")
    with pytest.raises(DataError, match=r"holds YOLO labels.*data\.yaml.*classes\.txt"):
        open_source(tmp_path)


def test_images_none_of_which_has_labels_are_refused_with_where_they_should_be(tmp_path: Path) -> None:
    put_images(tmp_path / "images", "train")
    put_yaml(tmp_path / "data.yaml", train="images")
    with pytest.raises(
        DataError, match=r"none of the 4 images of 'train' has a label file; looked for .*labels/a\.txt"
    ):
        load(tmp_path)
    put_yaml(tmp_path / "data.yaml", train="labels")
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match=r"data\.yaml: no image in .*labels"):
        load(tmp_path)


LISTS = {
    "absent image": ("images/z.jpg", r"train\.txt, line 1: there is no image 'images/z\.jpg'"),
    "second line": ("images/a.jpg\n\nimages/z.jpg", r"train\.txt, line 3: there is no image"),
    "no image": ("data.yaml", r"train\.txt, line 1: there is no image 'data\.yaml'"),
    "outside": ("/etc/passwd", r"train\.txt, line 1: there is no image '/etc/passwd'"),
    "zero byte": ("images/a\0.jpg", r"train\.txt, line 1: there is no image"),
    "folder": ("images", r"train\.txt, line 1: there is no image"),
    "endless": ("/dev/zero", r"train\.txt, line 1: there is no image"),
    "empty": ("\n", "no image in"),
    "binary": (b"\xff\xfe\x00", r"train\.txt: is no UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), LISTS.values(), ids=LISTS.keys())
def test_a_bad_list_is_refused_by_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    put(tmp_path / "train.txt", content)
    folder = one_image(tmp_path, "0 0.5 0.5 0.5 0.5")
    put_yaml(folder / "data.yaml", train="train.txt")
    with pytest.raises(DataError, match=message):
        load(folder)


@pytest.mark.timeout(20)
def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path: Path) -> None:
    folder = one_image(tmp_path, "0 0.5 0.5 0.5 0.5")
    os.mkfifo(folder / "train.txt")
    os.mkfifo(folder / "images" / "b.txt")
    put(folder / "images" / "b.jpg", encoded("a.jpg", 64, 32))
    put_yaml(folder / "data.yaml", train=["images", "train.txt"])
    with pytest.raises(DataError, match=r"train\.txt' is neither"):
        load(folder)
    put_yaml(folder / "data.yaml", train="images")
    assert len(load(folder)) == 2
    (folder / "images" / "b.jpg").unlink()
    os.mkfifo(folder / "images" / "b.jpg")
    assert len(load(folder)) == 1
    (folder / "data.yaml").unlink()
    os.mkfifo(folder / "data.yaml")
    with pytest.raises(DataError, match="holds YOLO labels"):
        load(folder)


def test_images_of_the_same_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for part in ("one", "two"):
        put(tmp_path / part / "images" / "a.jpg", encoded("a.jpg", 64, 32))
        put(tmp_path / part / "labels" / "a.txt", f"{int(part == 'two')} 0.5 0.5 0.5 0.5")
    put_yaml(tmp_path / "data.yaml", train=["one/images", "two/images", "one/images"])
    index = load(tmp_path)
    assert [record.path.parent.parent.name for record in index.images] == ["one", "two"]
    assert [index.labels(at).tolist() for at in range(2)] == [[0], [1]]


def test_the_label_file_is_the_last_images_turned_into_labels(tmp_path: Path) -> None:
    image = put(tmp_path / "images" / "x" / "images" / "train" / "a.b.jpg", b"")
    assert label_file(image) is None
    beside = put(tmp_path / "images" / "x" / "images" / "train" / "a.b.txt", "")
    assert label_file(image) == beside
    first = put(tmp_path / "images" / "x" / "labels" / "train" / "a.b.txt", "")
    assert label_file(image) == first


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    from PIL import Image

    folder = one_image(tmp_path, "0 0.5 0.25 0.5 0.5")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(folder / "images" / "a.jpg", exif=exif)
    index = load(folder)
    assert (index.images[0].height, index.images[0].width) == (64, 32)
    np.testing.assert_allclose(index.boxes(0), [[8, 0, 24, 32]])


def test_a_description_of_a_run_is_none_of_data(tmp_path: Path) -> None:
    put(tmp_path / "model.yaml", "nc: 80\nbackbone: []\n")
    put(tmp_path / "args.yaml", "train: true\nval: true\n")
    put(tmp_path / "broken.yaml", "[" * 3000)
    put(tmp_path / "date.yaml", "day: 2001-99-99\n")
    assert YoloSource.find(tmp_path) is None


def test_the_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = {2: CLASSES[2], 0: CLASSES[0], 1: CLASSES[1]}
    put_images(tmp_path / "images", "train")
    put_labels(tmp_path / "labels", "train")
    put(tmp_path / "data.yaml", yaml.safe_dump({"train": "images", "names": names}, sort_keys=False))
    index = load(tmp_path)
    assert index.class_names == CLASSES
    assert found(index).keys() == expected("train").keys()
    assert len(PICTURES["train"]) == 4
