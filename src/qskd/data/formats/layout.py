"""How folders of detection data are laid out: names of splits, suffixes of images, files beside each other."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from qskd.data.formats.coco_tables import WHERE, Problems
from qskd.data.images import IMAGE_SUFFIXES
from qskd.data.index import DetectionIndex
from qskd.errors import DataError

SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "train2017"),
    "val": ("val", "valid", "validation", "val2017", "dev"),
    "test": ("test", "testing", "test2017"),
}
"""What folders and keys of a split are called elsewhere."""


class Source(Protocol):
    """Detection data in one format: which splits there are, and each of them as an index."""

    format: ClassVar[str]  # "coco", "yolo", "voc" or "hf"

    @property
    def origin(self) -> str:
        """Where it is, for messages."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, as ``load`` takes them: train, val and test first, then others."""

    def load(self, split: str, *, class_names: Sequence[str] | None = None, strict: bool = False) -> DetectionIndex:
        """One split, checked; see ``DetectionIndex.of``."""


def canonical(name: str) -> str:
    """The usual name of a split, val for valid, validation and the like; other names as they are."""
    lower = name.lower()
    return next((split for split, spellings in SPELLINGS.items() if lower in spellings), name)


def in_order(splits: Sequence[str]) -> tuple[str, ...]:
    """train, val and test, then the others by name."""
    known = tuple(SPELLINGS)
    return tuple(sorted(set(splits), key=lambda name: (known.index(name) if name in known else len(known), name)))


def spellings(split: str) -> tuple[str, ...]:
    """All names a split may have, its own first."""
    return SPELLINGS.get(split, (split,))


def missing_split(source: Source, split: str) -> DataError:
    """What to say when a source has no such split."""
    found = ", ".join(source.splits) or "none"
    advice = (
        "Make one with `qskd split`, or name its files with --val_annotations and --val_images."
        if split != "train"
        else "Give a folder with training data."
    )
    return DataError(f"{source.origin} has no split '{split}' (found: {found}; read as {source.format}). {advice}")


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image, and not of a hidden file."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def images_below(folder: Path) -> list[Path]:
    """Every image file in a folder and its folders, by name."""
    found = [Path(top) / name for top, _, names in os.walk(folder, followlinks=True) for name in names]
    return sorted(path for path in found if is_image(path))


def subfolders(folder: Path) -> Iterator[Path]:
    """Visible folders directly in a folder, by name; none where it cannot be read."""
    try:
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return


def first_folder(candidates: Sequence[Path]) -> Path | None:
    """The first that is a folder."""
    return next((path for path in candidates if path.is_dir()), None)


def read_text(path: Path, what: str) -> str:
    """A text file.

    Raises:
        DataError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give {what}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error}). Store it as UTF-8.") from error


class Content:
    """Content in COCO's form, filled image by image by a reader of another format.

    Args:
        class_names: their positions become category ids.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.problems = Problems()

    def add_image(self, file_name: str, height: int, width: int) -> int:
        """Note an image; returns its id, counted from 1."""
        image = len(self.images) + 1
        self.images.append({"id": image, "file_name": file_name, "height": height, "width": width})
        return image

    def add_box(self, image: int, label: int, box: Sequence[float], where: str, *, is_crowd: bool = False) -> None:
        """Note an object; ``box`` is left, top, width, height in pixels, ``where`` names it in problems."""
        entry = {"id": len(self.annotations) + 1, "image_id": image, "category_id": label, "bbox": list(box)}
        self.annotations.append(entry | {"iscrowd": int(is_crowd), WHERE: where})

    def as_coco(self) -> dict[str, Any]:
        """What ``DetectionIndex.of`` takes."""
        categories = [{"id": position, "name": name} for position, name in enumerate(self.class_names)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}
