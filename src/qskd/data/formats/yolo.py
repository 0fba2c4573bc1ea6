"""YOLO data: a ``data.yaml``, image folders, and a text file of boxes beside each image.

A line of such a file is ``class cx cy w h``, fractions of the image, or ``class x1 y1 x2 y2 x3 y3 ...``, an outline,
whose bounding box is taken. An image without a text file holds no objects. Where the description speaks of keypoints
(``kpt_shape``), a line begins with the box and goes on with them. Descriptions and lists may name images anywhere, as
YOLO's own do; nothing but images, their label files and lists (``.txt``) is read there.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from qskd.data.formats.layout import (
    Content,
    RawSplit,
    canonical,
    images_below,
    in_order,
    is_image,
    locate,
    missing_split,
    read_text,
    subfolders,
    tolerated,
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
from qskd.data.formats.yolo_folders import (
    absent_splits,
    expected_label_file,
    label_file,
    label_folders,
    parts_of,
    starts_with_number,
)
from qskd.data.formats.yolo_rows import ROW, box_of, numbers_of, rows_of
from qskd.data.images import upright_size, upright_sizes
from qskd.data.index import DetectionIndex
from qskd.errors import DataError


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
        parts = parts_of(path)
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
        absent = absent_splits(path, parts)
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
                f"{expected_label_file(images[0])} and the like."
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
            for line, found in rows_of(labels):
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
            for place in label_folders(folder):
                known.setdefault(place, set()).update(stems)
        places = sorted({place for folder in own for place in label_folders(folder) if place.is_dir()})
        texts = [file for place in places for file in sorted(place.glob("*.txt"))]
        lost = [file for file in texts if file.stem not in known[file.parent] and file.name not in NAME_FILES]
        return [file for file in lost if starts_with_number(file)]

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
        values = numbers_of(where, cells[:ROW] if self.has_keypoints else cells)
        if values[0] % 1 or not 0 <= values[0] < classes:
            raise DataError(
                f"{where}: class {cells[0][:40]}; expected a whole number from 0 to {classes - 1}, since "
                f"{self.file} names {classes} classes."
            )
        return int(values[0]), box_of(where, values)


def _measured(images: Sequence[Path], errors: list[DataError] | None) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Every image with its (height, width); those that are none are left out if errors are collected."""
    if errors is None:
        yield from zip(images, upright_sizes(images), strict=True)
        return
    for image in images:
        with tolerated(errors):
            yield image, upright_size(image)
