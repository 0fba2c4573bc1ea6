"""What lies in a folder is told by looking, and options say what looking cannot tell."""

import os
from pathlib import Path
from typing import Any

import pytest

import qskd
from builders_data import write_coco
from builders_formats import CLASSES, expected, found, put, put_images
from builders_layouts import LAYOUTS
from builders_runs import NAMES
from builders_yolo import put_labels, put_yaml
from qskd.data.formats.layout import canonical, images_below, in_order, locate
from qskd.data.sources import FORMATS, open_source
from qskd.errors import ConfigError, DataError
from qskd.runs.building import open_split, open_splits
from qskd.runs.options import SourceOptions

TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"


def several(folder: Path, *names: str) -> Path:
    for name in names:
        LAYOUTS[name].write(folder)
    return folder


def test_of_two_formats_in_a_folder_the_documented_one_is_read(tmp_path: Path) -> None:
    everything = ("coco-images of a split", "hf-one split", "yolo-ultralytics", "voc-devkit's year")
    folder = several(tmp_path / "all", *everything)
    assert open_source(folder).format == "coco"
    assert open_source(several(tmp_path / "but coco", *everything[1:])).format == "hf"
    assert open_source(several(tmp_path / "but hf", *everything[2:])).format == "yolo"
    assert open_source(several(tmp_path / "voc", *everything[3:])).format == "voc"
    for format in ("coco", "hf", "yolo", "voc"):
        assert open_source(folder, format).format == format


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_of_something_else_lists_what_it_may_hold(format: str, tmp_path: Path) -> None:
    put(tmp_path / "report.pdf", b"%PDF")
    put(tmp_path / "settings.json", {"images": 3, "info": "none"})
    put(tmp_path / "run.yaml", "train: true\nlr: 0.1\n")
    put(tmp_path / "metadata.csv", "city,people\nRome,3\n")
    put(tmp_path / "notes" / "a.txt", "hello")
    with pytest.raises(DataError, match=r"(?s)holds no .*COCO .*YOLO .*VOC .*HF ") as caught:
        open_source(tmp_path, format)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["coco-2017", "coco-roboflow", "yolo-ultralytics", "voc-devkit's year"])
def test_data_one_folder_down_is_opened(name: str, tmp_path: Path) -> None:
    LAYOUTS[name].write(tmp_path / "aquarium.v2")
    put(tmp_path / "README.txt", "unpacked")
    put(tmp_path / "__MACOSX" / "train" / "._a.jpg", b"")
    put(tmp_path / "notes" / "a.txt", "hello")
    source = open_source(tmp_path)
    assert str(tmp_path / "aquarium.v2") in source.origin
    assert found(source.load("train")) == found(open_source(tmp_path / "aquarium.v2").load("train"))


def test_of_several_data_sets_one_folder_down_one_has_to_be_given(tmp_path: Path) -> None:
    for place in ("first", "second"):
        LAYOUTS["coco-2017"].write(tmp_path / place)
    with pytest.raises(DataError, match=r"several data sets: .*first, .*second\. Give one of them"):
        open_source(tmp_path)


def test_what_is_wrong_with_the_data_one_folder_down_is_told(tmp_path: Path) -> None:
    put(tmp_path / "inner" / "data.yaml", "train: [a\n  b: c")
    with pytest.raises(DataError, match=r"inner/data\.yaml: not valid YAML"):
        open_source(tmp_path)


def test_an_empty_folder_lists_what_it_may_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations/instances_train\.json"):
        open_source(tmp_path)


BAD_PLACES = [
    ("nowhere/at/all", "does not exist"),
    ("./nowhere", "does not exist"),
    ("~nobody-here/data", "does not exist"),
    ("/" + "x" * 5000, "does not exist"),
    ("/a\0b", "does not exist"),
    ("some/thing", "is no folder here, and as a dataset it cannot be loaded"),
    ("thing", "is no folder here, and as a dataset it cannot be loaded"),
]


