"""The images of an inspection: a split of labelled data, or files without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from qskd.data.batch import Batch, Sample, Targets, collate
from qskd.data.dataset import DetectionDataset
from qskd.data.images import read_image, read_pixels, upright_size
from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize, build_transform
from qskd.errors import ConfigError, DataError
from qskd.labels import LabelMap, normalise
from qskd.models.adapter import DetrAdapter
from qskd.models.relabel import to_student_classes
from qskd.runs import building, picturing


class InspectedImages(Protocol):
    """Images with objects, by position."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What labels count from 0."""

    def __len__(self) -> int: ...

    def batch(self, positions: Sequence[int]) -> Batch:
        """Images at the student's and at the teacher's size, with their objects."""

    def name(self, position: int) -> str:
        """What the image is called."""

    def picture(self, position: int) -> Image.Image:
        """The image as it is in its file, upright."""

    def chosen(self, count: int) -> list[int]:
        """Positions of at most ``count`` images worth showing."""


@dataclass(frozen=True)
class LabelledImages:
    """A split of the data."""

    index: DetectionIndex
    dataset: DetectionDataset

    @classmethod
    def of(cls, index: DetectionIndex, size: ImageSize, teacher_size: ImageSize) -> "LabelledImages":
        """The split at the sizes that student and teacher see."""
        theirs = build_transform(teacher_size, train=False) if teacher_size != size else None
        dataset = DetectionDataset(index, build_transform(size, train=False), teacher_transform=theirs)
        return cls(index, dataset)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The data's classes."""
        return self.index.class_names

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, positions: Sequence[int]) -> Batch:
        """Images with the data's labels."""
        return collate([self.dataset[position] for position in positions])

    def name(self, position: int) -> str:
        """The file's name, as the annotations have it."""
        return self.index.images.file_names[position]

    def picture(self, position: int) -> Image.Image:
        """The image as it is in its file, upright."""
        return _as_image(read_image(self.index.images[position]))

    def chosen(self, count: int) -> list[int]:
        """Images evenly spread over those that hold objects."""
        return picturing.evenly_chosen(self.index, count)


@dataclass(frozen=True)
class UnlabelledImages:
    """Image files, whose objects are what a teacher is sure of: no ground truth is known.

    Args:
        paths: image files.
        sizes: what student and teacher see.
        teacher: whose detections count, on its device.
        threshold: the least best score, in [0, 1], of a query of the last layer that counts as an object.
    """

    paths: Sequence[Path]
    sizes: tuple[ImageSize, ImageSize]
    teacher: DetrAdapter
    threshold: float

    @property
    def class_names(self) -> tuple[str, ...]:
        """The teacher's classes."""
        return own_classes(self.teacher)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, positions: Sequence[int]) -> Batch:
        """Images with the teacher's confident detections as objects."""
        batch = collate([self._sample(position) for position in positions])
        device = next(self.teacher.model.parameters()).device
        found = detected_objects(self.teacher, batch.for_teacher().to(device), self.threshold).to("cpu")
        return Batch(batch.pixels, batch.content, found, batch.image_ids, batch.original_sizes, batch.teacher_images)

    def name(self, position: int) -> str:
        """The file's name."""
        return self.paths[position].name

    def picture(self, position: int) -> Image.Image:
        """The image as it is in its file, upright."""
        height, width = upright_size(self.paths[position])
        return _as_image(read_pixels(self.paths[position], height=height, width=width))

    def chosen(self, count: int) -> list[int]:
        """Images evenly spread over all."""
        return building.evenly(range(len(self.paths)), count)

    def _sample(self, position: int) -> Sample:
        path = self.paths[position]
        height, width = upright_size(path)
        pixels = read_pixels(path, height=height, width=width)
        nothing, random = (np.zeros(0, dtype=np.int64), np.zeros((0, 4))), np.random.default_rng(0)
        shown = [build_transform(size, train=False)(pixels, nothing, random)[0] for size in self.sizes]
        theirs = shown[1] if self.sizes[0] != self.sizes[1] else None
        return Sample(shown[0], torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), position, (height, width), theirs)


def own_classes(adapter: DetrAdapter) -> tuple[str, ...]:
    """The names of a model's classes without the rows that stand for none, as in COCO's 91."""
    names = [name for _, name in sorted(adapter.id2label.items()) if normalise(name) not in ("", "n/a")]
    return tuple(dict.fromkeys(names))


@torch.no_grad()
def detected_objects(teacher: DetrAdapter, batch: Batch, threshold: float) -> Targets:
    """What the last layer's queries are sure of, each query's best class, as if it were ground truth."""
    label_map = LabelMap.between(teacher.id2label, own_classes(teacher))
    view = to_student_classes(teacher.read(batch).view, label_map)
    score, label = view.scores()[-1].max(-1)  # [B, Q]
    keep = score >= threshold
    boxes = view.boxes[-1]
    labels = [label[image][keep[image]] for image in range(len(batch))]
    return Targets.from_lists(labels, [boxes[image][keep[image]] for image in range(len(batch))])


def image_files(names: Sequence[str]) -> list[Path]:
    """The files, each looked at.

    Raises:
        ConfigError: no name.
        DataError: one of them is no image.
    """
    if not names:
        raise ConfigError("--image takes at least one image file.")
    paths = [Path(name) for name in names]
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path} is a folder; --image takes image files, as in --image {path}/*.jpg.")
        upright_size(path)
    return paths


def _as_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
