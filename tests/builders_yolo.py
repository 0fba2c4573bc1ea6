"""The set of builders_formats in layouts of YOLO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from builders_formats import CLASSES, PICTURES, ROBOFLOW, Box, Picture, layout, put, put_images


def yolo_line(box: Box, picture: Picture) -> str:
    c, x, y, w, h = box
    return f"{c} {(x + w / 2) / picture.width} {(y + h / 2) / picture.height} {w / picture.width} {h / picture.height}"


def yolo_outline(box: Box, picture: Picture) -> str:
    """An outline with a corner too many, whose bounding box is the box."""
    c, x, y, w, h = box
    corners = [(x, y), (x + w, y), (x + w, y + h), (x + w / 2, y + h), (x, y + h)]
    return " ".join([str(c), *(f"{px / picture.width} {py / picture.height}" for px, py in corners)])


def yolo_pose(box: Box, picture: Picture) -> str:
    return yolo_line(box, picture) + " 0.5 0.5" * 3  # 11 numbers, which without kpt_shape were an outline


Line = Callable[[Box, Picture], str]


def put_labels(folder: Path, split: str, line: Line = yolo_line, part: slice = slice(None), end: str = "\n") -> None:
    for picture in PICTURES[split][part]:
        put(folder / f"{picture.stem}.txt", "".join(line(box, picture) + end for box in picture.boxes))


def put_yaml(file: Path, /, **settings: Any) -> Path:
    return put(file, yaml.safe_dump({"names": list(CLASSES), "nc": len(CLASSES)} | settings, allow_unicode=True))


def _mirrored(folder: Path, names: dict[str, str] | None = None, **how: Any) -> None:
    """images/<split> and labels/<split>."""
    for split, name in (names or {split: split for split in PICTURES}).items():
        put_images(folder / "images" / name, split)
        put_labels(folder / "labels" / name, split, **how)


def _nested(folder: Path, names: dict[str, str] = ROBOFLOW, **how: Any) -> None:
    """<split>/images and <split>/labels."""
    for split, name in names.items():
        put_images(folder / name / "images", split)
        put_labels(folder / name / "labels", split, **how)


def _beside(folder: Path, names: dict[str, str] = ROBOFLOW) -> None:
    for split, name in names.items():
        put_images(folder / name, split)
        put_labels(folder / name, split)


MIRRORED = {split: f"images/{split}" for split in PICTURES}


def _yaml_layout(name: str, arrange: Callable[[Path], None], splits: dict[str, str], **settings: Any) -> None:
    @layout(f"yolo-{name}")
    def write(folder: Path) -> None:
        arrange(folder)
        put_yaml(folder / "data.yaml", **splits, **settings)


def _in_turn(pattern: str) -> dict[str, str]:
    """A pattern's path of each split, under the keys that Roboflow uses."""
    return {split: pattern.format(name) for split, name in ROBOFLOW.items()}


_yaml_layout("ultralytics", _mirrored, MIRRORED, path=".")
_yaml_layout("path of another machine", _mirrored, MIRRORED, path="/content/datasets/pets")
_yaml_layout("path of nobody's home", _mirrored, MIRRORED, path="~nobody-here/pets")
_yaml_layout("images in folders of images", _mirrored, dict.fromkeys(MIRRORED, "images") | MIRRORED)
_yaml_layout("names by number", _mirrored, MIRRORED, names=dict(enumerate(CLASSES)))
_yaml_layout("outlines", lambda folder: _mirrored(folder, line=yolo_outline), MIRRORED)
_yaml_layout("keypoints", lambda folder: _mirrored(folder, line=yolo_pose), MIRRORED, kpt_shape=[3, 2])
_yaml_layout("lines of windows", lambda folder: _mirrored(folder, end="\r\n"), MIRRORED)
_yaml_layout("roboflow", _nested, _in_turn("../{}/images"))
_yaml_layout("roboflow plain", _nested, _in_turn("{}/images"))
_yaml_layout("roboflow on colab", _nested, _in_turn("/content/pets-3/{}/images"))
_yaml_layout("roboflow on windows", _nested, _in_turn("C:\\data\\pets\\{}\\images"))
_yaml_layout("labels beside images", _beside, _in_turn("{}"))


@layout("yolo-labels beside images on another machine")
def _(folder: Path) -> None:
    _beside(folder)
    put_yaml(folder / "data.yaml", **_in_turn("/data/pets/{}"))


@layout("yolo-the file itself")
def _(folder: Path) -> Path:
    _mirrored(folder)
    return put_yaml(folder / "pets.yml", **MIRRORED)


@layout("yolo-a description of any name")
def _(folder: Path) -> None:
    _mirrored(folder)
    put_yaml(folder / "pets.yaml", **MIRRORED)
    put(folder / "a_run.yaml", "train: true\nepochs: 3\n")


