"""How folders of detection data are laid out: names of splits, suffixes of images, files beside each other."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from qskd.data.formats.coco_tables import WHERE, Problems
from qskd.data.images import IMAGE_SUFFIXES
from qskd.data.index import DetectionIndex
from qskd.errors import DataError

SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "train2017", "train2014"),
    "val": ("val", "valid", "validation", "val2017", "val2014", "dev"),
    "test": ("test", "testing", "test2017"),
}
"""What folders and keys of a split are called elsewhere."""

_LONGEST_NAME = 4096  # characters of a path


class Source(Protocol):
    """Detection data in one format: which splits there are, and each of them as an index."""

    format: ClassVar[str]  # "coco", "yolo", "voc" or "hf"

    @property
    def origin(self) -> str:
        """Where it is, for messages."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, as ``load`` takes them: train, val and test first, then others."""

    @property
    def absent(self) -> Mapping[str, str]:
        """Splits that should be there, but cannot be read: what to say of each."""

    def raw(self, split: str, errors: list[DataError] | None = None) -> "RawSplit":
        """One split as its files say.

        Args:
            split: one of ``splits``.
            errors: where entries that make no sense are noted, and left out; None stops at the first.

        Raises:
            DataError: there is no such split, or it cannot be read.
        """

    def load(self, split: str, *, class_names: Sequence[str] | None = None, strict: bool = False) -> DetectionIndex:
        """One split, checked; see ``DetectionIndex.of``."""


@dataclass(frozen=True, slots=True)
class RawSplit:
    """Content in COCO's form before it is checked."""

    origin: Path  # for messages
    folder: Path  # that file names are relative to
    content: dict[str, Any]
    problems: Problems
    blobs: Callable[[int], bytes] | None = None  # the encoded image at a position, where images are no files
    unread: Mapping[int, int] = field(default_factory=dict)  # labels that could not be read, by id of their image
    orphans: Sequence[Path] = ()  # label files whose image is not there

    def index(self, class_names: Sequence[str] | None, strict: bool) -> DetectionIndex:
        """The same, checked; see ``DetectionIndex.of``."""
        return DetectionIndex.of(
            self.origin,
            self.folder,
            self.content,
            class_names=class_names,
            strict=strict,
            problems=self.problems,
            blobs=self.blobs,
        )


@contextmanager
def tolerated(errors: list[DataError] | None) -> Iterator[None]:
    """An error inside is noted, if errors are collected, and what it was about left out."""
    try:
        yield
    except DataError as error:
        if errors is None:
            raise
        errors.append(error)


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
        else "Name the one to learn from with --train_split, or give a folder with training data."
    )
    return DataError(f"{source.origin} has no split '{split}' (found: {found}; read as {source.format}). {advice}")


def several_files(origin: Path, split: str, found: Sequence[Path]) -> str:
    """What to say of a split that several files or folders claim to be."""
    return (
        f"{origin} has several files or folders for the split '{split}': {', '.join(map(str, found))}. Leave one of "
        f"them there, or name the one you mean with {_by_name(split)}."
    )


def without_annotations(folder: Path, split: str, expected: str) -> str:
    """What to say of a folder named like a split whose images nothing is said about."""
    return (
        f"{folder} holds images of the split '{split}', but there are no annotations of them; expected {expected}. Add "
        f"what is missing, or name it with {_by_name(split)}."
    )


def _by_name(split: str) -> str:
    key = "train" if split == "train" else "val"
    return f"--{key}_annotations FILE --{key}_images DIR"


def holds_images(folder: Path) -> bool:
    """Whether images lie in a folder, or in its images/."""
    places = [place for place in (folder, folder / "images") if os.path.isdir(place)]
    return any(is_image(file) for place in places for file in place.iterdir())


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image, and not of a hidden file."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def images_below(folder: Path) -> list[Path]:
    """Every image file in a folder and its visible folders, by name.

    Links are followed, but no folder is read twice, and none that holds this one.
    """
    found: list[Path] = []
    seen = {str(above) for above in Path(os.path.realpath(folder)).parents}
    for top, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [Path(top) / name for name in names if is_image(Path(name))]
    return sorted(path for path in found if os.path.isfile(path))


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder that are named like splits, in whatever spelling."""
    named = {canonical(path.name): path for path in subfolders(folder)}
    return {split: named[split] for split in SPELLINGS if split in named}


def locate(name: str, bases: Sequence[Path]) -> Path | None:
    """Where a file or folder is that a description or a list names.

    Names of other machines are not believed: ``../train/images`` is looked for in the bases first, and of an absolute
    path, or of one that begins elsewhere, the last parts are.
    """
    if not name or len(name) > _LONGEST_NAME or "\0" in name:
        return None
    for form in dict.fromkeys((name, name.replace("\\", "/"))):
        parts = [part for part in form.split("/") if part not in ("", ".")]
        inner = [part for part in parts if part != ".." and not part.endswith(":")]
        forms = ["/".join(inner), form] if ".." in parts else [form]
        forms += ["/".join(inner[at:]) for at in range(len(inner) - 1)]
        forms += inner[-1:] if inner and canonical(inner[-1]) in SPELLINGS else []
        for place in (base / one for one in forms if one for base in bases):
            if os.path.exists(place):
                plain = Path(os.path.normpath(place))
                return plain if os.path.exists(plain) else place
    return None


def subfolders(folder: Path) -> Iterator[Path]:
    """Visible folders directly in a folder, by name; none where it cannot be read."""
    try:
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return


def first_folder(candidates: Sequence[Path]) -> Path | None:
    """The first that is a folder."""
    return next((path for path in candidates if os.path.isdir(path)), None)


def read_text(path: Path, what: str) -> str:
    """A text file.

    Raises:
        DataError: it cannot be read, or is no UTF-8.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise DataError(f"{path}: is no file. Give {what}.")
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
        self.unread: dict[int, int] = {}  # labels that could not be read, by id of their image

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
