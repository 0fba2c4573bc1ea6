"""Hugging Face datasets that cannot be used, or that hold more than they should."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Image, Value
from PIL.Image import Exif as ExifData
from PIL.Image import fromarray as picture_of

from builders_formats import CLASSES, encoded, put, put_images
from builders_hub import class_label, hub_dataset, hub_features, hub_rows, value
from builders_layouts import LAYOUTS
from qskd.cli import main
from qskd.data.formats.hub import HubSource
from qskd.data.images import read_image
from qskd.data.index import DetectionIndex
from qskd.data.sources import open_source
from qskd.errors import DataError

PICTURE = {"bytes": encoded("a.jpg", 64, 32), "path": None}


def saved(folder: Path, objects: Any, label: Any = None, image: Any = PICTURE) -> Path:
    """One row with these objects, saved."""
    features = hub_features(value("int64") if label is None else label)
    Dataset.from_list([{"image": image, "objects": objects}], features=features).save_to_disk(str(folder))
    return folder


def load(folder: Path) -> DetectionIndex:
    return open_source(folder, "hf").load("train")


BAD_OBJECTS: dict[str, tuple[Any, Any, str]] = {
    "a label too few": ({"bbox": [[1, 2, 3, 4]], "category": []}, ClassLabel(names=["a"]), "has 1 boxes but 0 labels"),
    "three numbers": ({"bbox": [[1, 2, 3]], "category": [0]}, None, r"has the box \[1.0, 2.0, 3.0\]; expected four"),
    "no box": ({"bbox": [None], "category": [0]}, None, "has the box None"),
    "a hole in a box": ({"bbox": [[1, None, 3, 4]], "category": [0]}, None, "has the box"),
    "NaN": ({"bbox": [[1, float("nan"), 3, 4]], "category": [0]}, None, "has the box .*finite"),
    "infinite": ({"bbox": [[1, float("inf"), 3, 4]], "category": [0]}, None, "has the box .*finite"),
    "huge": ({"bbox": [[1, 1e308, 3, 4]], "category": [0]}, None, "has the box .*finite"),
    "no label": ({"bbox": [[1, 2, 3, 4]], "category": [None]}, None, "has the label None"),
    "no name of a label": (
        {"bbox": [[1, 2, 3, 4]], "category": [-1]},
        ClassLabel(names=["a"]),
        "has the label -1.*'a'",
    ),
    "empty text": ({"bbox": [[1, 2, 3, 4]], "category": [""]}, Value("string"), "has the label ''"),
    "a fraction": ({"bbox": [[1, 2, 3, 4]], "category": [0.5]}, Value("float64"), r"has the label 0\.5"),
}


@pytest.mark.parametrize(("objects", "label", "message"), BAD_OBJECTS.values(), ids=BAD_OBJECTS.keys())
def test_a_bad_row_is_refused_by_number(objects: Any, label: Any, message: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "data", objects, label)
    with pytest.raises(DataError, match=f"(?s)row 0 of train: {message}") as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_nothing_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of it has an object"):
        load(saved(tmp_path, None))


BAD_IMAGES = {
    "none": (None, "row 0 of train: has no image"),
    "not there": ({"bytes": None, "path": "/nowhere/a.jpg"}, "is outside of"),
    "text": ({"bytes": b"hello", "path": None}, "row 0 of train: not an image file"),
    "empty": ({"bytes": b"", "path": None}, "row 0 of train: not an image file"),
    "cut off": ({"bytes": PICTURE["bytes"][:30], "path": None}, "row 0 of train: "),
}


@pytest.mark.parametrize(("image", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_refused_by_row(image: Any, message: str, tmp_path: Path) -> None:
    rows = [{"image": image, "objects": {"bbox": [[1.0, 2, 3, 4]], "category": [0]}}]
    source = HubSource("somewhere", {"train": Dataset.from_list(rows, hub_features(value("int64")))}, folder="/data")
    with pytest.raises(DataError, match=message):
        source.load("train")


def test_no_row_reads_images_outside_of_its_folder(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    secret = put(tmp_path / "secret.jpg", PICTURE["bytes"])
    objects = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [0]}
    for number, path in enumerate((str(secret), f"{tmp_path}/data/../secret.jpg", "/etc/passwd", "/dev/zero")):
        (tmp_path / f"{number}").mkdir()
        row = {"image": {"bytes": None, "path": path}, "objects": objects}
        typed = pa.Table.from_pylist(
            [row],
            pa.schema(
                {
                    "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
                    "objects": pa.struct({"bbox": pa.list_(pa.list_(pa.float64())), "category": pa.list_(pa.int64())}),
                }
            ),
        )
        pq.write_table(typed, str(tmp_path / f"{number}" / "train.parquet"))
        with pytest.raises(DataError, match=r"row 0 of train: its image '.*' is outside of"):
            load(tmp_path / f"{number}")


def test_an_image_folder_that_leads_out_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "secret.jpg", PICTURE["bytes"])
    put(tmp_path / "data" / "a.jpg", PICTURE["bytes"])
    row = '{"file_name": "../secret.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": ["cat"]}}\n'
    put(tmp_path / "data" / "metadata.jsonl", row)
    with pytest.raises(DataError, match="data: looks like a Hugging Face dataset, but cannot be loaded"):
        load(tmp_path / "data")


SPOILT = {
    "state": ("state.json", b"{"),
    "state of another kind": ("state.json", b"[]"),
    "description": ("dataset_info.json", b"\xff"),
    "rows": ("data-00000-of-00001.arrow", b"ARROW"),
    "no rows": ("data-00000-of-00001.arrow", b""),
}


@pytest.mark.parametrize(("name", "content"), SPOILT.values(), ids=SPOILT.keys())
def test_spoilt_files_of_save_to_disk_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    hub_dataset("train", class_label()).save_to_disk(str(tmp_path))
    put(tmp_path / name, content)
    with pytest.raises(DataError, match="save_to_disk's files cannot be read") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["train.parquet", "metadata.jsonl"])
def test_spoilt_files_of_a_folder_are_refused(name: str, tmp_path: Path) -> None:
    put_images(tmp_path, "train")
    put(tmp_path / name, b'{"file_name": "a.jpg", "objects": [')
    with pytest.raises(DataError, match="looks like a Hugging Face dataset, but cannot be loaded") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_columns_of_another_task_are_refused_with_what_there_is(tmp_path: Path) -> None:
    rows = list(hub_rows("train"))
    whole = Dataset.from_list(rows, features=hub_features(value("int64")))
    whole.rename_column("objects", "things").save_to_disk(str(tmp_path / "a"))
    with pytest.raises(DataError, match=r"expected a column 'objects'.*\['image', 'things'\].*rename_column"):
        load(tmp_path / "a")
    whole.remove_columns("image").save_to_disk(str(tmp_path / "b"))
    with pytest.raises(DataError, match=r"no column of images, only \['objects'\]"):
        load(tmp_path / "b")


def test_other_columns_are_not_looked_at(tmp_path: Path) -> None:
    """A second image that is damaged, as of a mask, is nobody's concern."""
    whole = hub_dataset("train", class_label())
    masks = Dataset.from_dict({"mask": [{"bytes": b"no image", "path": None}] * len(whole)})
    both = whole.add_column("mask", masks["mask"]).cast_column("mask", Image())
    both.save_to_disk(str(tmp_path))
    assert load(tmp_path).class_names == CLASSES


