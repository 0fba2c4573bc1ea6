"""From an image file of any kind to RGB pixels, upright."""

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from qskd.data.index import ImageRecord
from qskd.errors import DataError

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # grey, 16 bits a pixel; Pillow < 11 reads them as "I"
LARGEST_IMAGE = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Pixels; Pillow refuses larger images as decompression bombs."""

IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Endings, in small letters, of the names of files that are taken for images."""

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # what the last bytes of a whole file hold
_TAIL = 1024  # bytes
_READERS = 8  # files looked at together: network disks answer slowly, but many at a time


def read_pixels(path: Path, *, height: int, width: int, at_least: tuple[int, int] | None = None) -> Tensor:
    """The pixels of an image file.

    Args:
        path: any file that Pillow opens. Grey (also 16 bits), palette, CMYK and alpha images become RGB; an
            alpha channel is left out, as transformers' image loading does.
        height: what the annotation file says the upright image has, in pixels.
        width: likewise.
        at_least: (height, width) in pixels; a JPEG much larger than this may be decoded at 1/2, 1/4 or 1/8
            of its size, never below it. By default every image is decoded in full.

    Returns:
        [3, h, w] uint8, channels last in memory; (h, w) is (height, width) unless decoded smaller.

    Raises:
        DataError: the file is missing, damaged or not an image, or has another size than said.
    """
    with opened(path) as image:
        return _pixels(path, image, height, width, at_least)


@contextmanager
def opened(path: Path, blob: Callable[[], bytes] | None = None) -> Iterator[Image.Image]:
    """The image in a file, or in what ``blob`` returns; whatever goes wrong names the path."""
    if blob is None and _is_no_file(path):  # a pipe would be waited for
        raise DataError(f"{path}: is no file. Replace it by an image.")
    with _told(path), Image.open(io.BytesIO(blob()) if blob is not None else path) as image:
        yield image


def _is_no_file(path: Path) -> bool:
    """Whether something else than a file is there, asked once: between two questions a file may go."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False  # opening it will say what is wrong


def _pixels(path: Path, image: Image.Image, height: int, width: int, at_least: tuple[int, int] | None) -> Tensor:
    _check_size(path, image, height, width)
    if at_least is not None and image.format == "JPEG":
        _shrink(image, at_least)
    return _upright(path, image)


def read_whatever_size(path: Path) -> Tensor:
    """The upright pixels of an image file whose size nobody has said: [3, h, w] uint8, in full.

    Raises:
        DataError: the file is missing, damaged or not an image.
    """
    with opened(path) as image:
        return _upright(path, image)


def read_image(record: ImageRecord, at_least: tuple[int, int] | None = None) -> Tensor:
    """The pixels of an image of an index; see ``read_pixels``."""
    with opened(record.path, record.blob) as image:
        return _pixels(record.path, image, record.height, record.width, at_least)


def upright_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """(height, width) in pixels of image files as they stand upright, from their headers.

    Raises:
        DataError: a file is missing or no image.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_upright_size, paths))


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of an image file as it stands upright.

    Raises:
        DataError: it is missing or no image.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such image file.")
    return _upright_size(path)


def upright_size_and_turn(path: Path) -> tuple[tuple[int, int], bool]:
    """(height, width) in pixels of an image file as it stands upright, and whether its EXIF tag turned it on its side.

    Raises:
        DataError: it is missing or no image.
    """
    with opened(path) as image:
        width, height = _stored_size(image)
        turned = _is_turned(image)
    return ((width, height) if turned else (height, width)), turned


def upright_size_of(name: str, blob: bytes, said: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) in pixels of an encoded image as it stands upright.

    Args:
        name: for messages.
        blob: the encoded image.
        said: (height, width) in pixels that it should have, where somebody says so.

    Raises:
        DataError: it is no image, or of another size than said.
    """
    if said is not None:
        with opened(Path(name), lambda: blob) as image:
            _check_size(Path(name), image, *said)
    return _upright_size(Path(name), lambda: blob)


def _upright_size(path: Path, blob: Callable[[], bytes] | None = None) -> tuple[int, int]:
    with opened(path, blob) as image:
        _refuse_floats(path, image)
        stored = _stored_size(image)
        width, height = stored[::-1] if _is_turned(image) else stored
        return height, width


def check_image(record: ImageRecord) -> None:
    """What can be known of an image from its two ends; only where the end is missing is it decoded.

    Raises:
        DataError: the file is missing, cut off, not an image, or of another size than said.
    """
    blob = record.blob() if record.blob is not None else None
    with opened(record.path, None if blob is None else lambda: blob) as image:
        _refuse_floats(record.path, image)
        _check_size(record.path, image, record.height, record.width)
        mark = _ENDS.get(str(image.format))
        if mark is not None and mark not in (_tail(record.path) if blob is None else blob[-_TAIL:]):
            image.load()


def _tail(path: Path) -> bytes:
    """The last bytes of a file; some programs write more behind an image's end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file, as a DataError that names it."""
    try:
        yield
    except (DataError, MemoryError):  # too little memory is no fault of the file
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: this image file has disappeared since it was listed.") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image file that Pillow can read.") from error
    except Exception as error:  # decoders of damaged files raise whatever their arithmetic does
        raise DataError(f"{path}: the image cannot be decoded ({error}). Replace the file.") from error


def _upright(path: Path, image: Image.Image) -> Tensor:
    pixels = np.array(as_rgb(path, ImageOps.exif_transpose(image)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def orientation(image: Image.Image) -> int:
    """The EXIF tag that says how to turn an image upright, 1 to 8; 1 is upright."""
    found = image.getexif().get(0x0112, 1)
    return found if isinstance(found, int) else 1


def _is_turned(image: Image.Image) -> bool:
    return orientation(image) in (5, 6, 7, 8)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) before turning; some versions of Pillow give a TIFF's size turned already."""
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    return image.size if tags is None else (int(tags[256]), int(tags[257]))


def _check_size(path: Path, image: Image.Image, height: int, width: int) -> None:
    turned = _is_turned(image)
    stored = _stored_size(image)
    upright = stored[::-1] if turned else stored
    if upright == (width, height):
        return
    if turned and stored == (width, height):
        raise DataError(
            f"{path}: its EXIF tag says that it has to be turned by 90 degrees to stand upright "
            f"({upright[0]} x {upright[1]}), but the annotation file gives the size before turning ({width} "
            f"x {height}): its boxes would not fit. If the boxes belong to the unturned pixels, remove the "
            "EXIF orientation tag from the file; else exchange width and height in the annotation file."
        )
    raise DataError(
        f"{path}: the image is {upright[0]} x {upright[1]} pixels (width x height), but the annotation file "
        f"says {width} x {height}. Boxes would be misplaced: use the images that were annotated."
    )


def _shrink(image: Image.Image, at_least: tuple[int, int]) -> None:
    """Let the JPEG decoder leave out the finest frequencies; pixels keep their place, from the top left."""
    if orientation(image) == 1:  # turned images would keep theirs from another corner
        image.draft(image.mode, at_least[::-1])


def _refuse_floats(path: Path, image: Image.Image) -> None:
    """Raises DataError for an image of floats; its header tells."""
    if image.mode == "F":
        raise DataError(f"{path}: a float image has no defined range; store it with 8 or 16 bits a channel.")


def as_rgb(path: Path, image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; ``path`` is for messages.

    Raises:
        DataError: it holds floats, whose range nobody knows.
    """
    if image.mode == "RGB":
        return image
    if image.mode in DEEP_MODES:
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    _refuse_floats(path, image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a palette's transparency is left out on purpose
        return image.convert("RGB")
