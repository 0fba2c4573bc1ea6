"""One run of `qskd cache`: what is there already, what the teacher is worth, and the shards that are missing."""

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qskd.errors import CheckpointError, ConfigError
from qskd.files import is_temporary, whole_file
from qskd.lessons.cache import CONTENT, DETECTIONS, CacheContent, shards_of, write_index
from qskd.lessons.claim import LOCK, claimed
from qskd.lessons.record import Record, bytes_of
from qskd.lessons.shards import is_whole, shard_name, write_shard, writing
from qskd.models.adapter import Need
from qskd.runs import building, preflight, processes
from qskd.runs.cache_pixels import thumbnails
from qskd.runs.caching_progress import Progress, in_bytes
from qskd.runs.given_teacher import LoadedTeacher
from qskd.runs.recording import Recorder

_SHARD_BYTES = 64 * 2**20  # about; what a pass that was cut off makes again
_SHARD_IMAGES = 256  # at most; they are in memory until the shard is written
_SAMPLED = 8  # images from which the size on disk is estimated
_MARGIN = 1.05  # on the estimate
_LOOKS, _WAIT = 60, 1.0  # network disks show after a while what another machine wrote; seconds between two looks
_BEFORE = (LOCK, DETECTIONS)  # what may lie there without CONTENT


