"""YOLO data: a ``data.yaml``, image folders, and a text file of boxes beside each image.

A line of such a file is ``class cx cy w h``, fractions of the image, or ``class x1 y1 x2 y2 x3 y3 ...``, an outline,
whose bounding box is taken. An image without a text file holds no objects. Where the description speaks of keypoints
(``kpt_shape``), a line begins with the box and goes on with them. Descriptions and lists may name images anywhere, as
YOLO's own do; nothing but images, their label files and lists (``.txt``) is read there.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from qskd.data.formats.layout import (
    Content,
    RawSplit,
    canonical,
    holds_images,
    images_below,
    in_order,
    is_image,
    locate,
    missing_split,
    read_text,
    several_files,
    spellings,
    split_folders,
    subfolders,
    tolerated,
    without_annotations,
)
from qskd.data.formats.yolo_description import (
    DESCRIPTIONS,
    NAME_FILES,
    SPLITS,
    base_of,
    class_lines,
    is_description,
    located,
    names_of,
    read_description,
    test_beside,
)
from qskd.data.images import upright_size, upright_sizes
from qskd.data.index import DetectionIndex
from qskd.errors import DataError

_FAR_OUTSIDE = 2.0  # a fraction beyond this is no fraction
_ROW = 5  # numbers of a box; an outline has at least 7, an odd count
_TRIED = 20  # files looked at to tell what a folder holds


@dataclass(frozen=True, slots=True)
class YoloSource:
    """YOLO data in a folder or described by a YAML file."""

    format: ClassVar[str] = "yolo"
    file: Path  # the YAML file, or the file with the class names
    class_names: tuple[str, ...]
    parts: Mapping[str, tuple[Path, ...]]  # of each split: image folders, images, or text files with a list of images
    base: Path  # what relative names in such lists may be relative to
    absent: Mapping[str, str] = field(default_factory=dict)  # what to say of splits whose images are not there
    has_keypoints: bool = False

    @classmethod
    def find(cls, path: Path) -> "YoloSource | None":
        """The YOLO data at a path: a YAML file, or a folder that holds one, or images with text files and class names.

        Raises:
            DataError: it is YOLO data that cannot be used.
        """
        if path.is_file():
            return cls._from_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else None
        files = [*(path / name for name in DESCRIPTIONS), *sorted(path.glob("*.y*ml"))]
        described = next((file for file in files if is_description(file)), None)
        return cls._from_yaml(described) if described else cls._from_folders(path)

    @classmethod
    def _from_yaml(cls, file: Path) -> "YoloSource":
        settings = read_description(file)
        base, hint = base_of(file, settings.get("path"))
        wanted = {canonical(key): value for key, value in settings.items() if canonical(key) in SPLITS and value}
        if not wanted:
            raise DataError(f"{file}: names no images under train, val or test.")
        parts: dict[str, tuple[Path, ...]] = {}
        absent: dict[str, str] = {}
        for split, value in wanted.items():  # descriptions of whole data sets come with some of their splits
            try:
                parts[split] = tuple(located(file, base, value, hint))
            except DataError as error:
                absent[split] = str(error)
        if not parts:
            raise DataError(next(iter(absent.values())))
        if "test" not in wanted and (test := test_beside(parts)):
            parts["test"] = (test,)
        return cls(file, names_of(file, settings), parts, base, absent, "kpt_shape" in settings)

    @classmethod
    def _from_folders(cls, path: Path) -> "YoloSource | None":
        """Data without a description: folders or lists of images named like splits, or images without splits."""
        parts = _parts_of(path)
        if not parts:
            return None
        places = [path, path / "labels", path / "images", *subfolders(path / "labels")]
        places += [place for (part,) in parts.values() for place in (part, part.parent, part.parent / "labels")]
        files = (place / name for place in places for name in NAME_FILES)
        named = next((file for file in files if os.path.isfile(file)), None)
        if named is None:
            raise DataError(
                f"{path} holds YOLO labels, but nothing says what the classes are called. Write a data.yaml with "
                "train, val and names, or a classes.txt with one name a line."
            )
        absent = _absent(path, parts)
        kept = {split: part for split, part in parts.items() if split not in absent}
        if not kept:
            raise DataError(next(iter(absent.values())))
        return cls(named, class_lines(named), kept, path, absent)

    @property
    def origin(self) -> str:
        """The file that describes the data."""
        return str(self.file)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits the file names."""
        return in_order(tuple(self.parts))

    def load(self, split: str, *, class_names: Sequence[str] | None = None, strict: bool = False) -> DetectionIndex:
        """See ``Source.load``."""
        return self.raw(split).index(class_names, strict)

    def raw(self, split: str, errors: list[DataError] | None = None) -> RawSplit:
        """See ``Source.raw``."""
        if split in self.absent:
            raise DataError(self.absent[split])
        if split not in self.parts:
            raise missing_split(self, split)
        images = [image for part in self.parts[split] for image in self._images(part)]
        if not images:
            raise DataError(f"{self.file}: no image in {', '.join(map(str, self.parts[split]))}.")
        images = [Path(os.path.abspath(image)) for image in dict.fromkeys(images)]
        folder = Path(os.path.commonpath([image.parent for image in images]))
        content = Content(self.class_names)
        without = []
        for image, size in _measured(images, errors):
            name = image.relative_to(folder).as_posix()
            number = content.add_image(name, *size)
            labels = label_file(image)
            if labels is None:
                without.append(name)
            else:
                self._add_boxes(content, number, size, labels, errors)
        if len(without) == len(images):
            raise DataError(
                f"{self.file}: none of the {len(images)} images of '{split}' has a label file; looked for "
                f"{_expected(images[0])} and the like."
            )
        content.problems.add("images without a label file, taken for empty", without)
        orphans = self._orphans(images)
        if errors is None:
            content.problems.add("label files without an image, left out", [file.name for file in orphans])
        return RawSplit(self.file, folder, content.as_coco(), content.problems, unread=content.unread, orphans=orphans)

    def _add_boxes(
        self, content: Content, image: int, size: tuple[int, int], labels: Path, errors: list[DataError] | None
    ) -> None:
        height, width = size
        before = len(errors or ())
        with tolerated(errors):
            for line, found in _rows(labels):
                with tolerated(errors):
                    label, (left, top, box_width, box_height) = self._box(labels, line, found)
                    box = (left * width, top * height, box_width * width, box_height * height)
                    content.add_box(image, label, box, f"{labels.name}, line {line}")
        if bad := len(errors or ()) - before:
            content.unread[image] = bad

    def _orphans(self, images: Sequence[Path]) -> list[Path]:
        """Label files in the folders of a split's labels that no image in the folders of images has.

        A folder of labels may serve several folders of images, so those of the other splits count as well.
        """
        own = {image.parent for image in images}
        parts = [Path(os.path.abspath(part)) for parts in self.parts.values() for part in parts if part.is_dir()]
        known: dict[Path, set[str]] = {}  # stems of images, by folder of labels
        for folder in {*own, *(Path(top) for part in parts for top, _, _ in os.walk(part))}:
            stems = {file.stem for file in folder.iterdir() if is_image(file)}
            for place in _label_folders(folder):
                known.setdefault(place, set()).update(stems)
        places = sorted({place for folder in own for place in _label_folders(folder) if place.is_dir()})
        texts = [file for place in places for file in sorted(place.glob("*.txt"))]
        lost = [file for file in texts if file.stem not in known[file.parent] and file.name not in NAME_FILES]
        return [file for file in lost if _starts_with_number(file)]

    def _images(self, part: Path) -> list[Path]:
        """The images of a folder, or of a text file with one name a line."""
        if part.is_dir():
            return images_below(part)
        if is_image(part):
            return [part]
        found = []
        for number, line in enumerate(read_text(part, "a list of images").splitlines(), start=1):
            if not (name := line.strip()):
                continue
            where = locate(name, (part.parent, self.base))
            if where is None or not is_image(where):
                raise DataError(
                    f"{part}, line {number}: there is no image '{name[:120]}'; looked for it from {part.parent} and "
                    f"{self.base}."
                )
            found.append(where)
        return found

    def _box(self, file: Path, number: int, cells: Sequence[str]) -> tuple[int, tuple[float, float, float, float]]:
        """Class index and (left, top, width, height) in fractions of the image, of one line."""
        where, classes = f"{file}, line {number}", len(self.class_names)
        values = _numbers(where, cells[:_ROW] if self.has_keypoints else cells)
        if values[0] % 1 or not 0 <= values[0] < classes:
            raise DataError(
                f"{where}: class {cells[0][:40]}; expected a whole number from 0 to {classes - 1}, since "
                f"{self.file} names {classes} classes."
            )
        return int(values[0]), _box(where, values)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line that is not empty."""
    for number, line in enumerate(read_text(file, "a YOLO label file").splitlines(), start=1):
        if cells := line.split():
            yield number, cells


def _measured(images: Sequence[Path], errors: list[DataError] | None) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Every image with its (height, width); those that are none are left out if errors are collected."""
    if errors is None:
        yield from zip(images, upright_sizes(images), strict=True)
        return
    for image in images:
        with tolerated(errors):
            yield image, upright_size(image)