@pytest.mark.parametrize("name", ["hf-fractions", "hf-corners in fractions", "hf-corners"])
def test_boxes_of_another_form_are_noticed(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"boxes of 'train' .*xywh.* Give --box_format: one of xywh, xyxy"):
        load(LAYOUTS[name].write(tmp_path))


def test_pixels_read_as_fractions_are_noticed(tmp_path: Path) -> None:
    source = open_source(LAYOUTS["hf-lists"].write(tmp_path))
    assert isinstance(source, HubSource)
    with pytest.raises(DataError, match="leave their image when read as xywh_fraction"):
        source.with_boxes("xywh_fraction").load("train")
    with pytest.raises(DataError, match="no box format 'yxyx'"):
        source.with_boxes("yxyx")


def sized(folder: Path, said: list[dict[str, Any]]) -> Path:
    """An image folder of noise, 64 x 32 stored and 32 x 64 upright, whose rows say these sizes."""
    exif = ExifData()
    exif[0x0112] = 6
    folder.mkdir()
    rows = []
    for number, size in enumerate(said):
        noise = np.random.default_rng(number).integers(0, 255, (32, 64, 3), dtype=np.uint8)
        picture_of(noise).save(folder / f"{number}.jpg", exif=exif)
        objects = {"bbox": [[1.0, 2.0, 30.0, 20.0]], "category": ["x"]}
        rows.append(json.dumps({"file_name": f"{number}.jpg", "objects": objects} | size))
    put(folder / "metadata.jsonl", "\n".join(rows))
    return folder


def test_an_upright_size_is_what_a_row_may_say(tmp_path: Path) -> None:
    upright = {"width": 32, "height": 64}
    index = load(sized(tmp_path / "a", [upright, upright]))
    assert index.images.sizes.tolist() == [[64, 32]] * 2
    assert len(load(sized(tmp_path / "b", [upright, {"width": None, "height": None}]))) == 2
    assert len(load(sized(tmp_path / "c", [{"width": "wide", "height": "high"}]))) == 1
    assert len(load(sized(tmp_path / "d", [{"width": 32.0, "height": 64.0}]))) == 1


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            {"width": 64, "height": 32},
            r"its EXIF tag .*\(32 x 64\).* before turning \(64 x 32\).* EXIF orientation tag",
        ),
        ({"width": 320, "height": 640}, "the image is 32 x 64 pixels .* says 320 x 640. Boxes would be misplaced"),
        ({"width": 32.5, "height": 64.0}, "has width 32.5; expected a whole number"),
    ],
)
def test_an_image_of_another_size_than_its_row_says_is_refused(
    size: dict[str, float], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sized(tmp_path / "a", [{"width": 32, "height": 64}, size])
    with pytest.raises(DataError, match=rf"row 1 of train: {message}"):
        load(folder)
    assert main(["check", str(folder)]) == 1
    assert "row 1 of train" in capsys.readouterr().out


def test_one_object_a_row_needs_no_list(tmp_path: Path) -> None:
    rows = {"image": [PICTURE["bytes"]], "bbox": [[1, 2, 3, 4]], "label": ["cat"]}
    Dataset.from_dict(rows).cast_column("image", Image()).save_to_disk(str(tmp_path))
    index = load(tmp_path)
    assert index.boxes(0).tolist() == [[1, 2, 4, 6]]
    assert index.class_names == ("cat",)


def test_an_index_survives_pickling_with_its_pixels(tmp_path: Path) -> None:
    index = load(LAYOUTS["hf-one split"].write(tmp_path))
    copy = pickle.loads(pickle.dumps(index))
    for mine, theirs in zip(index.images, copy.images, strict=True):
        assert (read_image(mine) == read_image(theirs)).all()
