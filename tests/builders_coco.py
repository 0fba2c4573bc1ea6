"""The set of builders_formats in layouts of COCO."""

from pathlib import Path
from typing import Any

from builders_formats import CLASSES, PICTURES, ROBOFLOW, layout, put, put_images


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
