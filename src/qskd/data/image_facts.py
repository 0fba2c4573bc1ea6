"""What an image file is, found out by decoding it once: kind, damage, and a hash that survives resizing."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from qskd.data.images import DEEP_MODES, LARGEST_IMAGE, as_rgb, opened, orientation
from qskd.data.index import ImageRecord
from qskd.errors import DataError

_READERS = 4  # decoding is work, and Pillow lets go of the interpreter meanwhile
_GRID = 8  # the hash compares 8 x 8 neighbours in both directions


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image file."""

    path: Path
    size: tuple[int, int] | None  # (height, width) upright, pixels; None where the file is no image
    kinds: tuple[str, ...] = ()  # "greyscale", "palette", "CMYK", "16 bits", "alpha", "EXIF-rotated", "animated"
    damage: str = ""  # why it cannot be decoded; empty where it can
    is_bomb: bool = False  # more pixels than anybody wants in memory
    hash: bytes = b""  # 128 bits, alike for images that look alike; empty where it could not be decoded


def facts_of(records: Sequence[ImageRecord]) -> list[ImageFacts]:
    """Look at every image, several at a time."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_facts, records))


def _facts(record: ImageRecord) -> ImageFacts:
    size: tuple[int, int] | None = None
    kinds: tuple[str, ...] = ()
    try:
        with warnings.catch_warnings(), opened(record.path, record.blob) as image:
            warnings.simplefilter("ignore")
            turned = orientation(image) in (5, 6, 7, 8)
            size = (image.size[0], image.size[1]) if turned else (image.size[1], image.size[0])
            kinds = _kinds(image)
            if size[0] * size[1] > LARGEST_IMAGE:
                return ImageFacts(record.path, size, kinds, is_bomb=True)
            return ImageFacts(record.path, size, kinds, hash=_hash(record.path, image))
    except DataError as error:
        is_bomb = "decompression bomb" in str(error)
        return ImageFacts(record.path, size, kinds, str(error).removeprefix(f"{record.path}: "), is_bomb)


def _kinds(image: Image.Image) -> tuple[str, ...]:
    found = []
    if image.mode in ("L", "1", "LA"):
        found.append("greyscale")
    if image.mode in ("P", "PA"):
        found.append("palette")
    if image.mode == "CMYK":
        found.append("CMYK")
    if image.mode in DEEP_MODES:
        found.append("16 bits")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        found.append("alpha")
    if orientation(image) != 1:
        found.append("EXIF-rotated")
    if getattr(image, "n_frames", 1) > 1:
        found.append("animated")
    return tuple(found)


def _hash(path: Path, image: Image.Image) -> bytes:
    """Whether each of 8 x 8 cells is brighter than its right and its lower neighbour: a difference hash."""
    if image.format == "JPEG":
        image.draft(image.mode, (_GRID * 8, _GRID * 8))
    grey = as_rgb(path, ImageOps.exif_transpose(image)).convert("L")
    cells = np.asarray(grey.resize((_GRID + 1, _GRID + 1), Image.Resampling.BOX)).astype(np.int16)
    right = cells[:_GRID, 1:] > cells[:_GRID, :-1]
    lower = cells[1:, :_GRID] > cells[:-1, :_GRID]
    return np.packbits(np.stack([right, lower])).tobytes()


def alike(first: Sequence[bytes], second: Sequence[bytes], most: int) -> list[tuple[int, int, int]]:
    """Pairs (position in first, position in second, differing bits) with at most so many of 128 bits different.

    Empty hashes are alike to nothing.
    """
    pairs: list[tuple[int, int, int]] = []
    ours, theirs = _bits(first), _bits(second)
    known = np.array([bool(one) for one in second])
    for position, row in enumerate(ours):
        if first[position] and len(theirs):
            distance = np.bitwise_count(theirs ^ row).sum(axis=1)
            pairs += [(position, int(at), int(distance[at])) for at in np.flatnonzero((distance <= most) & known)]
    return pairs


def _bits(hashes: Sequence[bytes]) -> NDArray[np.uint64]:
    """[N, 2]."""
    joined = b"".join(one or bytes(16) for one in hashes)
    return np.frombuffer(joined, dtype=np.uint64).reshape(-1, 2)
