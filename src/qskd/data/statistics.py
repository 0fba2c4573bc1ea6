"""What a split holds, in numbers: classes and their balance, sizes, objects an image."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SMALL, MEDIUM = 32.0**2, 96.0**2  # square pixels; COCO's bins


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """Numbers of one split."""

    images: int
    empty_images: int  # without any object
    boxes: int
    crowds: int
    classes: dict[str, int]  # objects of each class, in the order of the classes
    images_with_class: dict[str, int]
    sizes: dict[str, int]  # objects by COCO's bins, at the images' own size: small, medium, large
    objects_per_image: dict[str, float]  # least, median, mean, most
    image_sizes: dict[str, int]  # images by "width x height", the most frequent first

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def statistics_of(content: Mapping[str, Any]) -> SplitStatistics:
    """Count the content of a split, which makes sense already (see ``mend``)."""
    names = {row["id"]: row["name"] for row in content["categories"]}
    objects = [row for row in content["annotations"] if not row.get("iscrowd")]
    by_class = Counter(row["category_id"] for row in objects)
    pairs = {(row["image_id"], row["category_id"]) for row in objects}
    with_class = Counter(category for _, category in pairs)
    per_image = Counter(row["image_id"] for row in objects)
    counts = np.array([per_image[row["id"]] for row in content["images"]] or [0])
    areas = np.array([row["bbox"][2] * row["bbox"][3] for row in objects])
    shapes = Counter(f"{row['width']} x {row['height']}" for row in content["images"])
    return SplitStatistics(
        images=len(content["images"]),
        empty_images=int((counts == 0).sum()) if content["images"] else 0,
        boxes=len(objects),
        crowds=len(content["annotations"]) - len(objects),
        classes={name: by_class[key] for key, name in names.items()},
        images_with_class={name: with_class[key] for key, name in names.items()},
        sizes={
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
        objects_per_image={
            "least": float(counts.min()),
            "median": float(np.median(counts)),
            "mean": float(counts.mean()),
            "most": float(counts.max()),
        },
        image_sizes=dict(shapes.most_common(20)),
    )
