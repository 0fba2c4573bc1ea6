"""A folder of recorded lessons: what it was made from, what it holds, and whether that fits a run.

``cache.json`` says what the lessons depend on and is written first, ``index.json`` lists the shards once all of them
are there, ``teacher_detections.npz`` is what the teacher found on the validation images.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from qskd.errors import CheckpointError
from qskd.files import write_whole
from qskd.lessons.facts import TeacherFacts
from qskd.lessons.record import fields_read
from qskd.lessons.shards import Seal, ShardReader, seal_of, shard_name, writing
from qskd.models.adapter import Need

CONTENT, INDEX, DETECTIONS = "cache.json", "index.json", "teacher_detections.npz"
_VERSION = 2
_OTHER_PIXELS = 3  # of 255, in a thumbnail: more than decoders and resizing differ by
_DIGITS = 12  # of a fingerprint, in messages

_ADVICE = {  # what to do where a run differs; {} is what the cache has
    "teacher": "leave out --teacher, or give the one it was made with",
    "teacher's reading": "leave out --teacher, or give it with the configuration of then",
    "training data": "give the data it was made from",
    "training images": "their files have changed since",
    "validation data": "give the data it was made from",
    "classes": "give the data it was made from",
}


@dataclass(frozen=True, slots=True)
class CacheContent:
    """What ``cache.json`` holds."""

    key: Mapping[str, Any]  # what the lessons depend on, by a name for people; plain values
    made: Mapping[str, Any]  # how they were computed and kept; a run may compute otherwise
    needs: frozenset[Need]  # what was kept beside predictions
    teacher: TeacherFacts
    measured: Mapping[str, Any]  # "metrics" and "cost" of the teacher, as a run's summary has them
    sizes: Mapping[str, Any]  # the options image_size, max_image_size and the teacher's, as they were settled
    images: int
    images_per_shard: int
    fields: tuple[str, ...]  # of every record
    thumbnails: tuple[bytes, ...]  # of a few images as the teacher saw them

    def save(self, folder: Path) -> None:
        """Write it in one move."""
        content = {
            **asdict(self),
            "version": _VERSION,
            "needs": sorted(need.value for need in self.needs),
            "teacher": self.teacher.as_dict(),
            "thumbnails": [one.hex() for one in self.thumbnails],
        }
        write_json(folder / CONTENT, content)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it.

        Raises:
            CheckpointError: it is not there, damaged, or of another version of qskd.
        """
        path = folder / CONTENT
        if not path.is_file():
            what = "holds no cache.json" if folder.is_dir() else "is no folder"
            raise CheckpointError(f"{folder} {what}. Give a folder that `qskd cache --output_dir` has made.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != _VERSION:
                raise CheckpointError(
                    f"{folder} was made by another version of qskd. Make it again with `qskd cache`, in another folder."
                )
            content["needs"] = frozenset(Need(value) for value in content["needs"])
            content["teacher"] = TeacherFacts.from_dict(content["teacher"])
            content["thumbnails"] = tuple(bytes.fromhex(one) for one in content["thumbnails"])
            found = cls(**content | {"fields": tuple(content["fields"])})
            if min(found.images, found.images_per_shard) < 1:
                raise ValueError(f"{found.images} images in shards of {found.images_per_shard}")
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is damaged ({error}). Make the cache again with `qskd cache`.") from error

    def check(self, folder: Path, key: Mapping[str, Any], needs: Collection[Need]) -> None:
        """Refuse to be used by a run that depends on something else.

        Args:
            folder: for the message.
            key: what the run depends on; names that are absent are not asked for.
            needs: what its terms need.

        Raises:
            CheckpointError: naming all that differs, with both values and what to do.
        """
        lines = [
            f"{name}: the cache has {_short(self.key.get(name))}, this run {_short(value)}; {self._advice(name, value)}"
            for name, value in key.items()
            if self.key.get(name) != value
        ]
        if missing := sorted(need.value for need in frozenset(needs) - self.needs - {Need.PREDICTIONS}):
            lines.append(f"content: the cache holds no {' and no '.join(missing)}, which this run's method needs")
        if lines:
            raise CheckpointError(
                f"The teacher cache in {folder} was made for something else:\n  "
                + "\n  ".join(lines)
                + "\nOr make another cache with this run's options: `qskd cache --output_dir ANOTHER`."
            )

    def check_pixels(self, folder: Path, thumbnails: Sequence[bytes]) -> None:
        """Refuse images that look otherwise than those that the teacher saw, though all else about them is the same.

        Args:
            folder: for the message.
            thumbnails: as the cache's, of the run's images.

        Raises:
            CheckpointError: one of them is another one.
        """
        if len(thumbnails) == len(self.thumbnails) and not any(map(_differ, thumbnails, self.thumbnails)):
            return
        raise CheckpointError(
            f"The teacher cache in {folder} was made of images that look otherwise than this run's. Image files or the "
            "version of qskd, which draws augmentations, have changed since: make it again with `qskd cache`, in "
            "another folder."
        )

    def _advice(self, name: str, asked: Any) -> str:
        """What to do where a run asks for something else under this name."""
        value = self.key.get(name)
        if "size" in name and isinstance(value, list) and isinstance(asked, list):
            return _advice_on_size("teacher_" if "teacher" in name else "", value, is_padded=len(asked) == 2)
        shown = value[0] if isinstance(value, list) and value else str(value).lower()
        return _ADVICE.get(name, f"give --{name.replace('.', '_').replace(' ', '_')} {{}}").format(shown)


def _advice_on_size(prefix: str, edges: list[Any], *, is_padded: bool) -> str:
    """How to ask for these edges; ``is_padded`` where a run gave the longest edge."""
    given = f"give --{prefix}image_size {edges[0]}"
    if len(edges) == 2:
        return f"{given} --{prefix}max_image_size {edges[1]}"
    return f"{given} without --{prefix}max_image_size" if is_padded else given


def _differ(one: bytes, other: bytes) -> bool:
    return len(one) != len(other) or any(abs(a - b) > _OTHER_PIXELS for a, b in zip(one, other, strict=True))


def _short(value: Any) -> str:
    text = str(value)
    is_digest = len(text) == 64 and text.isalnum()
    return text[:_DIGITS] if is_digest else text


@dataclass(frozen=True, slots=True)
class TeacherCache:
    """A finished cache, opened: every shard is there and as long as it was."""

    folder: Path
    content: CacheContent
    epochs: int  # of augmentations
    lessons: ShardReader

    @classmethod
    def open(cls, folder: Path, needs: Collection[Need] = tuple(Need)) -> Self:
        """Open what `qskd cache` has made.

        Args:
            folder: of the cache.
            needs: of the terms that learn from it; what was kept beyond that is not read.

        Raises:
            CheckpointError: it is none, not finished, or a shard is missing or cut off.
        """
        content = CacheContent.load(folder)
        path = folder / INDEX
        if not path.is_file():
            raise CheckpointError(
                f"The teacher cache in {folder} is not finished. Run the `qskd cache` command again: it goes on "
                "where it was."
            )
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            epochs, listed = int(index["epochs"]), index["shards"]
            if epochs < 1 or len(listed) != epochs * -(-content.images // content.images_per_shard):
                raise ValueError(f"{len(listed)} shards of {epochs} epochs")
            # Named by us, not by the file: no name leaves the folder.
            names = [shard_name(*shard) for shard in shards_of(content.images, content.images_per_shard, epochs)]
            seals = {name: Seal(int(listed[name]["bytes"]), str(listed[name]["sha256"])) for name in names}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged ({error}). Run the `qskd cache` command again.") from error
        fields = fields_read(content.fields, needs)
        return cls(folder, content, epochs, ShardReader(folder, seals, fields, content.images_per_shard))

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(seal.bytes for seal in self.lessons.seals.values())


def shards_of(images: int, images_per_shard: int, epochs: int) -> list[tuple[int, int]]:
    """(epoch, number) of every shard."""
    count = -(-images // images_per_shard)
    return [(epoch, number) for epoch in range(epochs) for number in range(count)]


def write_index(folder: Path, content: CacheContent, epochs: int) -> int:
    """Write ``index.json`` if all shards of these epochs are there.

    Returns:
        The epochs that are there, which may be more; 0 where some are not.
    """
    seals: dict[str, Seal] = {}
    whole = 0
    while True:
        names = [shard_name(whole, number) for _, number in shards_of(content.images, content.images_per_shard, 1)]
        found = {name: seal for name in names if (seal := seal_of(folder, name)) is not None}
        if len(found) < len(names):
            break
        seals |= found
        whole += 1
    if whole >= epochs:
        write_json(folder / INDEX, {"epochs": whole, "shards": {name: asdict(seal) for name, seal in seals.items()}})
    return whole if whole >= epochs else 0


def write_json(path: Path, content: Any) -> None:
    """Write in one move.

    Raises:
        SavingError: the disk is full, or cannot be written to.
    """
    with writing(path):
        write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
