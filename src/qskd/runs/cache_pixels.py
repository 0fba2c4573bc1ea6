"""What a few augmented images look like, so that a cache is not read for images that look otherwise."""

import torch

from qskd.data.batch import Sample
from qskd.data.dataset import DetectionDataset
from qskd.runs.building import evenly

_IMAGES = 8
_SIDE = 8  # of the thumbnails, in pixels: few numbers, which another decoder changes little


def thumbnails(data: DetectionDataset) -> tuple[bytes, ...]:
    """Of a few images as the teacher sees them in the first epoch; all channels and rows end to end."""
    data.set_epoch(0)
    return tuple(_thumbnail(data[position]) for position in evenly(range(len(data)), _IMAGES))


def _thumbnail(sample: Sample) -> bytes:
    pixels = sample.pixels if sample.teacher_pixels is None else sample.teacher_pixels
    small = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), _SIDE)
    return bytes(int(value) for value in small.round().flatten().tolist())
