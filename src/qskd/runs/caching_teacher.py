"""Running a teacher once over the augmented training data, and keeping its answers; `qskd cache`."""

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qskd.data.transforms import ImageSize
from qskd.distiller import TeacherSide
from qskd.errors import ConfigError
from qskd.files import is_temporary, whole_file
from qskd.labels import LabelMap
from qskd.lessons.cache import CONTENT, DETECTIONS, CacheContent, shards_of, write_index
from qskd.lessons.claim import LOCK, claimed
from qskd.lessons.facts import TeacherFacts
from qskd.lessons.record import Record, bytes_of
from qskd.lessons.shards import is_whole, shard_name, write_shard, writing
from qskd.models.loading import as_teacher
from qskd.runs import building, preflight
from qskd.runs.cache_key import cached_sizes, data_key, needs_of, selection_key, sizes_as_options, teacher_key
from qskd.runs.caching_progress import Progress, continuable, in_bytes
from qskd.runs.evaluating import evaluate_keeping
from qskd.runs.options import CacheOptions, DataOptions, MethodOptions
from qskd.runs.processes import rank, world
from qskd.runs.recording import Recorder
from qskd.runs.training import measured_cost, plain_size

_SHARD_BYTES = 64 * 2**20  # about; a shard is checked as a whole when it is first read
_SHARD_IMAGES = 256  # at most; they are in memory until the shard is written
_SAMPLED = 8  # images from which the size on disk is estimated
_MARGIN = 1.05  # on the estimate
_WAIT = 0.5  # seconds between two looks at what the first process has written
_BEFORE = (LOCK, DETECTIONS)  # what may lie there without CONTENT


@dataclass(frozen=True, slots=True)
class Cached:
    """What `qskd cache` leaves behind."""

    folder: Path
    images: int
    epochs: int
    bytes: int  # of all shards


def cache_teacher(options: CacheOptions, data: DataOptions, method: MethodOptions) -> Cached:
    """Keep a teacher's answers to the training images, in a folder for `distill`.

    Started again, it goes on where it was: shards that are whole are kept, others are made anew. Several processes
    (torchrun) share the shards.

    Raises:
        ConfigError: options that cannot be, or a disk with too little room.
        CheckpointError: the folder holds a cache of something else.
        QskdError: bad input, found before the first image.
    """
    _check(options)
    assert options.teacher is not None
    assert options.output_dir is not None
    settings = method.settings()
    needs = needs_of(settings)
    splits = building.open_splits(data)
    teacher = as_teacher(
        building.open_model(
            options.teacher, None, box_frame=options.teacher_box_frame, trust_remote_code=options.trust_remote_code
        )
    )
    label_map = LabelMap.between(teacher.id2label, splits.class_names)
    size, teacher_size = cached_sizes(options, data, teacher)
    train, _ = building.datasets(splits, data, size, options.seed, teacher_size, workers=options.dataloader_num_workers)
    device = _place(options.use_cpu)
    teacher.model.to(device)
    side = TeacherSide(teacher, label_map, settings.selection, {})
    recorder = Recorder(side, train, needs, getattr(torch, options.cache_dtype), options, device, rank(), world())
    key = (
        teacher_key(teacher)
        | data_key(splits, data)
        | {"image size": plain_size(size), "teacher image size": plain_size(teacher_size), "seed": options.seed}
        | selection_key(settings)
    )
    job = Pass(Path(options.output_dir).expanduser(), recorder, splits, key, teacher_size, method.preflight)
    with continuable(job.folder):
        return job.run(sizes_as_options(size, teacher_size))


def _check(options: CacheOptions) -> None:
    if options.teacher is None:
        raise building.missing_option("--teacher", "a hub id or the folder of a trained detector")
    if options.output_dir is None:
        raise building.missing_option("--output_dir", "a folder for the cache")
    for name in ("epochs", "batch_size"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}; give at least 1.")
    if Path(options.output_dir).is_file():
        raise ConfigError(f"--output_dir {options.output_dir} is a file; give a folder.")


