"""Tiny COCO folders, written to a temporary directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 90, "name": "owl"}]


def annotation(id_: int, image: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"id": id_, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


def coco_content() -> dict[str, Any]:
    """Two images of 40 x 30 (width x height) and an empty one; ids with gaps; one crowd."""
    return {
        "images": [
            {"id": 11, "file_name": "a.png", "height": 30, "width": 40},
            {"id": 5, "file_name": "b.png", "height": 30, "width": 40},
            {"id": 8, "file_name": "c.png", "height": 30, "width": 40},
        ],
        "annotations": [
            annotation(100, 5, 90, [1, 2, 10, 20], area=150.0),
            annotation(4, 11, 3, [0.5, 0.5, 20, 10]),
            annotation(7, 5, 7, [5, 5, 30, 20], iscrowd=1, area=333.0),
            annotation(9, 5, 3, [12, 3, 4, 5]),
        ],
        "categories": [dict(category) for category in reversed(CATEGORIES)],
    }


def write_coco(
    folder: Path, content: Any = None, *, split: str = "train", skip: tuple[str, ...] = ()
) -> tuple[Path, Path]:
    """Annotation file and image folder; images are noise, drawn from their position."""
    content = coco_content() if content is None else content
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for number, record in enumerate(coco_content()["images"]):
        if record["file_name"] not in skip:
            noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(images / record["file_name"])
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path, images


def edit(data: Path, split: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the annotation file of a split in place."""
    path = data / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
