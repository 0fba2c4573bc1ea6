"""Images without annotations, in an endless stream that a resumed run takes up where it was."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Sampler

from qskd.data.batch import Sample, collate
from qskd.data.dataset import DetectionDataset
from qskd.data.formats.layout import Content, images_below
from qskd.data.images import upright_sizes
from qskd.data.index import DetectionIndex
from qskd.errors import DataError

_SALT = 7919  # so that unlabelled images are not drawn as labelled ones of the same position


def open_unlabeled(folder: Path, class_names: Sequence[str]) -> DetectionIndex:
    """Every image in a folder and its folders, without objects.

    Raises:
        DataError: no folder, no images, or a file that is no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give one with images as --unlabeled.")
    images = images_below(folder)
    if not images:
        raise DataError(f"{folder} holds no images. Give a folder with images as --unlabeled.")
    content = Content(class_names)
    for image, (height, width) in zip(images, upright_sizes(images), strict=True):
        content.add_image(image.relative_to(folder).as_posix(), height, width)
    return DetectionIndex.of(folder, folder, content.as_coco())


class UnlabeledDataset(DetectionDataset):
    """Images of an index in an endless numbering: image n of round r is number r * len(index) + n.

    Randomness depends on (seed, number) only; there are no epochs.
    """

    def __getitem__(self, number: int) -> Sample:
        return self._sample(number % len(self.index), (self.seed, _SALT, number))


class EndlessSampler(Sampler[int]):
    """Numbers of a dataset of ``size`` images, shuffled round by round, for one of several processes.

    Args:
        size: images.
        seed: decides the order of every round.
        rank: of this process.
        world: processes; each takes every ``world``-th number.
        start: numbers (of all processes) that are past already.
    """

    def __init__(self, size: int, seed: int, *, rank: int = 0, world: int = 1, start: int = 0) -> None:
        self.size, self.seed = size, seed
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[int]:
        position = self.start + self.rank
        order, known = np.zeros(0, dtype=np.int64), -1
        while True:
            rounds, place = divmod(position, self.size)
            if rounds != known:
                order, known = np.random.default_rng((self.seed, _SALT, rounds)).permutation(self.size), rounds
            yield rounds * self.size + int(order[place])
            position += self.world


def unlabeled_loader(
    dataset: UnlabeledDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    past: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> "DataLoader[Sample]":
    """Endless batches; ``past`` is how many batches every process has had already."""
    sampler = EndlessSampler(len(dataset.index), dataset.seed, rank=rank, world=world, start=past * batch_size * world)
    return DataLoader(
        dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate, pin_memory=pin_memory
    )
