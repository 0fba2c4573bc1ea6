"""The set of builders_formats in layouts of Pascal VOC."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from builders_formats import CLASSES, PICTURES, ROBOFLOW, Box, Picture, layout, put, put_images


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