def _box(where: str, values: Sequence[float]) -> tuple[float, float, float, float]:
    """(left, top, width, height) of a line's numbers."""
    if len(values) == _ROW:
        x, y, width, height = values[1:]
        return x - width / 2, y - height / 2, width, height
    if len(values) > _ROW + 1 and len(values) % 2:
        xs, ys = values[1::2], values[2::2]
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    what = "a sixth, a detector's confidence, has no place here" if len(values) == _ROW + 1 else "expected"
    raise DataError(
        f"{where}: has {len(values)} numbers; {what}: 'class cx cy w h', or a class and the x and y of at least three "
        "corners."
    )


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


def _label_folders(images: Path) -> list[Path]:
    """Where the label files of the images in a folder may be."""
    return [path.parent for path in _candidates(images / "a.jpg")]


def _expected(image: Path) -> str:
    return str(_candidates(image)[0])


def _parts_of(path: Path) -> dict[str, tuple[Path, ...]]:
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


def _absent(path: Path, parts: Mapping[str, tuple[Path, ...]]) -> dict[str, str]:
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
            if os.path.isfile(label) and _starts_with_number(label):
                return True
    return False


def _starts_with_number(file: Path) -> bool:
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


def _numbers(where: str, cells: Sequence[str]) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        raise DataError(f"{where}: '{' '.join(cells)[:80]}' are not all numbers.") from None
    if not all(math.isfinite(value) for value in values):
        raise DataError(f"{where}: '{' '.join(cells)[:80]}' are not all finite numbers.")
    if any(abs(value) > _FAR_OUTSIDE for value in values[1:]):
        raise DataError(
            f"{where}: {max(values[1:], key=abs):g} is no fraction of the image. YOLO's boxes are fractions from "
            "0 to 1, not pixels."
        )
    return values
