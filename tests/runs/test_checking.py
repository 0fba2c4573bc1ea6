"""`qskd check` as a user runs it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders_data import edit
from qskd.cli import main
from qskd.data.image_facts import facts_of
from qskd.data.index import ImageRecord
from qskd.data.sources import open_source
from qskd.runs.checking import check
from qskd.runs.options import SourceOptions


@pytest.fixture
def data(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / "data")


# ---- check ---------------------------------------------------------------------------------------------------


def test_good_data_is_good_and_counted(data, capsys, tmp_path):
    assert main(["check", str(data), "--json", str(tmp_path / "found.json")]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    for split in ("train", "val"):
        content = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
        numbers = found["splits"][split]
        assert numbers["images"] == len(content["images"])
        assert numbers["boxes"] == len(content["annotations"])
        assert sum(numbers["sizes"].values()) == numbers["boxes"]
        names = {row["id"]: row["name"] for row in content["categories"]}
        for name, count in numbers["classes"].items():
            assert count == sum(names[row["category_id"]] == name for row in content["annotations"])
        per_image = [
            sum(row["image_id"] == image["id"] for row in content["annotations"]) for image in content["images"]
        ]
        assert numbers["objects_per_image"]["mean"] == pytest.approx(np.mean(per_image))
        assert numbers["objects_per_image"]["median"] == np.median(per_image)
        assert numbers["empty_images"] == per_image.count(0)
        assert f"{split}: {numbers['images']} images" in shown
    assert found["good"]
    assert shown.rstrip().endswith("good")


def test_errors_are_all_listed_and_the_clean_copy_has_none(data, capsys, tmp_path):
    images = sorted((data / "images" / "train").iterdir())
    whole = images[0].read_bytes()
    images[0].write_bytes(whole[: len(whole) * 2 // 3])
    images[1].write_text("no image")
    Image.open(images[2]).convert("L").save(images[2])

    def spoil(content):
        of_last = [row for row in content["annotations"] if row["image_id"] == content["images"][-1]["id"]]
        assert len(of_last) > 2
        of_last[0]["bbox"] = [1, 1, 0, 0]
        other = next(row for row in content["annotations"] if row["image_id"] == content["images"][-2]["id"])
        other["category_id"] = 99
        content["images"].append({"id": 999, "file_name": "../x.png", "width": 3, "height": 3})

    edit(data, "train", spoil)
    assert main(["check", str(data), "--fix", str(tmp_path / "clean")]) == 1
    shown = capsys.readouterr().out
    for text in (
        "image damaged (1)",
        "image unreadable (1)",
        "greyscale image (1)",
        "degenerate box (1)",
        "annotation of an unknown category (1)",
        "file name leaves the image folder (1)",
        "NOT GOOD",
        images[0].name,
    ):
        assert text in shown
    assert main(["check", str(tmp_path / "clean")]) == 0
    index = open_source(tmp_path / "clean").load("train", strict=True)
    assert len(index) == len(images) - 3
    assert f"train: {len(index)} images" in shown
    assert "; left out: 4 images" in shown
    grey = next(record for record in index.images if record.path.stem.startswith(images[2].stem))
    assert Image.open(grey.path).mode == "RGB"
    assert main(["check", str(data), "--fix", str(tmp_path / "clean")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_images_in_two_splits_are_found(data):
    train, val = (sorted((data / "images" / split).iterdir()) for split in ("train", "val"))
    shutil.copy(train[3], val[0])
    near = np.asarray(Image.open(train[4]).convert("RGB")).astype(int)
    Image.fromarray((near + 3).clip(0, 255).astype(np.uint8)).resize((70, 70)).save(val[1])
    edit(data, "val", lambda content: content["images"][1].update(width=70, height=70))
    kinds = {one.kind: one.where for one in check(SourceOptions(data=str(data))).findings}
    assert train[3].name in kinds["the same image in two splits"]
    assert val[0].name in kinds["the same image in two splits"]
    whole = " ".join(one.where for one in check(SourceOptions(data=str(data))).findings)
    assert train[4].name in whole
    assert not [one for one in check(SourceOptions(data=str(data)), pixels=False).findings if "two splits" in one.kind]


def test_what_is_no_data_is_status_2(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 2
    assert "Annotations/*.xml" in capsys.readouterr().err
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text("{")
    assert main(["check", str(tmp_path)]) == 1
    assert "split that cannot be read" in capsys.readouterr().out


def test_a_class_of_the_validation_split_alone_is_an_error(data):
    edit(data, "val", lambda content: content["categories"][0].update(name="yeti"))
    errors = [
        one.what for one in check(SourceOptions(data=str(data)), pixels=False).findings if one.severity == "error"
    ]
    assert errors == ["yeti"]


MODES = {"L": "greyscale", "P": "palette", "CMYK": "CMYK", "I;16": "16 bits", "RGBA": "alpha", "LA": "alpha"}


@pytest.mark.parametrize(("mode", "kind"), MODES.items())
def test_kinds_of_images(tmp_path, mode, kind):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(path)
    else:
        noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(path)
    (facts,) = facts_of([ImageRecord(1, path, 20, 30)])
    assert kind in facts.kinds
    assert facts.size == (20, 30)
    assert len(facts.hash) == 16


def test_turned_images_and_bombs(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    bomb = bytearray((tmp_path / "turned.jpg").read_bytes())
    Image.new("1", (30000, 30000)).save(tmp_path / "bomb.png")
    turned, large = facts_of([ImageRecord(1, tmp_path / name, 1, 1) for name in ("turned.jpg", "bomb.png")])
    assert bomb
    assert turned.kinds == ("EXIF-rotated",)
    assert turned.size == (30, 20)
    assert large.is_bomb


# ---- other formats -------------------------------------------------------------------------------------------


def test_every_bad_line_of_yolo_data_is_found(tmp_path, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(
            tmp_path / "images" / f"{name}.png"
        )
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [x, y]\n")
    (tmp_path / "labels" / "a.txt").write_text(
        "0 .5 .5 .2 .2\n7 .5 .5 .2 .2\n0 .5 .5 .2\n1 .5 .5 0 .2\n0 .5 .5 .2 .2\n"
    )
    (tmp_path / "labels" / "b.txt").write_text("0 100 200 20 20\n1 .2 .2 .1 .1\n")
    (tmp_path / "images" / "d.png").write_text("no image")
    assert main(["check", str(tmp_path), "--fix", str(tmp_path / "clean")]) == 1
    shown = capsys.readouterr().out
    for text in ("a.txt, line 2", "a.txt, line 3", "b.txt, line 1", "d.png", "degenerate box (2)", "duplicate box (2)"):
        assert text in shown
    index = open_source(tmp_path / "clean").load("train", strict=True)
    assert index.images.file_names == ("c.png",)  # a and b hold objects that nobody knows
    assert "train: 1 images, 0 boxes; left out: 3 images, 7 boxes" in shown


def test_every_bad_file_of_voc_data_is_found(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    box = "<object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    for name in ("a", "b", "c"):
        noise = np.random.default_rng(ord(name)).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "train" / f"{name}.png")
        (tmp_path / "train" / f"{name}.xml").write_text(f"<annotation>{box}</annotation>")
    (tmp_path / "train" / "b.xml").write_text("<annotation>")
    (tmp_path / "train" / "c.xml").write_text(f"<annotation>{box.replace('9', 'nine')}</annotation>")
    assert main(["check", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "b.xml" in shown
    assert "c.xml" in shown
    assert "entry that cannot be read (2)" in shown
    assert "train: 1 images" in shown


# ---- nothing is written over ---------------------------------------------------------------------------------


def drawn(path: Path, mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def coco(folder: Path, names: list[str]) -> None:
    images = [{"id": number, "file_name": name, "width": 30, "height": 20} for number, name in enumerate(names, 1)]
    boxes = [{"id": row["id"], "image_id": row["id"], "category_id": 1, "bbox": [1, 1, 9, 9]} for row in images]
    (folder / "annotations").mkdir(parents=True)
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))


def test_converted_images_never_take_the_name_of_another(tmp_path):
    data = tmp_path / "data"
    names = ["a.gif.png", "a.gif", "A.GIF.png"]
    for seed, name in enumerate(names):
        drawn(data / "images" / name, "P" if name == "a.gif" else "RGB", seed)
    coco(data, names)
    before = {name: (data / "images" / name).read_bytes() for name in names}
    main(["check", str(data), "--fix", str(tmp_path / "clean")])
    assert {name: (data / "images" / name).read_bytes() for name in names} == before
    index = open_source(tmp_path / "clean").load("train")
    assert len({name.casefold() for name in index.images.file_names}) == 3
    for record, name in zip(index.images, names, strict=True):
        wanted = np.asarray(Image.open(data / "images" / name).convert("RGB"))
        assert np.array_equal(np.asarray(Image.open(record.path)), wanted)


def test_an_image_that_is_listed_twice_is_placed_once(tmp_path, capsys):
    data = tmp_path / "data"
    for seed, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        drawn(data / "images" / name, seed=seed)
    coco(data, ["a.png", "a.png", "b.png", "c.png", "d.png", "./b.png"])
    assert main(["split", str(data), "--output_dir", str(tmp_path / "divided"), "--val", "0.4"]) == 0
    main(["check", str(data), "--fix", str(tmp_path / "clean")])
    assert "image file listed twice (2)" in capsys.readouterr().out
    assert len(open_source(tmp_path / "clean").load("train")) == 4


def test_a_test_split_that_nobody_labelled_is_no_error(tmp_path, capsys):
    for split in ("train", "val", "test"):
        drawn(tmp_path / "images" / split / "a.png", seed=len(split))
        if split != "test":
            (tmp_path / "labels" / split).mkdir(parents=True)
            (tmp_path / "labels" / split / "a.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [x]\n")
    assert main(["check", str(tmp_path)]) == 0
    assert "note: split that cannot be read (1)" in capsys.readouterr().out


# ---- what a training would refuse ----------------------------------------------------------------------------


def errors_of(data: Path) -> dict[str, str]:
    """Each kind of error with what is said of the first."""
    found = [one for one in check(SourceOptions(data=str(data)), pixels=False).findings if one.severity == "error"]
    return {one.kind: one.line() for one in reversed(found)}


def yolo(folder: Path, *splits: str) -> Path:
    for split in splits:
        drawn(folder / split / "images" / "a.png", seed=len(split))
        (folder / split / "labels").mkdir()
        (folder / split / "labels" / "a.txt").write_text("0 .5 .5 .5 .5\n")
    lines = [f"{key}: ../{name}/images" for key, name in (("train", "train"), ("val", "valid"), ("test", "test"))]
    (folder / "data.yaml").write_text("\n".join([*lines, "names: [x]"]))
    return folder


def test_yolo_data_without_the_folder_that_its_description_names_is_not_good(tmp_path, capsys):
    without_train = yolo(tmp_path / "a", "valid", "test")
    assert main(["check", str(without_train)]) == 1
    assert "'../train/images' is not there" in capsys.readouterr().out
    without_val = yolo(tmp_path / "b", "train", "test")
    assert "'../valid/images' is not there" in errors_of(without_val)["split that cannot be read"]
    assert main(["check", str(without_val)]) == 1
    assert "qskd split" not in capsys.readouterr().out
    assert main(["check", str(yolo(tmp_path / "c", "train", "valid"))]) == 0  # a test split is not needed
    assert "note: split that cannot be read (1)" in capsys.readouterr().out


def test_data_without_a_training_split_is_not_good(data, capsys):
    (data / "annotations" / "instances_train.json").unlink()
    shutil.rmtree(data / "images" / "train")
    assert main(["check", str(data)]) == 1
    assert "no split 'train' (found: val" in capsys.readouterr().out
    assert list(errors_of(data)) == ["no training split"]


def test_a_split_whose_images_nothing_is_said_about_is_an_error(data):
    (data / "annotations" / "instances_val.json").unlink()
    assert "val holds images of the split 'val', but there are no" in errors_of(data)["split that cannot be read"]


def test_voc_images_whose_xml_files_are_absent_are_an_error(tmp_path):
    box = "<object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    for seed, split in enumerate(("train", "valid")):
        drawn(tmp_path / split / "a.png", seed=seed)
    (tmp_path / "train" / "a.xml").write_text(f"<annotation>{box}</annotation>")
    assert "valid holds images of the split 'val'" in errors_of(tmp_path)["split that cannot be read"]


def test_empty_lists_are_errors(data):
    edit(data, "train", lambda content: [content[key].clear() for key in ("images", "annotations", "categories")])
    found = errors_of(data)
    assert found["split without images"].endswith("none is listed")
    assert "split without classes" in found


def test_a_split_of_which_no_image_is_left_is_an_error(data):
    shutil.rmtree(data / "images" / "val")
    (data / "images" / "val").mkdir()
    assert "none of use" in errors_of(data)["split without images"]


def test_what_is_wrong_with_a_split_that_no_training_needs_stops_none(data, capsys):
    content = json.loads((data / "annotations" / "instances_val.json").read_text())
    shutil.copytree(data / "images" / "val", data / "images" / "test")
    path = data / "annotations" / "image_info_test2017.json"
    path.write_text(json.dumps({key: content[key] for key in ("images", "categories")}))
    assert main(["check", str(data)]) == 0
    assert "note: no list of annotations (1)" in capsys.readouterr().out
    content["annotations"][0]["image_id"] = 12345
    content["categories"][0]["name"] = "yeti"
    path.write_text(json.dumps(content))
    assert main(["check", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "warning: annotation of an unknown image (1)" in shown
    assert "warning: classes that the training split has not (1)" in shown


def test_the_report_says_where_each_split_comes_from(data, capsys, tmp_path):
    main(["check", str(data), "--json", str(tmp_path / "found.json")])
    shown = capsys.readouterr().out
    for split in ("train", "val"):
        places = [str(data / "annotations" / f"instances_{split}.json"), str(data / "images" / split)]
        assert f"from {' with images in '.join(places)}" in shown
        assert json.loads((tmp_path / "found.json").read_text())["splits"][split]["places"] == places


# ---- what a clean copy leaves out ----------------------------------------------------------------------------

UNREAD = {
    "confidences": "0 .5 .5 .2 .2 .9\n0 .2 .2 .1 .1 .8\n",
    "a class that is none": "0 .5 .5 .2 .2\n9 .2 .2 .1 .1\n",
    "text": "fish .5 .5 .2 .2\n",
    "pixels": "0 100 100 20 20\n",
    "nothing but degenerate boxes": "0 .5 .5 0 .2\n0 .5 .5 .2 0\n",
    "no text at all": b"\xff\xfe\xff",
}


@pytest.mark.parametrize("label", UNREAD.values(), ids=UNREAD.keys())
def test_an_image_whose_objects_are_not_known_is_no_background(tmp_path, label, capsys):
    for seed, name in enumerate(("bad", "degenerate", "empty", "good")):
        drawn(tmp_path / "images" / f"{name}.png", seed=seed)
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [x]\n")
    for name, text in (("bad", label), ("degenerate", "0 .5 .5 .4 .4\n0 .5 .5 0 .2\n"), ("good", "0 .5 .5 .2 .2\n")):
        (tmp_path / "labels" / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    main(["check", str(tmp_path), "--fix", str(tmp_path / "clean")])
    index = open_source(tmp_path / "clean").load("train", strict=True)
    found = {name: len(index.labels(at)) for at, name in enumerate(index.images.file_names)}
    assert found == {"degenerate.png": 1, "empty.png": 0, "good.png": 1}
    count = len(label.splitlines())
    assert f"train: 3 images, 2 boxes; left out: 1 images, {count + 1} boxes" in capsys.readouterr().out


def test_a_clean_copy_of_nothing_is_not_written(data, tmp_path, capsys):
    def spoil(content):
        for row in content["images"]:
            row["id"] = str(row["id"])

    edit(data, "train", spoil)
    assert main(["check", str(data), "--fix", str(tmp_path / "clean")]) == 1
    assert "no clean copy: No image of the split 'train' would be left" in capsys.readouterr().out
    assert not (tmp_path / "clean").exists()


def test_a_split_that_is_not_in_the_clean_copy_is_named(data, tmp_path, capsys):
    (data / "annotations" / "instances_val.json").write_text("{")
    assert main(["check", str(data), "--fix", str(tmp_path / "clean")]) == 1
    assert "not in it, since nothing of them could be used: val" in capsys.readouterr().out
    assert open_source(tmp_path / "clean").splits == ("train",)


# ---- labels without an image ---------------------------------------------------------------------------------


def test_label_files_whose_image_is_absent_are_errors(tmp_path, capsys):
    data = yolo(tmp_path, "train", "valid", "test")
    for number in range(8):
        (data / "train" / "labels" / f"lost{number}.txt").write_text("0 .5 .5 .5 .5\n")
    (data / "train" / "labels" / "classes.txt").write_text("0\n")
    (data / "train" / "labels" / "readme.txt").write_text("hello\n")
    assert main(["check", str(data)]) == 1
    shown = capsys.readouterr().out
    assert "error: label file without an image (8)" in shown
    assert str(data / "train" / "labels" / "lost4.txt") in shown
    assert "... and 3 more" in shown
    lines = " ".join(open_source(data).load("train").problems.lines())
    assert "8 label files without an image, left out (lost0.txt, " in lines


def test_labels_of_other_splits_images_in_one_folder_are_not_without_an_image(tmp_path):
    for seed, name in enumerate(("a", "b")):
        drawn(tmp_path / "images" / f"{name}.png", seed=seed)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "train.txt").write_text("images/a.png\n")
    (tmp_path / "val.txt").write_text("images/b.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [x]\n")
    assert errors_of(tmp_path) == {}
    for split, name in (("train", "c"), ("val", "d")):  # one folder of labels for two of images
        drawn(tmp_path / "flat" / split / f"{name}.png", seed=len(split))
        (tmp_path / "flat" / "labels").mkdir(exist_ok=True)
        (tmp_path / "flat" / "labels" / f"{name}.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "flat" / "data.yaml").write_text("train: train\nval: val\nnames: [x]\n")
    assert errors_of(tmp_path / "flat") == {}
