"""Pascal VOC data that cannot be used, or that holds more than it should."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from builders_formats import CLASSES, PICTURES, encoded, expected, found, put
from builders_layouts import LAYOUTS
from builders_voc import voc_object, voc_page
from qskd.data.images import check_image
from qskd.data.index import DetectionIndex
from qskd.data.sources import open_source
from qskd.errors import DataError

SIZE = "<size><width>64</width><height>32</height></size>"
GOOD = voc_object((0, 1, 2, 3, 4))


def one_page(folder: Path, page: str | bytes) -> Path:
    put(folder / "JPEGImages" / "a.jpg", encoded("a.jpg", 64, 32))
    put(folder / "Annotations" / "a.xml", page)
    return folder


def page(inside: str = "", size: str = SIZE) -> str:
    return f"<annotation><filename>a.jpg</filename>{size}{inside}{GOOD}</annotation>"


def load(folder: Path) -> DetectionIndex:
    return open_source(folder, "voc").load("train")


def boxed(**corners: str) -> str:
    given = {"xmin": "1", "ymin": "2", "xmax": "11", "ymax": "12"} | corners
    inside = "".join(f"<{key}>{value}</{key}>" for key, value in given.items())
    return f"<object><name>dog</name><bndbox>{inside}</bndbox></object>"


def test_corners_are_taken_as_they_stand(tmp_path: Path) -> None:
    index = load(one_page(tmp_path, page(boxed())))
    assert index.class_names == ("cat", "dog")
    np.testing.assert_array_equal(index.boxes(0), [[1, 2, 11, 12], [1, 2, 4, 6]])


def test_difficult_objects_are_crowds_and_counted(tmp_path: Path) -> None:
    hard = voc_object((1, 5, 5, 9, 9), more="<difficult>1</difficult>")
    index = load(one_page(tmp_path, page(hard)))
    assert index.labels(0).tolist() == [0]
    assert [row["iscrowd"] for row in index.ground_truth()["annotations"]] == [0, 1]
    assert index.problems.lines() == ["1 objects marked difficult, neither learnt nor scored (a.xml)"]


BAD_PAGES = {
    "cut off": (page()[:80], r"a\.xml: not valid XML .*line 1"),
    "empty": ("", r"a\.xml: not valid XML"),
    "another root": ("<annotations/>", r"a\.xml: its root is <annotations>.*Export"),
    "html": ("<html><body/></html>", r"its root is <html>"),
    "no name": (page("<object><bndbox/></object>"), r"a\.xml: an object has no <name>"),
    "no corner": (
        page("<object><name>x</name><bndbox><xmin>1</xmin></bndbox></object>"),
        r"'x' has a <bndbox> without <y",
    ),
    "text": (page(boxed(xmin="left")), r"a\.xml: <xmin> is 'left'; expected a number"),
    "empty corner": (page(boxed(ymax="")), r"<ymax> is ''"),
    "NaN": (page(boxed(ymax="nan")), r"<ymax> is 'nan'"),
    "infinite": (page(boxed(ymax="inf")), r"<ymax> is 'inf'"),
    "huge": (page(boxed(ymax="1e308")), r"a\.xml: <ymax> is '1e308'"),
    "negative size": (page(size=SIZE.replace("64", "-64")), r"a\.xml: has the size -64 x 32"),
    "half a pixel": (page(size=SIZE.replace("64", "64.5")), r"a\.xml: has the size 64\.5 x 32"),
    "text size": (page(size=SIZE.replace("64", "wide")), r"a\.xml: <size> is 'wide'"),
    "huge size": (page(size=SIZE.replace("64", "1e308")), r"a\.xml: <size> is '1e308'"),
    "latin-1": (page().replace("cat", "größe").encode("latin-1"), r"a\.xml: is no UTF-8"),
    "not its encoding": (b'<?xml version="1.0" encoding="gb2312"?><a>\xff\xff</a>', "not in the encoding it declares"),
    "no encoding": (b'<?xml version="1.0" encoding="punycode"?><a>\xff\xff</a>', "is no UTF-8"),
    "half of utf-16": (page().encode("utf-16")[:-1], "not in the encoding it declares"),
    "zero byte": (page().replace("cat", "c\0t"), "not valid XML"),
    "no entity": (page().replace("cat", "&secret;"), "not valid XML"),
}


@pytest.mark.parametrize(("content", "message"), BAD_PAGES.values(), ids=BAD_PAGES.keys())
def test_a_bad_page_is_refused_by_name(content: str | bytes, message: str, tmp_path: Path) -> None:
    folder = one_page(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert str(folder / "Annotations" / "a.xml") in str(caught.value)


ENTITIES = {
    "billions": '<!DOCTYPE a [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    "a file": '<!DOCTYPE a [<!ENTITY cat SYSTEM "file:///etc/passwd">]>',
    "elsewhere": '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("declared", ENTITIES.values(), ids=ENTITIES.keys())
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_declared_entities_are_refused(declared: str, encoding: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.xml: declares entities"):
        load(one_page(tmp_path, (declared + page()).encode(encoding)))


@pytest.mark.timeout(20)
def test_deep_pages_are_read_or_refused(tmp_path: Path) -> None:
    index = load(one_page(tmp_path, page("<part>" * 100_000 + "</part>" * 100_000)))
    assert index.labels(0).tolist() == [0]


def test_boxes_that_cannot_be_used_are_counted_by_file(tmp_path: Path) -> None:
    swapped = boxed(xmin="11", xmax="1")
    index = load(one_page(tmp_path, page(swapped + boxed(xmax="1") + boxed(xmin="-5") + boxed(xmin="70", xmax="80"))))
    text = "\n".join(index.problems.lines())
    assert "2 degenerate boxes" in text
    assert "1 boxes clipped" in text
    assert "1 boxes entirely outside" in text
    assert text.count("a.xml [") == 4
    with pytest.raises(DataError, match=r"a\.xml \["):
        open_source(tmp_path).load("train", strict=True)


def test_what_pages_lack_is_counted(tmp_path: Path) -> None:
    LAYOUTS["voc-no sets"].write(tmp_path)
    put(tmp_path / "images" / "unseen.jpg", encoded("unseen.jpg", 8, 8))
    put(tmp_path / "annotations" / "a.xml", voc_page(PICTURES["train"][0], size="<size/>"))
    put(tmp_path / "annotations" / "b.two.xml", page("<object><name>cat</name></object>"))
    assert sorted(load(tmp_path).problems.lines()) == [
        "1 XML files without an image size, read from the image (a.xml)",
        "1 images without an XML file left out (unseen.jpg)",
        "1 objects without a box dropped (b.two.xml)",
    ]


def test_the_classes_are_those_of_all_splits_by_name(tmp_path: Path) -> None:
    LAYOUTS["voc-roboflow"].write(tmp_path)
    source = open_source(tmp_path)
    assert source.load("test").class_names == source.load("val").class_names == CLASSES


def test_sets_that_name_what_is_not_there_are_refused_by_line(tmp_path: Path) -> None:
    LAYOUTS["voc-devkit's year"].write(tmp_path)
    sets = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    put(sets / "train.txt", "a\n\n../../etc/passwd\n")
    with pytest.raises(
        DataError, match=r"train\.txt, line 3: names '\.\./\.\./etc/passwd', but there is no .*passwd\.xml"
    ):
        open_source(tmp_path)
    put(sets / "train.txt", "\n")
    with pytest.raises(DataError, match=r"train\.txt: is empty"):
        open_source(tmp_path)
    put(sets / "train.txt", "x" * 5000 + "\0")
    with pytest.raises(DataError, match=r"train\.txt, line 1"):
        open_source(tmp_path)


def test_a_page_whose_image_is_absent_is_refused_and_no_name_leads_out(tmp_path: Path) -> None:
    put(tmp_path / "secret.jpg", encoded("secret.jpg", 64, 32))
    folder = one_page(tmp_path / "data", page())
    for name in ("../../secret.jpg", "..\\..\\secret.jpg", str(tmp_path / "secret.jpg"), "\0", "x" * 5000):
        put(folder / "Annotations" / "b.xml", page().replace("a.jpg", name.replace("\0", "&#32;")))
        with pytest.raises(DataError, match=r"b\.xml: its image is not in .*JPEGImages: neither b\.jpg"):
            load(folder)


def test_a_file_name_without_suffix_is_not_cut_at_a_dot(tmp_path: Path) -> None:
    folder = one_page(tmp_path, page())
    put(folder / "JPEGImages" / "img.jpg", encoded("img.jpg", 64, 32))
    put(folder / "JPEGImages" / "img.01.jpg", encoded("img.01.jpg", 64, 32))
    put(folder / "Annotations" / "other.xml", page().replace("a.jpg", "img.01"))
    assert {record.path.name for record in load(folder).images} == {"a.jpg", "img.01.jpg"}


def test_a_wrong_size_is_found_when_the_image_is_looked_at(tmp_path: Path) -> None:
    index = load(one_page(tmp_path, page(size=SIZE.replace("64", "640"))))
    with pytest.raises(DataError, match=r"a\.jpg: the image is 64 x 32 .*says 640 x 32"):
        check_image(index.images[0])


def test_of_several_years_one_has_to_be_given(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        shutil.copytree(LAYOUTS["voc-no sets"].write(tmp_path / "one"), tmp_path / "kit" / year, dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"several sets of VOC data: .*VOC2007.*VOC2012.*Give one"):
        open_source(tmp_path / "kit")
    assert found(open_source(tmp_path / "kit" / "VOC2012").load("train")).keys() == expected("train").keys()


def test_of_two_folders_of_a_split_none_is_picked(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        one_page(tmp_path / "data" / split, page())
    source = open_source(tmp_path / "data")
    assert source.splits == ("train",)
    with pytest.raises(DataError, match=r"several files or folders for the split 'val': .*/val, .*/valid"):
        source.load("val")


def test_data_without_any_object_has_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no XML file names an object"):
        load(one_page(tmp_path, page().replace(GOOD, "")))


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_an_image_is_refused(tmp_path: Path) -> None:
    folder = one_page(tmp_path, page())
    (folder / "JPEGImages" / "a.jpg").unlink()
    os.mkfifo(folder / "JPEGImages" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg"):
        load(folder)