@pytest.mark.parametrize(("place", "message"), BAD_PLACES, ids=range(len(BAD_PLACES)))
def test_a_place_that_is_not_there_is_named(place: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_source(place)
    assert place[:50].strip("~./") in str(caught.value)


def test_a_file_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"instances_train\.json is an annotation file.*--train_annotations"):
        open_source(write_coco(tmp_path)[0])
    with pytest.raises(DataError, match=r"data\.zip is a file.*unpack"):
        open_source(put(tmp_path / "data.zip", b"PK"))


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match=r"no data format 'csv'.*auto, coco, yolo, voc, hf"):
        open_source(".", "csv")


def test_a_folder_called_like_a_loader_of_the_library_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS["hf-parquet"].write(tmp_path / "parquet")
    monkeypatch.chdir(tmp_path)
    assert open_source("parquet").splits == ("train", "val", "test")


@pytest.mark.parametrize("name", ["train", "Train", "training", "train2017"])
def test_a_split_has_several_names(name: str) -> None:
    assert canonical(name) == "train"
    assert in_order(["z", "test", "a", "train", "val"]) == ("train", "val", "test", "a", "z")


def test_links_in_circles_are_followed_once(tmp_path: Path) -> None:
    put_images(tmp_path / "images", "train")
    put_labels(tmp_path / "labels", "train")
    for name, target in (("up", ".."), ("self", "."), ("root", "/"), ("again", str(tmp_path / "images"))):
        (tmp_path / "images" / name).symlink_to(target, target_is_directory=True)
    put(tmp_path / "images" / ".ipynb_checkpoints" / "a-checkpoint.jpg", b"")
    put(tmp_path / "images" / "__MACOSX" / "a.jpg", b"")
    assert {path.name for path in images_below(tmp_path / "images")} == set(expected("train"))
    put_yaml(tmp_path / "data.yaml", train="images")
    assert len(open_source(tmp_path).load("train")) == 4


LOCATED = [
    ("a/b.jpg", "a/b.jpg"),
    ("./a/b.jpg", "a/b.jpg"),
    ("../a/b.jpg", "a/b.jpg"),
    ("../../a/b.jpg", "a/b.jpg"),
    ("/home/me/a/b.jpg", "a/b.jpg"),
    ("C:\\data\\a\\b.jpg", "a/b.jpg"),
    ("/somewhere/else/b.jpg", None),  # one part alone says too little
    ("b.jpg", None),
    ("/somewhere/train", "train"),  # but for a split's name
    ("", None),
    ("a\0/b.jpg", None),
    ("a/" * 5000, None),
    ("x" * 300, None),
    ("../" * 1300, None),
]


@pytest.mark.parametrize(("name", "where"), LOCATED, ids=range(len(LOCATED)))
def test_a_name_of_another_machine_is_found_by_its_last_parts(name: str, where: str | None, tmp_path: Path) -> None:
    base = tmp_path / "base"
    put(base / "a" / "b.jpg", b"")
    (base / "train").mkdir()
    place = locate(name, (base,))
    assert place == (None if where is None else base / where) or (name.startswith("../" * 9) and place == Path("/"))


def test_a_neighbour_of_the_folder_is_not_taken_for_its_own(tmp_path: Path) -> None:
    put(tmp_path / "base" / "train" / "a.jpg", b"")
    put(tmp_path / "train" / "a.jpg", b"")
    assert locate("../train", (tmp_path / "base",)) == tmp_path / "base" / "train"


# --- options of runs


def source(**options: Any) -> SourceOptions:
    return SourceOptions(**options)


@pytest.mark.parametrize("name", ["yolo-roboflow", "voc-devkit", "hf-lists", "coco-roboflow"])
def test_runs_read_every_format(name: str, tmp_path: Path) -> None:
    data = LAYOUTS[name].write(tmp_path / "data")
    splits = open_splits(source(data=str(data)))
    assert splits.class_names == CLASSES
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (4, 2)


