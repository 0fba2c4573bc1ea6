"""Writing data in COCO's form: annotation files, and images that are linked, copied or converted."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from qskd.data.images import as_rgb, opened, orientation
from qskd.data.index import ImageRecord
from qskd.errors import ConfigError

_QUALITY = 95  # of JPEGs that have to be written anew


def claim_folder(folder: Path) -> Path:
    """An empty folder to write to.

    Raises:
        ConfigError: something is there already, or it cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty. Give a new folder; nothing is overwritten.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror}). Give one that can be written to.") from error
    return folder


def write_annotations(folder: Path, split: str, content: Mapping[str, Any]) -> Path:
    """``annotations/instances_<split>.json`` in a folder."""
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path


class ImageFolder:
    """A new folder of images, each under a name of its own; no file is ever written over.

    Args:
        folder: is made when the first image is put there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: dict[str, Path] = {}  # names without case, since some disks know none, and where they come from

    def place(self, record: ImageRecord, name: str) -> str:
        """The same file: a hard link where the disk allows it, else a copy; returns the name it has."""
        name = Path(os.path.normpath(name)).as_posix()
        source = Path(os.path.normpath(record.path))
        if self._taken.get(name.casefold()) == source:
            return name  # listed twice
        name = self._free(name, source)
        target = self._made(name)
        if record.blob is not None:
            with target.open("xb") as file:
                file.write(record.blob())
            return name
        try:
            os.link(record.path.resolve(), target)
        except OSError:
            with record.path.open("rb") as original, target.open("xb") as file:
                shutil.copyfileobj(original, file)
        return name

    def convert(self, record: ImageRecord, name: str) -> str:
        """The image as upright RGB: JPEGs stay JPEGs, others become PNG files; returns the name it has.

        Raises:
            DataError: it cannot be decoded.
        """
        with opened(record.path, record.blob) as image:
            is_jpeg = image.format == "JPEG"
            plain = Image.fromarray(np.asarray(as_rgb(record.path, ImageOps.exif_transpose(image))))  # no metadata
        if not is_jpeg and not name.lower().endswith(".png"):
            name = f"{name}.png"
        name = self._free(name, record.path)
        options: dict[str, Any] = {"quality": _QUALITY, "subsampling": 0} if is_jpeg else {}
        with self._made(name).open("xb") as file:
            plain.save(file, "JPEG" if is_jpeg else "PNG", **options)
        return name

    def _free(self, name: str, source: Path) -> str:
        stem, dot, suffix = name.rpartition(".")
        number, free = 1, name
        while free.casefold() in self._taken:
            free = f"{stem}-{number}{dot}{suffix}" if dot else f"{name}-{number}"
            number += 1
        self._taken[free.casefold()] = source
        return free

    def _made(self, name: str) -> Path:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def is_plain(record: ImageRecord) -> bool:
    """Whether an image is upright RGB with 8 bits a channel, so that every program reads it alike."""
    with opened(record.path, record.blob) as image:
        return image.mode == "RGB" and orientation(image) == 1 and getattr(image, "n_frames", 1) == 1


def suffix_of(record: ImageRecord) -> str:
    """The usual suffix of an image's format, for those whose names have none."""
    with opened(record.path, record.blob) as image:
        return {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif"}.get(str(image.format), f".{str(image.format).lower()}")
