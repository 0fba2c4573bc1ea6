"""Image files with every kind of damage and oddity: read upright as RGB, or refused by name.

Each lies in YOLO data, whose boxes are fractions of what the reader says the size is.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders_formats import put
from builders_yolo import put_yaml
from qskd.data.images import check_image, read_image, upright_size_of
from qskd.data.sources import open_source
from qskd.errors import QskdError

pytestmark = pytest.mark.timeout(30)

WIDTH, HEIGHT = 48, 40
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
COLOUR = Image.fromarray(NOISE[..., :3])


def stored(image: Image.Image, format: str, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **how)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file that claims a size, and holds next to nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def turned(orientation: Any, format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return stored(COLOUR, format, exif=exif)


FORMATS = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif", "PPM": ".ppm"}


def _damaged() -> Iterator[tuple[str, str, bytes]]:
    for format, suffix in FORMATS.items():
        whole = stored(COLOUR, format)
        rng = random.Random(format)
        for at in range(7):
            yield f"{format} cut off {at}", suffix, whole[: rng.randrange(len(whole))]
        for at in range(7):
            spoilt = bytearray(whole)
            reach = len(whole) if at % 2 else min(len(whole), 200)  # headers do the most harm
            for _ in range(3):
                spoilt[rng.randrange(reach)] = rng.randrange(256)
            yield f"{format} flipped {at}", suffix, bytes(spoilt)
        yield f"{format} without its last bytes", suffix, whole[:-12]
        yield f"{format} with more behind it", suffix, whole + b"\0" * 3000


def _no_images() -> Iterator[tuple[str, str, bytes]]:
    texts = {
        "nothing": b"",
        "text": b"hello\n",
        "html": b"<html>404</html>",
        "zeros": bytes(1000),
        "zip": b"PK\3\4" + bytes(99),
    }
    texts |= {"lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "svg": b"<svg xmlns='x'/>"}
    for name, data in texts.items():
        yield name, ".jpg", data
        yield f"{name} as png", ".png", data


def _huge() -> Iterator[tuple[str, str, bytes]]:
    for side in (0, 20_000, 100_000, 2**31 - 1):
        yield f"png of {side} pixels", ".png", png(side, side)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))
    yield "png with a text that unpacks to much", ".png", png(WIDTH, HEIGHT, text)
    yield "png with a profile that is none", ".png", png(WIDTH, HEIGHT, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x")))
    yield "png of no known depth", ".png", png(WIDTH, HEIGHT, depth=7)
    for format in ("GIF", "BMP"):
        whole = bytearray(stored(COLOUR, format))
        at = 6 if format == "GIF" else 18
        whole[at : at + 4] = b"\xff\xff\xff\x7f"
        yield f"{format} of many pixels", FORMATS[format], bytes(whole)


DAMAGED = [*_damaged(), *_no_images(), *_huge()]


def _odd() -> Iterator[tuple[str, str, bytes]]:
    grey, palette, alpha = COLOUR.convert("L"), COLOUR.convert("P"), Image.fromarray(NOISE, "RGBA")
    deep = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    modes = {
        "grey": grey,
        "palette": palette,
        "alpha": alpha,
        "grey alpha": alpha.convert("LA"),
        "bits": COLOUR.convert("1"),
    }
    for name, image in modes.items():
        yield f"{name} png", ".png", stored(image, "PNG")
    yield "16 bits png", ".png", stored(deep, "PNG")
    yield "16 bits tif", ".tif", stored(deep, "TIFF")
    yield "palette with a colour left out", ".png", stored(palette, "PNG", transparency=0)
    yield "palette with alphas", ".png", stored(palette, "PNG", transparency=bytes(range(256)))
    yield "cmyk", ".jpg", stored(COLOUR.convert("CMYK"), "JPEG")
    yield "cmyk tif", ".tif", stored(COLOUR.convert("CMYK"), "TIFF")
    yield "lab tif", ".tif", stored(COLOUR.convert("LAB"), "TIFF")
    yield "grey jpg", ".jpg", stored(grey, "JPEG")
    yield "progressive", ".jpg", stored(COLOUR, "JPEG", progressive=True)
    yield "webp with alpha", ".webp", stored(alpha, "WEBP", lossless=True)
    frames = [COLOUR, COLOUR.rotate(90), COLOUR.rotate(180)]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        yield (
            f"{format} of three frames",
            FORMATS[format],
            stored(frames[0], format, save_all=True, append_images=frames[1:]),
        )
    for format in FORMATS:
        yield f"one pixel {format}", FORMATS[format], stored(Image.new("RGB", (1, 1)), format)
    yield "one row", ".png", stored(Image.new("RGB", (3000, 1)), "PNG")
    for format, suffix in (("PNG", ".jpg"), ("JPEG", ".png"), ("WEBP", ".jpeg"), ("BMP", ".tif"), ("JPEG", ".JPG")):
        yield f"{format} called {suffix}", suffix, stored(COLOUR, format)
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in range(1, 9):
            yield f"{format} turned {orientation}", FORMATS[format], turned(orientation, format)
    for orientation in (0, 9, 65535):
        yield f"turned {orientation}", ".jpg", turned(orientation)
    yield "exif of nothing", ".jpg", stored(COLOUR, "JPEG", exif=b"Exif\0\0garbage")
    yield "exif cut off", ".jpg", stored(COLOUR, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")


ODD = [*_odd()]


def looked_at(folder: Path, suffix: str, data: bytes) -> str:
    """Read an image with a box in its middle in every way; says how that went, or fails."""
    image = put(folder / "images" / f"odd{suffix}", data)
    put(folder / "labels" / "odd.txt", "0 0.5 0.5 0.5 0.5\n0 0.1 0.1 0.4 0.4\n0 1 1 0.5 0.5")
    put_yaml(folder / "data.yaml", train="images")
    error: QskdError | None
    try:
        index = open_source(folder).load("train")
        record = index.images[0]
        for left, top, right, bottom in index.boxes(0).tolist():
            assert 0 <= left < right <= record.width
            assert 0 <= top < bottom <= record.height
        check_image(record)
        pixels = read_image(record)
        small = read_image(record, at_least=(8, 8))
    except QskdError as caught:
        error = caught
    else:
        error = None
    _as_blob(data)
    if error is not None:
        assert image.name in str(error)
        return "refused"
    assert tuple(pixels.shape) == (3, record.height, record.width)
    assert small.shape[0] == 3
    return "read"


def _as_blob(data: bytes) -> None:
    """The same bytes as a row of a table."""
    try:
        height, width = upright_size_of("rows, row 3", data)
    except QskdError as caught:
        told = str(caught)
    else:
        told = f"rows, row 3: {height} x {width}" if min(height, width) > 0 else ""
    assert "rows, row 3" in told


@pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize(("suffix", "data"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_a_damaged_image_is_read_or_refused(suffix: str, data: bytes, tmp_path: Path) -> None:
    assert looked_at(tmp_path, suffix, data)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("suffix", "data"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
def test_an_odd_image_is_read(suffix: str, data: bytes, tmp_path: Path) -> None:
    assert looked_at(tmp_path, suffix, data) == "read"


@pytest.mark.parametrize("data", [case[2] for case in _no_images()], ids=[case[0] for case in _no_images()])
def test_what_is_no_image_is_refused(data: bytes, tmp_path: Path) -> None:
    assert looked_at(tmp_path, ".jpg", data) == "refused"


UPRIGHT: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_pixels_of_every_orientation_stand_upright(orientation: int, tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png", turned(orientation, "PNG"))
    put(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5")
    put_yaml(tmp_path / "data.yaml", train="images")
    record = open_source(tmp_path).load("train").images[0]
    wanted = UPRIGHT[orientation](NOISE[..., :3])
    np.testing.assert_array_equal(read_image(record).permute(1, 2, 0).numpy(), wanted)


def test_there_are_enough_images() -> None:
    assert len(DAMAGED) >= 100
    assert len(ODD) >= 50
