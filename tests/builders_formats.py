"""One small set of images and boxes, written in every layout in which people keep theirs."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
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


REGISTRY: dict[str, Layout] = {}  # by name, of the parts that were imported; builders_layouts has them all


def layout(name: str, **about: Any) -> Callable[[Callable[[Path], Path | None]], Callable[[Path], Path | None]]:
    """Register a writer; what it returns is what to open, by default its folder."""

    def keep(write: Callable[[Path], Path | None]) -> Callable[[Path], Path | None]:
        REGISTRY[name] = Layout(name.split("-")[0], lambda folder: write(folder) or folder, **about)
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
