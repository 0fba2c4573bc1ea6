"""Folders of YOLO data: where the label file of an image lies, and what is in a folder that no file describes."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

from qskd.data.formats.layout import (
    canonical,
    holds_images,
    is_image,
    locate,
    several_files,
    spellings,
    split_folders,
    subfolders,
    without_annotations,
)
from qskd.data.formats.yolo_description import SPLITS

_TRIED = 20  # files looked at to tell what a folder holds


def label_file(image: Path) -> Path | None:
    """The text file of an image: its path with the last images/ turned into labels/, or beside it."""
    return next((path for path in _candidates(image) if path.is_file()), None)


def _candidates(image: Path) -> list[Path]:
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at].lower() == "images":
            mirrored = [Path(*parts[:at], "labels", *parts[at + 1 :])]
            break
    else:
        mirrored = []
    return [*mirrored, beside, image.parent.parent / "labels" / beside.name]


def label_folders(images: Path) -> list[Path]:
    """Where the label files of the images in a folder may be."""
    return [path.parent for path in _candidates(images / "a.jpg")]


def expected_label_file(image: Path) -> str:
    """Where the label file of an image is looked for first."""
    return str(_candidates(image)[0])


def parts_of(path: Path) -> dict[str, tuple[Path, ...]]:
    """The images of every split of a folder without a description."""
    pairs = {split: (place, path / "labels" / place.name) for split, place in split_folders(path / "images").items()}
    for split, place in split_folders(path).items():
        pairs.setdefault(split, (place / "images", place / "labels"))
        if not pairs[split][0].is_dir():
            pairs[split] = (place, place)
    parts: dict[str, tuple[Path, ...]] = {
        split: (images,) for split, (images, labels) in pairs.items() if _has_labels(images, labels)
    }
    lists = {
        split: path / f"{name}.txt"
        for split in SPLITS
        for name in reversed(spellings(split))
        if _is_list(path / f"{name}.txt", path)
    }
    if parts or lists:
        return parts or {split: (file,) for split, file in lists.items()}
    places = ((path / "images", path / "labels"), (path, path / "labels"))
    whole = next((images for images, labels in places if _has_labels(images, labels)), None)
    return {"train": (whole,)} if whole else {}


def absent_splits(path: Path, parts: Mapping[str, tuple[Path, ...]]) -> dict[str, str]:
    """What to say of folders named like splits: of several for one split, and of those without labels."""
    absent: dict[str, str] = {}
    for split in SPLITS:
        for place in (path / "images", path):
            folders = [one for one in subfolders(place) if canonical(one.name) == split and holds_images(one)]
            if len(folders) > 1:
                absent.setdefault(split, several_files(place, split, folders))
            elif folders and split not in parts:
                absent.setdefault(
                    split, without_annotations(folders[0], split, "a text file of boxes for each of them")
                )
    return absent


def _has_labels(images: Path, labels: Path) -> bool:
    """Whether some images of a folder have a text file of numbers, in the folder of labels or beside them."""
    if not images.is_dir():
        return False
    tried = 0
    for file in sorted(images.iterdir()):
        if not is_image(file) or tried >= _TRIED:
            continue
        tried += 1
        for label in (labels / f"{file.stem}.txt", file.with_suffix(".txt")):
            if os.path.isfile(label) and starts_with_number(label):
                return True
    return False


def starts_with_number(file: Path) -> bool:
    """Whether a file may hold labels, rather than any other text."""
    try:
        with file.open("rb") as opened:
            cells = opened.read(1 << 12).lstrip(b"\xef\xbb\xbf").split()
        return bool(cells) and math.isfinite(float(cells[0]))
    except (OSError, ValueError):
        return False


def _is_list(file: Path, path: Path) -> bool:
    """Whether a text file begins with the name of an image that is there."""
    if not os.path.isfile(file):
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        name = opened.readline(1 << 12).strip()
    where = locate(name, (path,))
    return where is not None and is_image(where)
