"""Records in files of many images, whole or not there at all.

The records of an epoch are in shards of consecutive positions. Beside ``epoch000-00000.safetensors`` lies
``epoch000-00000.json`` with its size and SHA-256; that is written last, so a shard without it does not exist. Within,
every tensor has a CRC-32, so that who reads a record reads no other.
"""

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qskd.errors import CheckpointError, SavingError
from qskd.files import mend, whole_file, write_whole
from qskd.lessons.record import Record

_SUMS = "crc32"  # in a shard's metadata: of every tensor
_OPEN = 64  # shards kept open
_BLOCK = 2**20  # bytes read at a time


@dataclass(frozen=True, slots=True)
class Seal:
    """What a whole shard is known by."""

    bytes: int
    sha256: str


def shard_name(epoch: int, number: int) -> str:
    """Without suffix."""
    return f"epoch{epoch:03d}-{number:05d}"


def write_shard(folder: Path, name: str, records: Mapping[int, Record]) -> Seal:
    """Write the records of these positions; nothing of the name is there before all is.

    Raises:
        SavingError: the disk is full, or cannot be written to.
    """
    path, seal_path = folder / f"{name}.safetensors", folder / f"{name}.json"
    tensors = {
        f"{position}/{field}": tensor for position, record in records.items() for field, tensor in record.items()
    }
    # In one entry: the order of several is not always the same, and neither would be the file.
    sums = json.dumps({key: _sum_of(tensor) for key, tensor in tensors.items()})
    content = save(tensors, {_SUMS: sums})
    seal = Seal(len(content), hashlib.sha256(content).hexdigest())
    with writing(path):
        mend(folder, [path.name, seal_path.name])  # what a killed process had begun
        seal_path.unlink(missing_ok=True)
        with whole_file(path) as fresh:
            fresh.write_bytes(content)
        write_whole(seal_path, json.dumps(asdict(seal)))
    return seal


def _sum_of(tensor: Tensor) -> int:
    """CRC-32 of its bytes."""
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file of a cache is written within.

    Raises:
        SavingError: it cannot be.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SavingError(
            f"{path} cannot be written ({reason}). The shards before it are kept: make room, and run the same command "
            "again to go on."
        ) from error


def sealed(path: Path) -> Seal:
    """Size and checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return Seal(path.stat().st_size, digest.hexdigest())


def seal_of(folder: Path, name: str) -> Seal | None:
    """What was noted when the shard was written; None where it was not, or the note is damaged."""
    try:
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return Seal(int(content["bytes"]), str(content["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def is_whole(folder: Path, name: str, positions: Iterable[int], fields: Iterable[str]) -> bool:
    """Whether a shard is there, byte for byte as it was written, with these fields of these positions; reads all."""
    seal, path = seal_of(folder, name), folder / f"{name}.safetensors"
    if seal is None or not path.is_file() or path.stat().st_size != seal.bytes or sealed(path) != seal:
        return False
    try:
        with safe_open(str(path), framework="pt") as file:
            return set(file.keys()) == {f"{position}/{field}" for position, field in product(positions, tuple(fields))}
    except SafetensorError:
        return False


class ShardReader:
    """Reads single records. The checksums of a record are looked at when it is first given out.

    Args:
        folder: of the shards.
        seals: of every shard, by its name.
        fields: what is read of each record.
        images_per_shard: positions in a shard.

    Raises:
        CheckpointError: a shard is missing or of another size than it was.
    """

    def __init__(self, folder: Path, seals: Mapping[str, Seal], fields: Sequence[str], images_per_shard: int) -> None:
        self.folder, self.seals = folder, seals
        self.fields, self.images_per_shard = tuple(fields), images_per_shard
        self._open: OrderedDict[str, tuple[Any, dict[str, int]]] = OrderedDict()
        self._checked: set[tuple[int, int]] = set()
        for name, seal in seals.items():
            path = folder / f"{name}.safetensors"
            if not path.is_file():
                raise _damaged(path, "is missing")
            if path.stat().st_size != seal.bytes:
                raise _damaged(path, f"holds {path.stat().st_size} bytes instead of {seal.bytes}: it was cut off")

    def read(self, epoch: int, position: int) -> Record:
        """The record of an image in an epoch.

        Raises:
            CheckpointError: its shard is damaged.
        """
        name = shard_name(epoch, position // self.images_per_shard)
        try:
            file, sums = self._file(name)
            record = {field: file.get_tensor(f"{position}/{field}") for field in self.fields}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(self.folder / f"{name}.safetensors", f"cannot be read ({error})") from error
        if (epoch, position) not in self._checked:
            for field, tensor in record.items():
                if sums.get(f"{position}/{field}") != _sum_of(tensor):
                    what = f"is damaged: {field} of image {position} has not the checksum it was written with"
                    raise _damaged(self.folder / f"{name}.safetensors", what)
            self._checked.add((epoch, position))
        return record

    def _file(self, name: str) -> tuple[Any, dict[str, int]]:
        """A shard, opened, and the checksums in it."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        file: Any = safe_open(str(self.folder / f"{name}.safetensors"), framework="pt")
        self._open[name] = file, dict(json.loads(file.metadata()[_SUMS]))
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return self._open[name]


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"The shard {path} {what}. Run the `qskd cache` command that made it again: it makes this shard anew and keeps "
        "the others."
    )
