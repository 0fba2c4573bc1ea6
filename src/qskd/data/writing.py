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


def place_image(record: ImageRecord, target: Path) -> None:
    """The same file at another place: a hard link where the disk allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if record.blob is not None:
        target.write_bytes(record.blob())
        return
    try:
        os.link(record.path.resolve(), target)
    except OSError:
        shutil.copyfile(record.path, target)


def is_plain(record: ImageRecord) -> bool:
    """Whether an image is upright RGB with 8 bits a channel, so that every program reads it alike."""
    with opened(record.path, record.blob) as image:
        return image.mode == "RGB" and orientation(image) == 1 and getattr(image, "n_frames", 1) == 1


def convert_image(record: ImageRecord, target: Path) -> Path:
    """The image as upright RGB: JPEGs stay JPEGs, others become PNG files; returns where it is.

    Raises:
        DataError: it cannot be decoded.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened(record.path, record.blob) as image:
        is_jpeg = image.format == "JPEG"
        plain = as_rgb(record.path, ImageOps.exif_transpose(image))
        plain = Image.fromarray(np.asarray(plain))  # without metadata
    target = target if is_jpeg else target.with_name(f"{target.name}.png")
    options: dict[str, Any] = {"quality": _QUALITY, "subsampling": 0} if is_jpeg else {}
    plain.save(target, **options)
    return target
