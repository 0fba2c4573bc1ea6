"""An index with pixels: what a DataLoader's workers read, the same whatever their number."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from qskd.data.batch import Sample
from qskd.data.caching import ImageCache
from qskd.data.images import read_image
from qskd.data.index import DetectionIndex
from qskd.data.transforms import Transform


def _decoded_scale(pixels: Tensor, width: int) -> float:
    """1, 1/2, 1/4 or 1/8: what a JPEG decoder made of an image of this width in pixels."""
    return 0.5 ** round(math.log2(width / pixels.shape[2]))


class DetectionDataset(Dataset[Sample]):
    """The images of an index, transformed.

    Randomness depends on (seed, epoch, position) only: not on the number of workers, nor on what was read
    before, so a resumed run sees what an uninterrupted one would have seen. The epoch lies in shared memory:
    workers that outlive an epoch see it change.

    Args:
        index: what to read.
        transform: what to do with it, see ``build_transform``.
        seed: >= 0.
        decode_at_least: pixels >= 8; JPEGs with both sides at least twice this may be decoded smaller, which
            is faster and changes pixels slightly. None (for evaluation) decodes in full.
        teacher_transform: makes the teacher's pixels where they are of another size than the student's; it draws the
            same random numbers as ``transform``, so both see the same part of the image in the same colours.
        cache: keeps decoded images; None decodes them each time.
    """

    def __init__(
        self,
        index: DetectionIndex,
        transform: Transform,
        seed: int = 0,
        *,
        decode_at_least: int | None = None,
        teacher_transform: Transform | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        self.index = index
        self.transform = transform
        self.teacher_transform = teacher_transform
        self.cache = cache
        self.seed = seed
        self.decode_at_least = decode_at_least
        self._replayed: int | None = None
        self._epoch = torch.zeros((), dtype=torch.long)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch whose augmentations are drawn."""
        epoch = int(self._epoch)
        return epoch if self._replayed is None else epoch % self._replayed

    def set_epoch(self, epoch: int) -> None:
        """Draw other augmentations from now on, in running workers too."""
        self._epoch.fill_(epoch)

    def replay(self, epochs: int, seed: int) -> None:
        """Draw the augmentations of the first ``epochs`` epochs (>= 1) of another seed, over and over again."""
        self._replayed, self.seed = epochs, seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> Sample:
        epoch = self.epoch
        return replace(self._sample(position, (self.seed, epoch, position)), variation=(epoch, position))

    def _sample(self, position: int, key: tuple[int, ...]) -> Sample:
        """The image at a position, varied by random numbers that depend on the key alone."""
        record = self.index.images[position]
        side = self.decode_at_least
        read = partial(read_image, record, at_least=None if side is None else (side, side))
        pixels = self.cache.get(position, read) if self.cache is not None else read()
        corners = self.index.boxes(position) * _decoded_scale(pixels, record.width)
        objects = (self.index.labels(position), corners)
        shown, (labels, boxes) = self.transform(pixels, objects, np.random.default_rng(key))
        for_teacher = None
        if self.teacher_transform is not None:
            for_teacher, _ = self.teacher_transform(pixels, objects, np.random.default_rng(key))
        return Sample(
            shown,
            torch.from_numpy(labels.copy()),
            torch.from_numpy(boxes.astype(np.float32)),
            record.id,
            (record.height, record.width),
            for_teacher,
        )
