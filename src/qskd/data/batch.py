"""What one training step sees: images, where they are padding, and their objects.

Letters used everywhere: B images, N targets of an image (padded to the most), H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Variation = tuple[int, int]
"""(epoch, position in the data): which augmentation of which image."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The objects of B images, padded to the same number N (which may be 0).

    ``counts`` is known on the host, so nobody has to ask the device how many objects there are.
    """

    labels: Tensor  # [B, N] long, class index of the data's vocabulary; 0 where padded
    boxes: Tensor  # [B, N, 4] cxcywh, fractions of the image content; 0 where padded
    is_object: Tensor  # [B, N] bool, False where padded
    counts: tuple[int, ...]  # objects of each image
    host_boxes: Tensor | None = None  # boxes on the CPU, where the batch came from there to another device

    @classmethod
    def from_lists(cls, labels: Sequence[Tensor], boxes: Sequence[Tensor]) -> "Targets":
        """Pad per-image labels [N_i] and boxes [N_i, 4] to one batch."""
        counts = tuple(len(image) for image in labels)
        size, most = len(counts), max(counts, default=0)
        device = labels[0].device if size else torch.device("cpu")
        all_labels = torch.zeros(size, most, dtype=torch.long, device=device)
        all_boxes = torch.zeros(size, most, 4, dtype=torch.float32, device=device)
        is_object = torch.zeros(size, most, dtype=torch.bool, device=device)
        for index, count in enumerate(counts):
            all_labels[index, :count] = labels[index]
            all_boxes[index, :count] = boxes[index].float()
            is_object[index, :count] = True
        return cls(all_labels, all_boxes, is_object, counts)

    @property
    def total(self) -> int:
        """Objects in the whole batch."""
        return sum(self.counts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Targets":
        """The same targets on another device."""
        return Targets(
            self.labels.to(device, non_blocking=non_blocking),
            self.boxes.to(device, non_blocking=non_blocking),
            self.is_object.to(device, non_blocking=non_blocking),
            self.counts,
            self.on_host(),
        )

    def pin_memory(self) -> "Targets":
        """The same targets in memory that can be copied from while the host goes on; asked for by torch's loader."""
        return replace(
            self,
            labels=self.labels.pin_memory(),
            boxes=self.boxes.pin_memory(),
            is_object=self.is_object.pin_memory(),
        )

    def on_host(self) -> Tensor | None:
        """The boxes where they can be read without waiting for a device; None if nowhere."""
        return self.boxes if self.boxes.device.type == "cpu" else self.host_boxes

    def as_huggingface(self) -> list[dict[str, Tensor]]:
        """The form that transformers' detection models take: ``class_labels`` and ``boxes`` per image."""
        return [
            {"class_labels": self.labels[index, :count], "boxes": self.boxes[index, :count]}
            for index, count in enumerate(self.counts)
        ]