@layout("yolo-test not named")
def _(folder: Path) -> None:
    _nested(folder)
    put_yaml(folder / "data.yaml", train="../train/images", val="../valid/images")


@layout("yolo-valid for val", splits=("train", "val"))
def _(folder: Path) -> None:
    _nested(folder, {"train": "train", "val": "valid"})
    put_yaml(folder / "data.yaml", train="train/images", valid="valid/images")


@layout("yolo-test named but absent", splits=("train", "val"))
def _(folder: Path) -> None:
    _mirrored(folder, {"train": "train", "val": "val"})
    put_yaml(folder / "data.yaml", **MIRRORED | {"test": "test-dev2017.txt"})


@layout("yolo-several folders", splits=("train",))
def _(folder: Path) -> None:
    for name, part in (("one", slice(0, 2)), ("two", slice(2, None))):
        put_images(folder / name / "images", "train", part)
        put_labels(folder / name / "labels", "train", part=part)
    put_yaml(folder / "data.yaml", train=["one/images", "two/images"])


@layout("yolo-only their count", class_names=("0", "1", "2"))
def _(folder: Path) -> None:
    _mirrored(folder)
    put(folder / "data.yaml", yaml.safe_dump({"nc": 3} | MIRRORED))


@layout("yolo-names in classes.txt")
def _(folder: Path) -> None:
    _mirrored(folder)
    put(folder / "data.yaml", yaml.safe_dump(MIRRORED))
    put(folder / "classes.txt", "\n".join(CLASSES))


def _list_layout(name: str, line: Callable[[Path, str, Picture], str]) -> None:
    """Text files with the images of each split, which lie together."""

    @layout(f"yolo-{name}")
    def write(folder: Path) -> None:
        for split, pictures in PICTURES.items():
            put_images(folder / "images", split)
            put_labels(folder / "labels", split)
            put(
                folder / "lists" / f"{split}.txt",
                "\n".join(line(folder, split, picture) for picture in pictures) + "\n\n",
            )
        put_yaml(folder / "data.yaml", **{split: f"lists/{split}.txt" for split in PICTURES})


_list_layout("list from the description", lambda folder, split, picture: f"images/{picture.name}")
_list_layout("list with ./", lambda folder, split, picture: f"./images/{picture.name}")
_list_layout("list from itself", lambda folder, split, picture: f"../images/{picture.name}")
_list_layout("list absolute", lambda folder, split, picture: str(folder.absolute() / "images" / picture.name))
_list_layout("list of another machine", lambda folder, split, picture: f"/home/x/pets/images/{picture.name}")
_list_layout("list of windows", lambda folder, split, picture: f"images\\{picture.name}\r")


@layout("yolo-classes.txt and images of a split")
def _(folder: Path) -> None:
    _mirrored(folder)
    put(folder / "classes.txt", "\n".join(CLASSES) + "\n\n")


@layout("yolo-classes.txt and folders of a split")
def _(folder: Path) -> None:
    _nested(folder)
    put(folder / "classes.txt", "\r\n".join(CLASSES))


@layout("yolo-roboflow darknet")
def _(folder: Path) -> None:
    _beside(folder)
    for name in ROBOFLOW.values():
        put(folder / name / "_darknet.labels", "\n".join(CLASSES))


@layout("yolo-label studio", splits=("train",))
def _(folder: Path) -> None:
    put_images(folder / "images", "train")
    put_labels(folder / "labels", "train")
    put(folder / "classes.txt", "\n".join(CLASSES))
    put(folder / "notes.json", {"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2024}})


@layout("yolo-labelimg", splits=("train",))
def _(folder: Path) -> None:
    put_images(folder / "images", "train")
    put_labels(folder / "labels", "train")
    put(folder / "labels" / "classes.txt", "\n".join(CLASSES))


@layout("yolo-labelimg in one folder", splits=("train",))
def _(folder: Path) -> None:
    put_images(folder, "train")
    put_labels(folder, "train")
    put(folder / "classes.txt", "\n".join(CLASSES))


@layout("yolo-cvat", splits=("train", "val"))
def _(folder: Path) -> None:
    for split, name in (("train", "train"), ("val", "valid")):
        put_images(folder / f"obj_{name}_data", split)
        put_labels(folder / f"obj_{name}_data", split)
        put(folder / f"{name}.txt", "\n".join(f"data/obj_{name}_data/{picture.name}" for picture in PICTURES[split]))
    put(folder / "obj.names", "\n".join(CLASSES))
    put(folder / "obj.data", "classes = 3\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n")


@layout("yolo-inside of a folder called images")
def _(folder: Path) -> Path:
    inner = folder / "images" / "pets"
    for split, name in ROBOFLOW.items():
        put_images(inner / name / "pictures", split)
        put_labels(inner / name / "labels", split)
    put_yaml(inner / "data.yaml", **_in_turn("{}/pictures"))
    return inner