def _place(use_cpu: bool) -> torch.device:
    """The device of this process."""
    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of `qskd cache`."""

    folder: Path
    recorder: Recorder
    splits: building.Splits
    key: dict[str, Any]
    teacher_size: ImageSize
    check: bool

    def run(self, sizes: dict[str, int | None]) -> Cached:
        """Look at what is there, measure the teacher, make what is missing."""
        self._make_folder()
        # The first process speaks for all of its launch.
        with claimed(self.folder) if self.recorder.rank == 0 else contextlib.nullcontext():
            return self._run(self._begun(), sizes)

    def _run(self, content: CacheContent | None, sizes: dict[str, int | None]) -> Cached:
        options, images = self.recorder.options, len(self.recorder.data)
        sample = self._sample()
        each = sum(bytes_of(record) for record in sample) / len(sample)
        per_shard = content.images_per_shard if content else max(1, min(_SHARD_IMAGES, int(_SHARD_BYTES / each)))
        mine = self._missing(per_shard, images)
        todo = sum(min(per_shard, images - number * per_shard) for _, number in mine)
        self._check_room(each, images, todo)
        if content is None:
            content = CacheContent(
                self.key,
                self._made(),
                self.recorder.needs,
                TeacherFacts.of(self.recorder.side.adapter),
                self._measured(),
                sizes,
                images,
                per_shard,
                tuple(sample[0]),
            )
            content.save(self.folder)
        self._make(mine, per_shard, images, Progress(todo, self._tell))
        is_first = self.recorder.rank == 0 and self.recorder.world > 1
        while not (epochs := write_index(self.folder, content, options.epochs)) and is_first:
            time.sleep(_WAIT)  # for the other processes' shards
        kept = sum(path.stat().st_size for path in self.folder.glob("epoch*.safetensors"))
        return Cached(self.folder, images, epochs or options.epochs, kept)

    def _made(self) -> dict[str, Any]:
        return {"dtype": self.recorder.options.cache_dtype, "bf16": self.recorder.options.bf16}

    def _make_folder(self) -> None:
        """Make the folder, if nothing else is in it.

        Raises:
            ConfigError: it holds other files, or cannot be made.
        """
        if self.folder.is_dir() and not (self.folder / CONTENT).is_file():
            others = sorted(path.name for path in self.folder.iterdir() if not _may_lie_there(path.name))
            if others:
                raise ConfigError(
                    f"--output_dir {self.folder} holds other files ({others[0]}). Give a new folder for the cache."
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output_dir {self.folder} cannot be made ({error.strerror}).") from error

    def _begun(self) -> CacheContent | None:
        """What is in the folder already, if it is a cache of the same; all but the first process wait for that one's.

        Raises:
            CheckpointError: it is a cache of something else.
            ConfigError: its answers are kept otherwise.
        """
        while self.recorder.rank != 0 and not (self.folder / CONTENT).is_file():
            time.sleep(_WAIT)
        if not (self.folder / CONTENT).is_file():
            return None
        content = CacheContent.load(self.folder)
        content.check(self.folder, self.key, self.recorder.needs)
        if dict(content.made) != self._made():
            raise ConfigError(
                f"The cache in {self.folder} was made with {dict(content.made)}, this one asks for {self._made()}. "
                "Give the same --cache_dtype and --bf16, or another --output_dir."
            )
        return content

    def _sample(self) -> list[Record]:
        """The records of a few images, evenly spread."""
        chosen = building.evenly(range(len(self.recorder.data)), _SAMPLED)
        (records,) = self.recorder.epoch(0, [chosen])
        return list(records.values())

    def _measured(self) -> dict[str, Any]:
        """The teacher's metrics and cost, its detections kept.

        Raises:
            PreflightError: the teacher is no better than nothing.
        """
        adapter = self.recorder.side.adapter
        metrics: dict[str, Any] = {}
        if self.splits.val is not None:
            metrics, found = evaluate_keeping(
                adapter, self.splits.val, self.teacher_size, self.recorder.options.batch_size
            )
            if self.check and metrics["AP50"] is not None:
                preflight.check_teacher(metrics, len(self.splits.val))
            with writing(self.folder / DETECTIONS), whole_file(self.folder / DETECTIONS) as fresh:
                found.save(fresh)
        return {"metrics": metrics, "cost": measured_cost(adapter, self.teacher_size)}

    def _missing(self, per_shard: int, images: int) -> list[tuple[int, int]]:
        """(epoch, number) of this process's shards that are not there, or not whole."""
        every = shards_of(images, per_shard, self.recorder.options.epochs)
        mine = every[self.recorder.rank :: self.recorder.world]
        there = [shard for shard in mine if (self.folder / f"{shard_name(*shard)}.safetensors").exists()]
        whole = {shard for shard in there if is_whole(self.folder, shard_name(*shard))}
        if there:
            self._tell(
                f"{len(whole)} of {len(mine)} shards are there already"
                + (f", {len(there) - len(whole)} damaged and made again" if len(there) > len(whole) else "")
            )
        return [shard for shard in mine if shard not in whole]

    def _check_room(self, each: float, images: int, todo: int) -> None:
        """Say how much will be written, and refuse what does not fit.

        Raises:
            ConfigError: the disk has too little room.
        """
        epochs = self.recorder.options.epochs
        needed = each * _MARGIN * todo * self.recorder.world
        free = shutil.disk_usage(self.folder).free
        self._tell(
            f"about {in_bytes(each)} an image in {self.recorder.options.cache_dtype}: "
            f"{in_bytes(each * images * epochs)} for {images} images x {epochs} epochs; "
            f"{in_bytes(needed)} still to be written, {in_bytes(free)} free"
        )
        if needed > free:
            raise ConfigError(
                f"The cache needs {in_bytes(needed)} more in {self.folder}, where {in_bytes(free)} are free. "
                "Give fewer --epochs, --cache_dtype float16, smaller images, or an --output_dir on another disk."
            )

    def _make(self, shards: Sequence[tuple[int, int]], per_shard: int, images: int, progress: Progress) -> None:
        for epoch in sorted({epoch for epoch, _ in shards}):
            numbers = [number for of, number in shards if of == epoch]
            positions = [range(number * per_shard, min((number + 1) * per_shard, images)) for number in numbers]
            for number, records in zip(numbers, self.recorder.epoch(epoch, positions), strict=True):
                write_shard(self.folder, shard_name(epoch, number), records)
                progress.add(len(records))

    def _tell(self, line: str) -> None:
        if self.recorder.rank == 0:
            print(line, flush=True)


def _may_lie_there(name: str) -> bool:
    """Whether a file may lie in a folder that holds no cache yet: a kill had left it behind."""
    return name in _BEFORE or any(is_temporary(name, of) for of in (DETECTIONS, CONTENT))