@dataclass(frozen=True, slots=True)
class Cached:
    """What `qskd cache` leaves behind."""

    folder: Path
    images: int
    epochs: int
    bytes: int  # of all shards


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of `qskd cache`."""

    folder: Path
    recorder: Recorder
    splits: building.Splits
    key: dict[str, Any]
    teacher: LoadedTeacher
    check: bool

    def run(self, sizes: dict[str, int | None]) -> Cached:
        """Look at what is there, measure the teacher, make what is missing."""
        self._make_folder()
        # The first process speaks for all of its launch.
        with claimed(self.folder) if self.recorder.rank == 0 else contextlib.nullcontext():
            return self._run(sizes)

    def _run(self, sizes: dict[str, int | None]) -> Cached:
        content = (self._begun() or self._new(sizes)) if self.recorder.rank == 0 else None
        processes.meet()
        content = content or self._seen()
        mine = self._missing(content)
        if mine:
            self._make(content, mine)
        # Until every process has looked at its shards, seals of damaged ones are still there.
        processes.meet()
        epochs = self._finished(content)
        kept = sum(path.stat().st_size for path in self.folder.glob("epoch*.safetensors"))
        return Cached(self.folder, content.images, epochs, kept)

    def _made(self) -> dict[str, Any]:
        return {"dtype": self.recorder.options.cache_dtype, "bf16": self.recorder.options.bf16}

    def _make_folder(self) -> None:
        """Make the folder, if nothing else is in it.

        Raises:
            ConfigError: it holds other files, or cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.folder.iterdir()}
        except OSError as error:
            raise ConfigError(f"--output_dir {self.folder} cannot be made or read ({error.strerror}).") from error
        others = sorted(name for name in names if not _may_lie_there(name))
        if others and CONTENT not in names:
            raise ConfigError(
                f"--output_dir {self.folder} holds other files ({others[0]}). Give a new folder for the cache."
            )

    def _begun(self) -> CacheContent | None:
        """What is in the folder already, if it is a cache of the same.

        Raises:
            CheckpointError: it is a cache of something else.
            ConfigError: its answers are kept otherwise.
        """
        if not (self.folder / CONTENT).is_file():
            return None
        content = CacheContent.load(self.folder)
        content.check(self.folder, self.key, self.recorder.needs)
        content.check_pixels(self.folder, thumbnails(self.recorder.data))
        if dict(content.made) != self._made():
            raise ConfigError(
                f"The cache in {self.folder} was made with {dict(content.made)}, this one asks for {self._made()}. "
                "Give the same --cache_dtype and --bf16, or another --output_dir."
            )
        return content

    def _new(self, sizes: dict[str, int | None]) -> CacheContent:
        """Begin a cache, if there is room for it."""
        sample = self._sample(self.recorder.needs)
        each, images = _mean_bytes(sample), len(self.recorder.data)
        self._check_room(each, images * self.recorder.options.epochs)
        content = CacheContent(
            self.key,
            self._made(),
            self.recorder.needs,
            self.teacher.facts,
            self._measured(),
            sizes,
            images,
            max(1, min(_SHARD_IMAGES, int(_SHARD_BYTES / each))),
            tuple(sample[0]),
            thumbnails(self.recorder.data),
        )
        content.save(self.folder)
        return content

    def _seen(self) -> CacheContent:
        """What the first process has begun, seen by another one.

        Raises:
            ConfigError: it is not there.
        """
        for _ in range(_LOOKS):
            if (content := self._begun()) is not None:
                return content
            time.sleep(_WAIT)
        raise self._not_shared()

    def _finished(self, content: CacheContent) -> int:
        """Epochs that are there, the index written by the first process.

        Raises:
            ConfigError: shards of other processes are not.
        """
        asked = self.recorder.options.epochs
        if self.recorder.rank != 0:
            return asked
        for _ in range(_LOOKS):
            if epochs := write_index(self.folder, content, asked):
                return epochs
            time.sleep(_WAIT)
        raise self._not_shared()

    def _not_shared(self) -> ConfigError:
        return ConfigError(
            f"--output_dir {self.folder} does not hold what another process of this launch wrote there: give a folder "
            "that all machines share."
        )

    def _sample(self, needs: frozenset[Need]) -> list[Record]:
        """The records of a few images, evenly spread."""
        chosen = building.evenly(range(len(self.recorder.data)), _SAMPLED)
        (records,) = replace(self.recorder, needs=needs).epoch(0, [chosen])
        return list(records.values())

    def _measured(self) -> dict[str, Any]:
        """The teacher's metrics and cost, its detections kept.

        Raises:
            PreflightError: the teacher is no better than nothing.
        """
        metrics: dict[str, Any] = {}
        if self.splits.val is not None:
            metrics, found, images = self.teacher.measured(self.splits.val, self.recorder.options.batch_size)
            if self.check and metrics["AP50"] is not None:
                preflight.check_teacher(metrics, images)
            with writing(self.folder / DETECTIONS), whole_file(self.folder / DETECTIONS) as fresh:
                found.save(fresh)
        return {"metrics": metrics, "cost": self.teacher.cost()}

    def _missing(self, content: CacheContent) -> list[tuple[int, int]]:
        """(epoch, number) of this process's shards that are not there, or not whole; these lose their seals."""
        every = shards_of(content.images, content.images_per_shard, self.recorder.options.epochs)
        mine = every[self.recorder.rank :: self.recorder.world]
        there = [shard for shard in mine if (self.folder / f"{shard_name(*shard)}.safetensors").exists()]
        whole = {shard for shard in there if self._is_whole(content, *shard)}
        missing = [shard for shard in mine if shard not in whole]
        for shard in missing:
            path = self.folder / f"{shard_name(*shard)}.json"
            with writing(path):
                path.unlink(missing_ok=True)
        if there:
            self._tell(
                f"{len(whole)} of {len(mine)} shards are there already"
                + (f", {len(there) - len(whole)} damaged and made again" if len(there) > len(whole) else "")
            )
            if missing and self.recorder.rank == 0:
                each = _mean_bytes(self._sample(content.needs))
                todo = sum(len(_positions(content, number)) for _, number in missing)
                self._check_room(each, todo * self.recorder.world)
        return missing

    def _is_whole(self, content: CacheContent, epoch: int, number: int) -> bool:
        return is_whole(self.folder, shard_name(epoch, number), _positions(content, number), content.fields)

    def _check_room(self, each: float, todo: int) -> None:
        """Say how much will be written, and refuse what does not fit.

        Args:
            each: bytes of an image.
            todo: images that are still to be seen.

        Raises:
            ConfigError: the disk has too little room.
        """
        epochs, images = self.recorder.options.epochs, len(self.recorder.data)
        needed = each * _MARGIN * todo
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

    def _make(self, content: CacheContent, shards: Sequence[tuple[int, int]]) -> None:
        """Make shards with all that the cache keeps, which may be more than this pass was asked for."""
        recorder = replace(self.recorder, needs=content.needs)
        progress = Progress(sum(len(_positions(content, number)) for _, number in shards), self._tell)
        for epoch in sorted({epoch for epoch, _ in shards}):
            numbers = [number for of, number in shards if of == epoch]
            positions = [_positions(content, number) for number in numbers]
            for number, records in zip(numbers, recorder.epoch(epoch, positions), strict=True):
                self._refuse_other_fields(content, records)
                write_shard(self.folder, shard_name(epoch, number), records)
                progress.add(len(records))

    def _refuse_other_fields(self, content: CacheContent, records: Mapping[int, Record]) -> None:
        for record in records.values():
            if set(record) != set(content.fields):
                raise CheckpointError(
                    f"The records of the cache in {self.folder} hold {', '.join(content.fields)}, this version of qskd "
                    f"keeps {', '.join(record)}. Make another cache: `qskd cache --output_dir ANOTHER`."
                )

    def _tell(self, line: str) -> None:
        if self.recorder.rank == 0:
            print(line, flush=True)


def _positions(content: CacheContent, number: int) -> range:
    """Of the images in a shard."""
    first = number * content.images_per_shard
    return range(first, min(first + content.images_per_shard, content.images))


def _mean_bytes(records: Sequence[Record]) -> float:
    return sum(bytes_of(record) for record in records) / len(records)


def _may_lie_there(name: str) -> bool:
    """Whether a file may lie in a folder that holds no cache yet: a kill had left it behind."""
    return name in _BEFORE or any(is_temporary(name, of) for of in (DETECTIONS, CONTENT))
