import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qskd.data.images import check_image, read_pixels, read_whatever_size, upright_size
from qskd.data.index import ImageRecord
from qskd.errors import DataError

ORIENTATION = 0x0112


def test_too_little_memory_is_not_told_as_a_bad_file(tmp_path, monkeypatch):
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")

    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr("qskd.data.images.as_rgb", exhausted)
    with pytest.raises(MemoryError):
        read_pixels(tmp_path / "a.png", height=24, width=32)


def ramp(height: int = 24, width: int = 32) -> np.ndarray:
    """[h, w] 0..255 growing from left to right."""
    return np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1))


def test_a_colour_image_comes_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_pixels(tmp_path / "a.png", height=24, width=32)
    assert read.dtype == torch.uint8
    np.testing.assert_array_equal(read.permute(1, 2, 0).numpy(), pixels)


def test_the_pixels_may_be_written_to(tmp_path: Path) -> None:
    Image.fromarray(ramp()).convert("RGB").save(tmp_path / "a.png")
    read_pixels(tmp_path / "a.png", height=24, width=32).zero_()


def grey(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(ramp().astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        image = Image.fromarray(ramp()).convert(mode)
        image.putalpha(7)  # left out, not multiplied
        return image
    if mode == "P":
        image = Image.fromarray(ramp())
        image = image.convert("P")
        image.putpalette([value for level in range(256) for value in (level, level, level)])
        return image
    return Image.fromarray(ramp()).convert(mode)


FORMATS = [
    ("L", "png", 0),
    ("L", "jpg", 3),
    ("LA", "png", 0),
    ("RGBA", "png", 0),
    ("P", "png", 0),
    ("P", "gif", 0),
    ("I;16", "png", 0),
    ("I;16", "tiff", 0),
    ("CMYK", "jpg", 3),
    ("CMYK", "tiff", 1),
    ("YCbCr", "jpg", 3),
    ("RGB", "bmp", 0),
    ("RGB", "webp", 8),
]


@pytest.mark.parametrize(("mode", "suffix", "tolerance"), FORMATS)
def test_every_kind_of_file_becomes_rgb_with_the_same_greys(
    tmp_path: Path, mode: str, suffix: str, tolerance: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    grey(mode).save(path, **({"quality": 100} if suffix in ("jpg", "webp") else {}))
    read = read_pixels(path, height=24, width=32)
    assert read.shape == (3, 24, 32)
    difference = np.abs(read.numpy().astype(int) - ramp()[None].astype(int))
    assert difference.max() <= tolerance


def test_a_black_and_white_image_has_only_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(ramp() > 127).save(tmp_path / "a.png")
    assert set(read_pixels(tmp_path / "a.png", height=24, width=32).unique().tolist()) == {0, 255}


def save_turned(path: Path, orientation: int) -> np.ndarray:
    """Writes noise of 24 x 32 with an EXIF tag; returns [h, w, 3] as it has to be seen."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
    # Meaning of the tag by the EXIF standard: where the stored first row and column belong.
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(tmp_path: Path, orientation: int) -> None:
    seen = save_turned(tmp_path / "a.png", orientation)
    read = read_pixels(tmp_path / "a.png", height=seen.shape[0], width=seen.shape[1])
    np.testing.assert_array_equal(read.permute(1, 2, 0).numpy(), seen)
    assert torch.equal(read_whatever_size(tmp_path / "a.png"), read)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named_whatever_its_size(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: not an image file"):
        read_whatever_size(tmp_path / "a.png")


def test_a_size_from_before_turning_is_refused_with_a_remedy(tmp_path: Path) -> None:
    save_turned(tmp_path / "a.png", 6)
    with pytest.raises(DataError, match=r"a\.png: its EXIF tag .*remove the EXIF orientation tag"):
        read_pixels(tmp_path / "a.png", height=24, width=32)


def test_a_size_that_contradicts_the_pixels_is_refused(tmp_path: Path) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: the image is 32 x 24 pixels .* says 33 x 24"):
        read_pixels(tmp_path / "a.png", height=24, width=33)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=rf"a\.{suffix}: "):
        read_pixels(path, height=64, width=64)
    if suffix in ("png", "jpg"):
        with pytest.raises(DataError, match=rf"a\.{suffix}: "):
            check_image(ImageRecord(1, path, 64, 64))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff"])
@pytest.mark.parametrize("extra", [b"", b"written by a camera" * 200], ids=["plain", "more behind"])
def test_a_whole_image_passes_whatever_stands_behind_it(tmp_path: Path, suffix: str, extra: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (40, 30)).save(path)
    path.write_bytes(path.read_bytes() + extra)
    check_image(ImageRecord(1, path, 30, 40))


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png: "):
        read_pixels(tmp_path / "a.png", height=1, width=1)


def test_an_absent_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: this image file has disappeared"):
        read_pixels(tmp_path / "a.png", height=1, width=1)


def test_a_file_that_goes_while_it_is_looked_at_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    asked = os.stat

    def gone(path: object, *given: object, **named: object) -> os.stat_result:
        found = asked(path, *given, **named)  # type: ignore[arg-type]
        if path == tmp_path / "a.png":
            (tmp_path / "a.png").unlink()
        return found

    monkeypatch.setattr(os, "stat", gone)
    with pytest.raises(DataError, match=r"a\.png: this image file has disappeared"):
        read_pixels(tmp_path / "a.png", height=24, width=32)


def test_a_float_image_is_refused_because_its_range_is_unknown(tmp_path: Path) -> None:
    Image.fromarray(ramp().astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="8 or 16 bits"):
        read_pixels(tmp_path / "a.tiff", height=24, width=32)
    with pytest.raises(DataError, match="8 or 16 bits"):  # before any training
        check_image(ImageRecord(1, tmp_path / "a.tiff", height=24, width=32))
    with pytest.raises(DataError, match="8 or 16 bits"):
        upright_size(tmp_path / "a.tiff")


@pytest.mark.parametrize(
    ("at_least", "expected"),
    [((200, 300), (200, 300)), ((101, 100), (200, 300)), ((100, 150), (100, 150)), ((20, 20), (25, 38))],
)
def test_a_large_jpeg_is_decoded_smaller_but_never_below_what_was_asked(
    tmp_path: Path, at_least: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.fromarray(ramp(200, 300)).convert("RGB").save(tmp_path / "a.jpg")
    read = read_pixels(tmp_path / "a.jpg", height=200, width=300, at_least=at_least)
    assert tuple(read.shape[1:]) == expected


def test_the_size_of_a_file_is_that_of_the_upright_image(tmp_path: Path) -> None:
    image = Image.fromarray(ramp(24, 32))
    image.save(tmp_path / "a.png")
    assert upright_size(tmp_path / "a.png") == (24, 32)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / "b.jpg", exif=exif)
    assert upright_size(tmp_path / "b.jpg") == (32, 24)


def test_the_size_of_what_is_no_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    for name, told in (("a.png", "not an image file"), ("b.png", "there is no such image file")):
        with pytest.raises(DataError, match=f"{name}: {told}"):
            upright_size(tmp_path / name)
