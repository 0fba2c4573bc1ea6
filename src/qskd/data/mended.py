"""What is left of COCO content that was taken apart, and the ids in it."""

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qskd.data.findings import Finding, Severity
from qskd.data.formats.coco_tables import WHERE
from qskd.data.index import ImageRecord

SCALE = "scale"  # key of an image: what its boxes are multiplied by
POSITION = "position"  # key of an image: its place in the file


@dataclass(slots=True)
class Mended:
    """What is left of a split, in COCO's form, and what was found on the way."""

    origin: Path
    folder: Path
    split: str
    blobs: Callable[[int], bytes] | None = None  # the encoded image at a position, where images are no files
    images: dict[int, dict[str, Any]] = field(default_factory=dict)  # by id
    categories: dict[int, str] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unsure: set[int] = field(default_factory=set)  # ids of images with objects nobody knows: labels made no sense
    listed: int = 0  # images that the content names
    listed_boxes: int = 0
    lost: set[int | str] = field(default_factory=set)  # ids of images that were left out
    classes_lost: set[int] = field(default_factory=set)  # what boxes of such images are of

    def note(self, severity: Severity, kind: str, where: str, what: str = "") -> None:
        """Note one finding."""
        self.findings.append(Finding(severity, kind, where, what, self.split))

    def record(self, image: int) -> ImageRecord:
        """Where the pixels of an image are."""
        row = self.images[image]
        blob = partial(self.blobs, row[POSITION]) if self.blobs is not None else None
        return ImageRecord(image, self.folder / row["file_name"], row["height"], row["width"], blob)

    def count_boxes(self, image: int) -> int:
        """How many annotations an image has."""
        return sum(row["image_id"] == image for row in self.annotations)

    def drop_image(self, image: int) -> None:
        """Leave an image out, with its annotations."""
        del self.images[image]
        self.annotations = [row for row in self.annotations if row["image_id"] != image]

    def as_coco(self) -> dict[str, Any]:
        """Content that ``DetectionIndex.of`` takes."""
        return self._content(self.images)

    def clean(self) -> dict[str, Any]:
        """The same without the images some of whose objects are not known, or none of whose boxes is left.

        They would teach that what is seen in them is background.
        """
        return self._content(self.images.keys() - self.unsure)

    def _content(self, kept: Container[int]) -> dict[str, Any]:
        categories = [{"id": key, "name": name} for key, name in sorted(self.categories.items())]
        own = (SCALE, POSITION)
        images = [
            {key: value for key, value in row.items() if key not in own}
            for image, row in self.images.items()
            if image in kept
        ]
        boxes = [row for row in self.annotations if row["image_id"] in kept]
        rows = [{key: value for key, value in row.items() if key != WHERE} for row in boxes]
        return {"images": images, "annotations": rows, "categories": categories}


def whole(value: Any) -> int | None:
    """The whole number that a value is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value % 1:
        return None
    return int(value) if abs(value) < 2**62 else None


def key_of(value: Any) -> int | str | None:
    """What an image may be called by: a whole number, or the text that stands where one should."""
    return value if isinstance(value, str) else whole(value)


def known(value: Any, ids: Mapping[int, int]) -> int | None:
    """The id that a value stands for; None for what is no id."""
    key = whole(value)
    return None if key is None else ids.get(key)
