"""YOLO data: a ``data.yaml``, image folders, and a text file of boxes beside each image.

A line of such a file is ``class cx cy w h``, fractions of the image, or ``class x1 y1 x2 y2 x3 y3 ...``, an outline,
whose bounding box is taken. An image without a text file holds no objects.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from qskd.data.formats.layout import (
    Content,
    canonical,
    first_folder,
    images_below,
    in_order,
    is_image,
    missing_split,
    read_text,
    spellings,
)
from qskd.data.images import upright_sizes
from qskd.data.index import DetectionIndex
from qskd.errors import DataError

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
_FAR_OUTSIDE = 2.0  # a fraction beyond this is no fraction
_ROW = 5  # numbers of a box; an outline has at least 7, an odd count


@dataclass(frozen=True, slots=True)
class YoloSource:
    """YOLO data in a folder or described by a YAML file."""

    format: ClassVar[str] = "yolo"
    file: Path  # the YAML file, or the file with the class names
    class_names: tuple[str, ...]
    parts: Mapping[str, tuple[Path, ...]]  # of each split: image folders, images, or text files with a list of images
    base: Path  # what relative names in such lists may be relative to

    @classmethod
    def find(cls, path: Path) -> "YoloSource | None":
        """The YOLO data at a path: a YAML file, or a folder that holds one, or images/ with labels/ and class names.

        Raises:
            DataError: it is YOLO data that cannot be used.
        """
        if path.is_file():
            return cls._from_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else None
        files = [path / "data.yaml", path / "data.yml", path / "dataset.yaml", path / "dataset.yml"]
        described = next((file for file in [*files, *sorted(path.glob("*.y*ml"))] if _is_description(file)), None)
        return cls._from_yaml(described) if described else cls._from_folders(path)

    @classmethod
    def _from_yaml(cls, file: Path) -> "YoloSource":
        settings = _read_yaml(file)
        base = _base(file, settings.get("path"))
        parts = {
            canonical(str(key)): tuple(_located(file, base, value))
            for key, value in settings.items()
            if canonical(str(key)) in ("train", "val", "test") and value
        }
        if not parts:
            raise DataError(f"{file}: names no images under train, val or test.")
        if "test" not in parts and (test := _test_beside(parts)):
            parts["test"] = (test,)
        return cls(file, _names(file, settings), parts, base)

    @classmethod
    def _from_folders(cls, path: Path) -> "YoloSource | None":
        """images/<split> beside labels/<split>, or <split>/images beside <split>/labels; or both without splits."""
        named = next((path / name for name in _NAME_FILES if (path / name).is_file()), None)
        if named is None:
            return None
        parts: dict[str, tuple[Path, ...]] = {}
        for split in ("train", "val", "test"):
            names = spellings(split)
            pairs = [(path / "images" / name, path / "labels" / name) for name in names]
            pairs += [(path / name / "images", path / name / "labels") for name in names]
            found = first_folder([images for images, labels in pairs if labels.is_dir()])
            if found:
                parts[split] = (found,)
        whole = path / "images" if (path / "images").is_dir() else path
        has_labels = (path / "labels").is_dir() or any(file.with_suffix(".txt").is_file() for file in _some(path))
        if not parts and has_labels:
            parts["train"] = (whole,)
        lines = [line.strip() for line in read_text(named, "a file with one class name a line").splitlines()]
        return cls(named, tuple(line for line in lines if line), parts, path) if parts else None

    @property
    def origin(self) -> str:
        """The file that describes the data."""
        return str(self.file)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits the file names."""
        return in_order(tuple(self.parts))

    def load(self, split: str, *, class_names: Sequence[str] | None = None, strict: bool = False) -> DetectionIndex:
        """One split; see ``Source.load``."""
        if split not in self.parts:
            raise missing_split(self, split)
        images = [image for part in self.parts[split] for image in self._images(part)]
        if not images:
            raise DataError(f"{self.file}: no image in {', '.join(map(str, self.parts[split]))}.")
        images = list(dict.fromkeys(images))
        folder = Path(os.path.commonpath([image.parent for image in images]))
        content = Content(self.class_names)
        without = []
        for image, (height, width) in zip(images, upright_sizes(images), strict=True):
            name = image.relative_to(folder).as_posix()
            number = content.add_image(name, height, width)
            labels = label_file(image)
            if labels is None:
                without.append(name)
                continue
            for line, label, (left, top, box_width, box_height) in _boxes(labels, len(self.class_names)):
                box = (left * width, top * height, box_width * width, box_height * height)
                content.add_box(number, label, box, f"{labels.name}, line {line}")
        if len(without) == len(images):
            raise DataError(
                f"{self.file}: none of the {len(images)} images of '{split}' has a label file; looked for "
                f"{_expected(images[0])} and the like."
            )
        content.problems.add("images without a label file, taken for empty", without)
        return DetectionIndex.of(
            self.file, folder, content.as_coco(), class_names=class_names, strict=strict, problems=content.problems
        )

    def _images(self, part: Path) -> list[Path]:
        """The images of a folder, or of a text file with one name a line."""
        if part.is_dir():
            return images_below(part)
        if is_image(part):
            return [part]
        found = []
        for line in read_text(part, "a list of images").splitlines():
            name = line.strip()
            if not name:
                continue
            places = (part.parent / name, self.base / name)
            where = next((place for place in places if place.is_file()), None)
            if where is None:
                raise DataError(f"{part}: the image '{name}' is not there; looked for {places[0]} and {places[1]}.")
            found.append(Path(os.path.normpath(where)))
        return found


