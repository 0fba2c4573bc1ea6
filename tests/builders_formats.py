"""One small set of images and boxes, written in every layout in which people keep theirs."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import yaml
from PIL import Image

from qskd.data.index import DetectionIndex

CLASSES = ("cat", "dog & pup", "grüner specht")
Box = tuple[int, int, int, int, int]  # class, left, top, width, height, pixels


@dataclass(frozen=True)
class Picture:
    """An image and its objects."""

    name: str
    width: int
    height: int
    boxes: tuple[Box, ...] = ()

    @property
    def stem(self) -> str:
        return self.name.rsplit(".", 1)[0]


PICTURES: dict[str, tuple[Picture, ...]] = {
    "train": (
        Picture("a.jpg", 64, 32, ((0, 1, 2, 10, 20), (2, 30, 4, 20, 25))),
        Picture("b.two.png", 32, 48, ((1, 0, 0, 32, 48),)),
        Picture("leer und weit.jpg", 64, 32),
        Picture("größe 猫.jpg", 40, 30, ((0, 5, 5, 7, 9), (0, 20, 3, 6, 6), (1, 8, 11, 12, 13))),
    ),
    "val": (Picture("v1.png", 64, 64, ((2, 10, 20, 30, 40),)), Picture("v 2.jpg", 48, 32, ((0, 1, 1, 8, 8),))),
    "test": (Picture("t.jpg", 32, 32, ((1, 4, 4, 8, 16), (2, 16, 8, 8, 8))),),
}
ROBOFLOW = {"train": "train", "val": "valid", "test": "test"}

Objects = list[tuple[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Layout:
    """How data lies in a folder."""

    format: str
    write: Callable[[Path], Path]  # into a folder; returns what the user would give as --data
    splits: tuple[str, ...] = ("train", "val", "test")
    class_names: tuple[str, ...] = CLASSES
    box_format: str = "xywh"


LAYOUTS: dict[str, Layout] = {}


def layout(name: str, **about: Any) -> Callable[[Callable[[Path], Path | None]], Callable[[Path], Path | None]]:
    """Register a writer; what it returns is what to open, by default its folder."""

    def keep(write: Callable[[Path], Path | None]) -> Callable[[Path], Path | None]:
        LAYOUTS[name] = Layout(name.split("-")[0], lambda folder: write(folder) or folder, **about)
        return write

    return keep


def expected(split: str, class_names: Sequence[str] = CLASSES) -> dict[str, tuple[int, int, Objects]]:
    """Of each image: height, width and its objects, sorted, as (class name, corners)."""
    return {
        picture.name: (
            picture.height,
            picture.width,
            sorted(
                (class_names[c], (float(x), float(y), float(x + w), float(y + h))) for c, x, y, w, h in picture.boxes
            ),
        )
        for picture in PICTURES[split]
    }


def found(index: DetectionIndex) -> dict[str, tuple[int, int, Objects]]:
    """The same of an index."""
    return {
        record.path.name: (
            record.height,
            record.width,
            sorted(
                (index.class_names[label], tuple(box))
                for label, box in zip(index.labels(at).tolist(), index.boxes(at).tolist(), strict=True)
            ),
        )
        for at, record in enumerate(index.images)
    }


@cache
def encoded(name: str, width: int, height: int) -> bytes:
    """A drawn image: its name decides what is seen, its suffix how it is stored."""
    colours = np.random.default_rng(list(name.encode())).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).save(out, "PNG" if name.endswith("png") else "JPEG")
    return out.getvalue()


def put(path: Path, content: str | bytes | Any) -> Path:
    """Write a file with its folders; what is neither text nor bytes as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def put_images(folder: Path, split: str, part: slice = slice(None)) -> None:
    for picture in PICTURES[split][part]:
        put(folder / picture.name, encoded(picture.name, picture.width, picture.height))


# --- COCO