@dataclass(frozen=True, slots=True)
class Images:
    """Images of any sizes side by side, padded with 0 on the right and at the bottom to the largest."""

    pixels: Tensor  # [B, 3, H, W] float32 in [0, 1]
    content: Tensor  # [B, 2] long, (height, width) in pixels without the padding
    padded: bool | None = None  # whether any has padding, as the host knows; None: ask the device

    def pin_memory(self) -> "Images":
        """The same images in pinned memory."""
        return replace(self, pixels=self.pixels.pin_memory(), content=self.content.pin_memory())

    def to(self, device: Any, non_blocking: bool = False) -> "Images":
        """The same images on another device."""
        return Images(
            self.pixels.to(device, non_blocking=non_blocking),
            self.content.to(device, non_blocking=non_blocking),
            self.padded,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one step, before any normalisation, with their objects."""

    pixels: Tensor  # [B, 3, H, W] float32 in [0, 1]; 0 in the padding (right and bottom)
    content: Tensor  # [B, 2] long, (height, width) in pixels of the image content, without padding
    targets: Targets
    image_ids: tuple[int, ...]  # ids of the annotation file
    original_sizes: tuple[tuple[int, int], ...]  # (height, width) of the image files, in pixels
    teacher_images: Images | None = None  # the same content at the teacher's own size, if it has one
    variations: tuple[Variation, ...] = ()  # of each image; empty where images are not varied
    padded: bool | None = None  # whether any image has padding, as the host knows; None: ask the device

    def for_teacher(self) -> "Batch":
        """What the teacher sees: the same objects in the same images, at its own size if it has one."""
        if self.teacher_images is None:
            return self
        own, objects = self.teacher_images, self.targets
        return Batch(
            own.pixels,
            own.content,
            objects,
            self.image_ids,
            self.original_sizes,
            variations=self.variations,
            padded=own.padded,
        )

    @property
    def is_padded(self) -> bool:
        """Whether any image has padding; asks the device where the host does not know."""
        if self.padded is not None:
            return self.padded
        height, width = self.pixels.shape[-2:]
        return bool((self.content != self.content.new_tensor([height, width])).any())

    def is_padding(self) -> Tensor:
        """[B, H, W] bool, True where there is padding instead of image."""
        height, width = self.pixels.shape[-2:]
        rows = torch.arange(height, device=self.pixels.device) >= self.content[:, :1]  # [B, H]
        columns = torch.arange(width, device=self.pixels.device) >= self.content[:, 1:]  # [B, W]
        return rows[:, :, None] | columns[:, None, :]

    def to(self, device: Any, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.pixels.to(device, non_blocking=non_blocking),
            self.content.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
            self.image_ids,
            self.original_sizes,
            self.teacher_images.to(device, non_blocking=non_blocking) if self.teacher_images else None,
            self.variations,
            self.padded,
        )

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory."""
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            content=self.content.pin_memory(),
            targets=self.targets.pin_memory(),
            teacher_images=self.teacher_images.pin_memory() if self.teacher_images else None,
        )

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image before it becomes part of a batch; uint8, a quarter of the bytes of a float image."""

    pixels: Tensor  # [3, h, w] uint8
    labels: Tensor  # [N] long
    boxes: Tensor  # [N, 4] float32 cxcywh, fractions of the image
    image_id: int
    original_size: tuple[int, int]  # (height, width) of the image file, in pixels
    teacher_pixels: Tensor | None = None  # [3, h', w'] uint8, the same content at the teacher's own size
    variation: Variation | None = None


def collate(samples: Sequence[Sample], *, multiple_of: int = 1) -> Batch:
    """One batch of images of any sizes.

    Args:
        samples: at least one; all with the teacher's pixels or none.
        multiple_of: pixels; height and width of the batch are rounded up to a multiple of it.
    """
    images = _side_by_side([sample.pixels for sample in samples], multiple_of)
    theirs = [sample.teacher_pixels for sample in samples if sample.teacher_pixels is not None]
    targets = Targets.from_lists([sample.labels for sample in samples], [sample.boxes for sample in samples])
    return Batch(
        images.pixels,
        images.content,
        targets,
        tuple(sample.image_id for sample in samples),
        tuple(sample.original_size for sample in samples),
        _side_by_side(theirs, multiple_of) if theirs else None,
        tuple(sample.variation for sample in samples if sample.variation is not None),
        images.padded,
    )


def _side_by_side(images: Sequence[Tensor], multiple_of: int) -> Images:
    """Images [3, h, w] uint8 of any sizes as one padded tensor."""
    content = torch.tensor([image.shape[-2:] for image in images], dtype=torch.long)
    height, width = (-(-side // multiple_of) * multiple_of for side in content.amax(dim=0).tolist())
    # NumPy asks for huge pages: fresh memory of a batch's size costs 4 times less than torch.empty's.
    pixels = torch.from_numpy(np.empty((len(images), 3, height, width), dtype=np.float32))
    for place, image in zip(pixels, images, strict=True):
        h, w = image.shape[-2:]
        torch.mul(image, 1 / 255, out=place[:, :h, :w])
        place[:, h:] = 0
        place[:, :h, w:] = 0
    return Images(pixels, content, any(image.shape[-2:] != (height, width) for image in images))