def label_file(image: Path) -> Path | None:
    """The text file of an image: its path with the last images/ turned into labels/, or beside it."""
    return next((path for path in _candidates(image) if path.is_file()), None)


def _candidates(image: Path) -> list[Path]:
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at].lower() == "images":
            return [Path(*parts[:at], "labels", *parts[at + 1 :]), beside]
    return [beside, image.parent.parent / "labels" / beside.name]


def _expected(image: Path) -> str:
    return str(_candidates(image)[0])


def _some(path: Path) -> list[Path]:
    folder = path / "images" if (path / "images").is_dir() else path
    return [file for file in sorted(folder.iterdir()) if is_image(file)][:100]


def _is_description(file: Path) -> bool:
    """Whether a YAML file names images; run and model configurations lie about as well."""
    if not file.is_file():
        return False
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return file.name in ("data.yaml", "data.yml")  # its own error is better than none
    return isinstance(settings, dict) and bool({"names", "nc"} & set(settings)) and "train" in settings


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(read_text(file, "a data.yaml"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{file}: not valid YAML ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(settings, dict):
        raise DataError(f"{file}: holds a {type(settings).__name__}, expected keys such as train, val and names.")
    return settings


def _base(file: Path, given: Any) -> Path:
    """The folder that names are relative to; a ``path`` from another machine is not believed."""
    if isinstance(given, str) and given:
        for place in (file.parent / given, Path(given).expanduser()):
            if place.is_dir():
                return place
    return file.parent


def _located(file: Path, base: Path, value: Any) -> Iterator[Path]:
    """Where the images of one key are; ``../train/images`` of exporters that mean ``train/images`` too."""
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str) or not name or "\0" in name:
            raise DataError(f"{file}: names images as {name!r:.80}; expected a folder or a text file.")
        trimmed = name
        while trimmed.startswith(("../", "./")):
            trimmed = trimmed.split("/", 1)[1]
        places = [base / name, file.parent / name, base / trimmed, file.parent / trimmed]
        where = next((place for place in places if place.exists()), None)
        if where is None:
            raise DataError(f"{file}: '{name}' is not there; looked for {', '.join(dict.fromkeys(map(str, places)))}.")
        yield Path(os.path.normpath(where))


def _test_beside(parts: Mapping[str, tuple[Path, ...]]) -> Path | None:
    """The test images that lie beside those of another split but that exporters forget to name."""
    for split, (first, *_) in parts.items():
        for name in spellings(split):
            if name in first.parts and first.is_dir():
                at = len(first.parts) - 1 - first.parts[::-1].index(name)
                place = Path(*first.parts[:at], "test", *first.parts[at + 1 :])
                if place.is_dir():
                    return place
    return None


def _names(file: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names by index, from a list, from numbered keys, or numbers where only their count is given."""
    names, count = settings.get("names"), settings.get("nc")
    if isinstance(names, dict):
        try:
            numbered = {int(key): name for key, name in names.items()}
        except (TypeError, ValueError) as error:
            raise DataError(f"{file}: the keys of 'names' must be class numbers, got {list(names)[:5]}.") from error
        if sorted(numbered) != list(range(len(numbered))):
            raise DataError(f"{file}: 'names' has the numbers {sorted(numbered)[:10]}; expected 0, 1, 2, ...")
        names = [numbered[index] for index in range(len(numbered))]
    if names is None and type(count) is int and 0 < count < 100_000:
        return tuple(map(str, range(count)))
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: 'names' is {names!r:.80}; expected the class names, in order.")
    if type(count) is int and count != len(names):
        raise DataError(f"{file}: nc is {count}, but 'names' holds {len(names)} names. Correct one of them.")
    return tuple(str(name) for name in names)


def _boxes(file: Path, classes: int) -> Iterator[tuple[int, int, tuple[float, float, float, float]]]:
    """Number, class index and (left, top, width, height) in fractions of the image, of every line."""
    for number, line in enumerate(read_text(file, "a YOLO label file").splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        where = f"{file}, line {number}"
        values = _numbers(where, cells)
        if values[0] % 1 or not 0 <= values[0] < classes:
            raise DataError(f"{where}: class {cells[0]}; expected a whole number from 0 to {classes - 1}.")
        if len(values) == _ROW:
            x, y, width, height = values[1:]
            yield number, int(values[0]), (x - width / 2, y - height / 2, width, height)
        elif len(values) > _ROW + 1 and len(values) % 2:
            xs, ys = values[1::2], values[2::2]
            yield number, int(values[0]), (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        else:
            raise DataError(
                f"{where}: has {len(values)} numbers; expected 'class cx cy w h', or a class and the x and y of at "
                "least three corners."
            )


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