def coco(split: str, prefix: str = "", root: str | None = None) -> dict[str, Any]:
    first = 0 if root is None else 1
    categories = [{"id": first + at, "name": name, "supercategory": root or ""} for at, name in enumerate(CLASSES)]
    if root is not None:
        categories.insert(0, {"id": 0, "name": root, "supercategory": "none"})
    pictures = list(enumerate(PICTURES[split]))
    rows = [(image, box) for image, picture in pictures for box in picture.boxes]
    return {
        "info": {"description": "drawn"},
        "images": [
            {"id": at, "file_name": prefix + one.name, "height": one.height, "width": one.width} for at, one in pictures
        ],
        "annotations": [
            {"id": at, "image_id": image, "category_id": first + c, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            for at, (image, (c, x, y, w, h)) in enumerate(rows)
        ],
        "categories": categories,
    }


def _coco_layout(name: str, file: str, images: str, *, names: dict[str, str] | None = None, **how: str) -> None:
    """A layout whose annotation file and image folder of a split are patterns."""

    @layout(f"coco-{name}", splits=tuple(names or ROBOFLOW))
    def write(folder: Path) -> None:
        for split, written in (names or {split: split for split in PICTURES}).items():
            put(folder / file.format(written), coco(split, **how))
            put_images(folder / images.format(written), split)


_coco_layout("2017", "annotations/instances_{}2017.json", "{}2017")
_coco_layout("2014", "annotations/instances_{}2014.json", "images/{}2014", names={"train": "train", "val": "val"})
_coco_layout("images of a split", "annotations/instances_{}.json", "images/{}")
_coco_layout("images of all splits", "annotations/instances_{}.json", "images")
_coco_layout("roboflow", "{}/_annotations.coco.json", "{}", names=ROBOFLOW, root="pets")
_coco_layout("roboflow project named like a class", "{}/_annotations.coco.json", "{}", names=ROBOFLOW, root="cat")
_coco_layout("cvat", "annotations/instances_default.json", "images/default", names={"train": ""})
_coco_layout("cvat images flat", "annotations/instances_default.json", "images", names={"train": ""})
_coco_layout(
    "cvat subsets", "annotations/instances_{}.json", "images/{}", names={"train": "Train", "val": "Validation"}
)
_coco_layout("fiftyone", "labels.json", "data", names={"train": ""})
_coco_layout("fiftyone splits", "{}/labels.json", "{}/data", names={"train": "train", "val": "validation"})
_coco_layout("label studio", "result.json", "images", names={"train": ""}, prefix="images/")
_coco_layout("label studio on windows", "result.json", "images", names={"train": ""}, prefix="images\\")
_coco_layout("file of a split", "{}.json", "images")
_coco_layout("file of a split in annotations", "annotations/{}.json", "{}", names=ROBOFLOW)
_coco_layout("name before the split", "annotations/pets_{}.json", "images")
_coco_layout("name behind the split", "{}_annotations.coco.json", "images/{}", names=ROBOFLOW)
_coco_layout("images in folders of the split", "annotations/instances_{}.json", "images/deep", prefix="deep/")


# --- YOLO


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


# --- Pascal VOC


def voc_object(box: Box, *, as_text: Callable[[int], str] = str, more: str = "") -> str:
    c, x, y, w, h = box
    sides = zip(("xmin", "ymin", "xmax", "ymax"), (x, y, x + w, y + h), strict=True)
    corners = "".join(f"<{key}>{as_text(value)}</{key}>" for key, value in sides)
    return f"<object><name>{escape(CLASSES[c])}</name>{more}<bndbox>{corners}</bndbox></object>"


def voc_page(picture: Picture, *, name: str | None = None, size: str | None = None, **how: Any) -> str:
    sides = f"<size><width>{picture.width}</width><height>{picture.height}</height><depth>3</depth></size>"
    objects = "".join(voc_object(box, **how) for box in picture.boxes)
    file_name = escape(picture.name if name is None else name)
    return f"<annotation><filename>{file_name}</filename>{sides if size is None else size}{objects}</annotation>"


Page = Callable[[Picture], str | bytes]


def put_pages(folder: Path, split: str, page: Page = voc_page) -> None:
    for picture in PICTURES[split]:
        put(folder / f"{picture.stem}.xml", page(picture))


def _devkit(folder: Path, sets: dict[str, str] | None = None, line: str = "{}", page: Page = voc_page) -> None:
    for split in PICTURES if sets is None else sets:
        put_images(folder / "JPEGImages", split)
        put_pages(folder / "Annotations", split, page)
        if sets is not None:
            names = "\n".join(line.format(picture.stem) for picture in PICTURES[split])
            put(folder / "ImageSets" / "Main" / f"{sets[split]}.txt", names + "\n")


PLAIN = {split: split for split in PICTURES}


def _devkit_layout(name: str, below: str = "", given: str = "", **how: Any) -> None:
    @layout(f"voc-{name}", splits=tuple("train" if split == "trainval" else split for split in how.get("sets", PLAIN)))
    def write(folder: Path) -> Path:
        _devkit(folder / below, **{"sets": PLAIN} | how)
        return folder / given


_devkit_layout("devkit's parent", "VOCdevkit/VOC2012")
_devkit_layout("devkit", "VOCdevkit/VOC2012", "VOCdevkit")
_devkit_layout("devkit's year", "VOCdevkit/VOC2012", "VOCdevkit/VOC2012")
_devkit_layout("trainval", sets={"train": "trainval", "test": "test"})
_devkit_layout("set with a flag", line="{}  1")
_devkit_layout("set with paths", line="JPEGImages/{}.jpg")
_devkit_layout("stale file name", page=lambda picture: voc_page(picture, name="C:\\photos\\001.jpg"))
_devkit_layout("file name without suffix", page=lambda picture: voc_page(picture, name=picture.stem))
_devkit_layout("size 0", page=lambda picture: voc_page(picture, size="<size><width>0</width><height>0</height></size>"))
_devkit_layout("no size", page=lambda picture: voc_page(picture, size=""))
_devkit_layout("float corners", page=lambda picture: voc_page(picture, as_text=lambda value: f"{value}.0"))
_devkit_layout("not difficult", page=lambda picture: voc_page(picture, more="<difficult>False</difficult>"))
_devkit_layout("boxless", page=lambda one: voc_page(one).replace("</ann", "<object><name>cat</name></object></ann"))
_devkit_layout("parts", page=lambda one: voc_page(one, more="<part><name>head</name><bndbox/></part>"))
_devkit_layout("utf-16", page=lambda picture: voc_page(picture).encode("utf-16"))
_devkit_layout(
    "gb18030",
    page=lambda picture: ('<?xml version="1.0" encoding="GB18030"?>' + voc_page(picture)).encode("gb18030"),
)
_devkit_layout(
    "declares what it is not", page=lambda picture: '<?xml version="1.0" encoding="latin-1"?>' + voc_page(picture)
)


@layout("voc-no sets", splits=("train",))
def _(folder: Path) -> None:
    put_images(folder / "images", "train")
    put_pages(folder / "annotations", "train")


@layout("voc-cvat", splits=("train",))
def _(folder: Path) -> None:
    put_images(folder / "JPEGImages", "train")
    put_pages(folder / "Annotations", "train")
    put(folder / "ImageSets" / "Main" / "default.txt", "\n".join(picture.stem for picture in PICTURES["train"]))


@layout("voc-roboflow")
def _(folder: Path) -> None:
    for split, name in ROBOFLOW.items():
        put_images(folder / name, split)
        put_pages(folder / name, split)


@layout("voc-folders in a split")
def _(folder: Path) -> None:
    for split, name in ROBOFLOW.items():
        put_images(folder / name / "images", split)
        put_pages(folder / name / "Annotations", split)


@layout("voc-labelimg in one folder", splits=("train",))
def _(folder: Path) -> None:
    put_images(folder, "train")
    put_pages(folder, "train")


# --- Hugging Face

XYXY: Callable[[Box, Picture], list[float]] = lambda box, _: [box[1], box[2], box[1] + box[3], box[2] + box[4]]  # noqa: E731


def xywh(box: Box, picture: Picture) -> list[float]:
    return [float(value) for value in box[1:]]


def cxcywh_fraction(box: Box, picture: Picture) -> list[float]:
    return [float(cell) for cell in yolo_line(box, picture).split()[1:]]


def xyxy_fraction(box: Box, picture: Picture) -> list[float]:
    _, x, y, w, h = box
    return [x / picture.width, y / picture.height, (x + w) / picture.width, (y + h) / picture.height]


def hub_rows(
    split: str,
    label: Callable[[int], Any] = lambda number: number,
    box: Callable[[Box, Picture], list[float]] = xywh,
    keys: tuple[str, str] = ("bbox", "category"),
    *,
    records: bool = False,
) -> Iterator[dict[str, Any]]:
    for picture in PICTURES[split]:
        pairs = [(box(one, picture), label(one[0])) for one in picture.boxes]
        objects: Any = [dict(zip(keys, pair, strict=True)) for pair in pairs]
        if not records:
            objects = {key: [pair[at] for pair in pairs] for at, key in enumerate(keys)}
        image = {"bytes": encoded(picture.name, picture.width, picture.height), "path": None}
        yield {"image": image, "objects": objects}


def hub_features(label: Any, keys: tuple[str, str] = ("bbox", "category"), *, records: bool = False) -> Any:
    from datasets import Features, Image, List, Value

    box = List(Value("float64"))
    objects = List(dict(zip(keys, (box, label), strict=True)))
    if not records:
        objects = dict(zip(keys, (List(box), List(label)), strict=True))
    return Features({"image": Image(), "objects": objects})


def hub_dataset(split: str, kind: Any, **how: Any) -> Any:
    from datasets import Dataset

    features = hub_features(kind, how.get("keys", ("bbox", "category")), records=how.get("records", False))
    return Dataset.from_list(list(hub_rows(split, **how)), features=features)


def _hub_layout(name: str, kind: Callable[[], Any], about: dict[str, Any] | None = None, **how: Any) -> None:
    @layout(f"hf-{name}", **(about or {}))
    def write(folder: Path) -> None:
        from datasets import DatasetDict

        names = {"train": "train", "val": "validation", "test": "test"}
        parts = {name: hub_dataset(split, kind(), **how) for split, name in names.items()}
        DatasetDict(parts).save_to_disk(str(folder))


def class_label(names: Sequence[str] = CLASSES) -> Any:
    from datasets import ClassLabel

    return ClassLabel(names=list(names))


def value(kind: str) -> Any:
    from datasets import Value

    return Value(kind)


NUMBERED = {"class_names": ("0", "1", "2")}

_hub_layout("lists", class_label)
_hub_layout("records", class_label, records=True)
_hub_layout("texts", lambda: value("string"), label=CLASSES.__getitem__)
_hub_layout("numbers", lambda: value("int64"), NUMBERED)
_hub_layout("classes that are numbers", lambda: class_label("321"), {"class_names": ("3", "2", "1")})
_hub_layout("corners", class_label, {"box_format": "xyxy"}, box=XYXY)
_hub_layout("fractions", class_label, {"box_format": "cxcywh_fraction"}, box=cxcywh_fraction)
_hub_layout("corners in fractions", class_label, {"box_format": "xyxy_fraction"}, box=xyxy_fraction)
_hub_layout("other names", class_label, keys=("bboxes", "label"))


@layout("hf-one split", splits=("train",))
def _(folder: Path) -> None:
    hub_dataset("train", class_label()).save_to_disk(str(folder))


@layout("hf-a format of tensors", splits=("train",))
def _(folder: Path) -> None:
    hub_dataset("train", class_label()).with_format("numpy").save_to_disk(str(folder))


@layout("hf-columns of the row", splits=("train",))
def _(folder: Path) -> None:
    whole = hub_dataset("train", class_label(), keys=("bboxes", "labels")).flatten()
    renamed = whole.rename_columns({"objects.bboxes": "bboxes", "objects.labels": "labels"})
    renamed.save_to_disk(str(folder))


@layout("hf-annotations like coco's", splits=("train",))
def _(folder: Path) -> None:
    hub_dataset("train", class_label(), records=True).rename_column("objects", "annotations").save_to_disk(str(folder))


@layout("hf-parquet")
def _(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        hub_dataset(split, class_label()).to_parquet(str(folder / "data" / f"{name}-00000-of-00001.parquet"))


@layout("hf-parquet of another library", splits=("train",), class_names=("0", "1", "2"))
def _(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(hub_rows("train"))), str(folder / "train.parquet"))


@layout("hf-bytes alone", splits=("train",), class_names=CLASSES)
def _(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row | {"image": row["image"]["bytes"]} for row in hub_rows("train", CLASSES.__getitem__, records=True)]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), str(folder / "train.parquet"))


def _metadata(split: str) -> str:
    rows = zip(PICTURES[split], hub_rows(split, CLASSES.__getitem__), strict=True)
    return "".join(json.dumps({"file_name": one.name, "objects": row["objects"]}) + "\n" for one, row in rows)


@layout("hf-image folder")
def _(folder: Path) -> None:
    for split in PICTURES:
        put_images(folder / split, split)
        put(folder / split / "metadata.jsonl", _metadata(split))


@layout("hf-image folder without splits", splits=("train",))
def _(folder: Path) -> None:
    put_images(folder, "train")
    put(folder / "metadata.jsonl", _metadata("train"))
