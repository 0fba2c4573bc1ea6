"""Pages of VOC annotations: the XML file of one image."""

import codecs
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from qskd.data.formats.layout import is_image, read_text
from qskd.errors import DataError

_ENCODING = re.compile(
    rb"""<\?xml[^>]*encoding=["']((?:iso-?8859|windows-|cp|gb|big5|shift|euc|koi8)[\w-]*)["']""", re.I
)
_NO = ("0", "", "false", "no", "unspecified")
_LARGEST = 1e9  # pixels; see coco_columns


@dataclass(frozen=True, slots=True)
class PageObject:
    """An object of a page."""

    name: str
    box: tuple[float, float, float, float]  # left, top, width, height, pixels
    is_difficult: bool


@dataclass(frozen=True, slots=True)
class Page:
    """One XML file."""

    file: Path
    image: Path
    size: tuple[int, int] | None  # (height, width) as the file says; None where it says nothing of use
    objects: tuple[PageObject, ...]
    boxless: int  # objects without a box


def stem_of(name: str) -> str:
    """The last part of a path, without an image's suffix."""
    base = PurePosixPath(name.replace("\\", "/")).name
    return base.rsplit(".", 1)[0] if is_image(Path(base)) else base


def read_page(file: Path, images: Path, by_stem: Mapping[str, Path]) -> Page:
    """What a page says.

    Args:
        file: the page.
        images: the folder that its image should lie in.
        by_stem: images of that folder by their names without ending.

    Raises:
        DataError: it cannot be read, or its image is not there.
    """
    text = _text(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{file}: declares entities, which no annotation needs. Remove the declaration.")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: not valid XML ({error}). Is the file truncated?") from error
    if root.tag != "annotation":
        raise DataError(
            f"{file}: its root is <{root.tag[:40]}>, expected Pascal VOC's <annotation>. "
            "Export the data as Pascal VOC, COCO or YOLO."
        )
    entries = root.findall("object")
    objects = tuple(_object(file, entry) for entry in entries if entry.find("bndbox") is not None)
    return Page(file, _image_of(file, root, images, by_stem), _size(file, root), objects, len(entries) - len(objects))


def _text(file: Path) -> str:
    """The text of an XML file, as UTF-8 or else in the encoding that it declares."""
    try:
        return read_text(file, "a Pascal VOC annotation")
    except DataError:
        if not os.path.isfile(file):
            raise
        data = file.read_bytes()
        declared = _ENCODING.match(data)
        if declared is None and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise
    encoding = declared.group(1).decode() if declared else "utf-16"
    try:
        return data.decode(encoding)
    except (LookupError, UnicodeError) as error:
        raise DataError(f"{file}: is not in the encoding it declares ({error}). Store it as UTF-8.") from error


def _image_of(file: Path, root: ElementTree.Element, images: Path, by_stem: Mapping[str, Path]) -> Path:
    """The image: named as the XML file, since the name inside is often stale; else as the name inside says."""
    name = (root.findtext("filename") or "").strip()
    plain = PureWindowsPath(PurePosixPath(name).name).name  # never a way out of the folder
    found = by_stem.get(file.stem) or by_stem.get(stem_of(plain))
    if found is None:
        raise DataError(
            f"{file}: its image is not in {images}: neither {file.stem}.jpg (or .png, ...) nor '{name[:80]}'."
        )
    return found


def _size(file: Path, root: ElementTree.Element) -> tuple[int, int] | None:
    texts = [root.findtext(f"size/{key}") for key in ("height", "width")]
    if any(text is None or not text.strip() for text in texts):
        return None
    height, width = (_number(file, "size", str(text)) for text in texts)
    if height % 1 or width % 1 or min(height, width) < 0:
        raise DataError(f"{file}: has the size {width:g} x {height:g}; expected whole pixels.")
    return (int(height), int(width)) if height and width else None


def _object(file: Path, entry: ElementTree.Element) -> PageObject:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{file}: an object has no <name>.")
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = entry.findtext(f"bndbox/{key}")
        if text is None:
            raise DataError(f"{file}: an object '{name[:40]}' has a <bndbox> without <{key}>.")
        corners.append(_number(file, key, text))
    left, top, right, bottom = corners
    difficult = (entry.findtext("difficult") or "0").strip().lower() not in _NO
    return PageObject(name, (left, top, right - left, bottom - top), difficult)


def _number(file: Path, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < _LARGEST:  # NaN compares false
        raise DataError(f"{file}: <{what}> is '{text.strip()[:40]}'; expected a number of pixels.")
    return value