def test_runs_read_the_splits_they_are_told(tmp_path: Path) -> None:
    data = LAYOUTS["yolo-roboflow"].write(tmp_path / "data")
    splits = open_splits(source(data=str(data), train_split="val", val_split="test"))
    assert splits.val is not None
    assert found(splits.train).keys() == expected("val").keys()
    assert found(splits.val).keys() == expected("test").keys()


def test_an_absent_split_is_refused_with_those_there_are(tmp_path: Path) -> None:
    data = LAYOUTS["yolo-several folders"].write(tmp_path / "data")
    with pytest.raises(DataError, match=r"no split 'val' \(found: train; read as yolo\).*qskd split"):
        open_splits(source(data=str(data)))
    with pytest.raises(DataError, match=r"no split 'nights'.*--val_annotations"):
        open_splits(source(data=str(data), val_split="nights"))


def test_runs_read_the_format_they_are_told(tmp_path: Path) -> None:
    folder = several(tmp_path, "coco-images of a split", "yolo-ultralytics")
    put(folder / "data.yaml", (folder / "data.yaml").read_text().replace("cat", "lynx"))
    for format, name in (("auto", "cat"), ("coco", "cat"), ("yolo", "lynx")):
        index = open_split(source(data=str(folder), data_format=format), "train")
        assert index is not None
        assert index.class_names[0] == name
    with pytest.raises(DataError, match="holds no voc data"):
        open_split(source(data=str(folder), data_format="voc"), "train")


@pytest.mark.parametrize("box_format", ["xyxy", "xyxy_fraction", "cxcywh_fraction"])
def test_runs_read_boxes_of_the_form_they_are_told(box_format: str, tmp_path: Path) -> None:
    layout = next(one for one in LAYOUTS.values() if one.box_format == box_format)
    data = layout.write(tmp_path / "data")
    index = open_split(source(data=str(data), box_format=box_format), "train")
    assert index is not None
    wanted = [one for _, _, objects in expected("train").values() for one in objects]
    got = [one for _, _, objects in found(index).values() for one in objects]
    assert [corners for _, corners in got] == [pytest.approx(corners) for _, corners in wanted]
    with pytest.raises(DataError, match="--box_format"):
        open_split(source(data=str(data)), "train")


def test_evaluation_takes_a_split_of_yolo_data(scenes: Path, tmp_path: Path) -> None:
    """The drawn scenes as YOLO data score what they score as COCO data."""
    reference = open_source(scenes).load("val")
    for at, record in enumerate(reference.images):
        put(tmp_path / "images" / record.path.name, record.path.read_bytes())
        rows = zip(reference.labels(at).tolist(), reference.boxes(at).tolist(), strict=True)
        lines = [f"{c} {(x + u) / 128} {(y + v) / 128} {(u - x) / 64} {(v - y) / 64}\n" for c, (x, y, u, v) in rows]
        put(tmp_path / "labels" / f"{record.path.stem}.txt", "".join(lines))
    put_yaml(tmp_path / "data.yaml", names=list(NAMES), nc=len(NAMES), test="images")
    how: dict[str, Any] = {"model": TEACHER, "image_size": 64}
    scores = qskd.evaluate(data=tmp_path, split="test", **how)
    wanted = qskd.evaluate(data=scenes, **how)
    for key in ("AP", "AP50", "AR100", "num_images"):
        assert scores[key] == pytest.approx(wanted[key], abs=1e-3)
    with pytest.raises((ConfigError, DataError), match="csv"):
        qskd.evaluate(data=tmp_path, split="test", data_format="csv", **how)


def test_a_relative_folder_with_a_list_of_absolute_paths_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS["yolo-list absolute"].write(tmp_path / "data")
    put(
        tmp_path / "data" / "data.yaml",
        (tmp_path / "data" / "data.yaml").read_text().replace("lists/val.txt", "images"),
    )
    monkeypatch.chdir(tmp_path)
    assert found(open_source("data").load("train")).keys() == expected("train").keys()
    assert len(open_source("data").load("val")) == 7
    assert os.getcwd() == str(tmp_path)
