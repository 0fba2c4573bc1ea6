"""Decoded images kept for the next epoch: the same pixels, without decoding them again."""

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from qskd.data.index import DetectionIndex
from qskd.errors import ConfigError

CacheKind = Literal["none", "memory", "disk"]

_SHARE = 0.5  # of the memory that is free now, at most


class ImageCache(Protocol):
    """Keeps the pixels of each position of an index."""

    def get(self, position: int, read: Callable[[], Tensor]) -> Tensor:
        """[3, h, w] uint8 of a position; ``read`` makes them where they are not kept yet. Not to be changed."""


class MemoryCache:
    """In this process's memory; every loader process fills its own."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}

    def get(self, position: int, read: Callable[[], Tensor]) -> Tensor:
        """See ``ImageCache``."""
        if position not in self._kept:
            self._kept[position] = read()
        return self._kept[position]


class DiskCache:
    """As uncompressed arrays in a folder, which processes and later runs share.

    Args:
        folder: of arrays of one index, decoded in one way.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made ({error.strerror}). Give another --cache_dir.") from error

    def get(self, position: int, read: Callable[[], Tensor]) -> Tensor:
        """See ``ImageCache``. A file that is cut off is written again; a full disk keeps no more."""
        path = self.folder / f"{position}.npy"
        kept = _loaded(path)
        if kept is not None:
            return kept
        pixels = read()
        # Process numbers repeat on other machines, which may share the folder.
        fresh = path.with_name(f".{position}.{uuid.uuid4().hex}.npy")
        try:
            np.save(fresh, pixels.permute(1, 2, 0).contiguous().numpy())
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)
        return pixels


def _loaded(path: Path) -> Tensor | None:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        return None
    return torch.from_numpy(array).permute(2, 0, 1)


def open_cache(
    kind: CacheKind, index: DetectionIndex, decoded: int | None, folder: Path | None, copies: int = 1
) -> ImageCache | None:
    """The cache for an index.

    Args:
        kind: "none" for no cache.
        index: what is read.
        decoded: as ``decode_at_least`` of the dataset: other sizes are other pixels.
        folder: where a disk cache goes; each index and size has a folder of its own in it.
        copies: loading processes, each of which fills a memory cache of its own.

    Raises:
        ConfigError: the images would not fit into the memory that is free.
        DataError: an image that is no file cannot be read.
    """
    if kind == "none":
        return None
    if kind == "disk":
        assert folder is not None
        return DiskCache(folder / f"{_state(index)}-{decoded or 'full'}")
    size = int((index.images.sizes.prod(axis=1) * 3).sum()) * copies
    free = _free_memory()
    if free is not None and size > _SHARE * free:
        raise ConfigError(
            f"The decoded images of {copies} loading processes are {size / 2**30:.1f} GiB, more than half of the "
            f"{free / 2**30:.1f} GiB of memory that are free. Use --cache_images disk, or none."
        )
    return MemoryCache()


def _state(index: DetectionIndex) -> str:
    """A name for the images as they are now: files that were changed get other pixels.

    Images that are no files have invented names, and what keeps them tells no time of change: all their bytes count.
    Reading the index has read them once already; a gigabyte takes about two seconds more.
    """
    digest = hashlib.sha256(index.fingerprint().encode())
    for record in index.images:
        if record.blob is not None:
            digest.update(hashlib.sha256(record.blob()).digest())
        else:
            found = record.path.stat()
            digest.update(f"{record.path.resolve()}|{found.st_size}|{found.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _free_memory() -> int | None:
    """Bytes, where the system tells."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
