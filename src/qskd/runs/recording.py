"""A teacher's answers to augmented images, shard by shard, as `qskd cache` keeps them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from qskd.data.batch import Sample, collate
from qskd.data.dataset import DetectionDataset
from qskd.errors import ConfigError
from qskd.lessons.record import Record, records_of
from qskd.models.adapter import Need
from qskd.runs.options import CacheOptions
from qskd.teacher import TeacherSide


@dataclass(frozen=True, slots=True)
class Recorder:
    """Makes records of a teacher's answers, an epoch at a time."""

    side: TeacherSide
    data: DetectionDataset
    needs: frozenset[Need]
    dtype: torch.dtype
    options: CacheOptions
    device: torch.device
    rank: int
    world: int

    def epoch(self, epoch: int, shards: Sequence[Sequence[int]]) -> Iterator[dict[int, Record]]:
        """The records of each shard, given the positions of its images."""
        self.data.set_epoch(epoch)
        positions = [position for shard in shards for position in shard]
        samples = iter(
            DataLoader(
                self.data,
                batch_size=None,
                sampler=positions,
                num_workers=self.options.dataloader_num_workers,
                collate_fn=_as_it_is,
            )
        )
        for shard in shards:
            yield dict(sorted(self._records(islice(samples, len(shard)))))

    def _records(self, samples: Iterator[Sample]) -> Iterator[tuple[int, Record]]:
        """Position and record of each image; those of one shape are seen together, so nothing is padded."""
        waiting: dict[tuple[int, ...], list[Sample]] = {}
        for sample in samples:
            shape = tuple((sample.pixels if sample.teacher_pixels is None else sample.teacher_pixels).shape)
            group = waiting.setdefault(shape, [])
            group.append(sample)
            if len(group) == self.options.batch_size:
                yield from self._of_one_shape(waiting.pop(shape))
        for group in waiting.values():
            yield from self._of_one_shape(group)

    def _of_one_shape(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Record]]:
        batch = collate(samples).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16) if self.options.bf16 else contextlib.nullcontext():
            read = self.side.read(batch, capture_attention=Need.ATTENTION in self.needs)
            records = records_of(read, batch.for_teacher().content, self.needs, self.dtype)
        for (_, position), image, record in zip(batch.variations, batch.image_ids, records, strict=True):
            self._refuse_infinite(image, record)
            yield position, record

    def _refuse_infinite(self, image: int, record: Record) -> None:
        for name, tensor in record.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ConfigError(
                    f"The teacher's {name} of image {image} is not finite in {self.options.cache_dtype}. Give "
                    "--cache_dtype float32, and if that does not help, look at the teacher: `qskd eval`."
                )


def _as_it_is(sample: Any) -> Any:
    return sample
