"""COCO detection files and the folders they lie in."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from qskd.data.formats.coco_tables import Problems
from qskd.data.formats.layout import (
    SPELLINGS,
    RawSplit,
    canonical,
    holds_images,
    in_order,
    missing_split,
    several_files,
    split_folders,
    subfolders,
    without_annotations,
)
from qskd.data.index import DetectionIndex
from qskd.errors import DataError

_LONE_NAMES = ("_annotations.coco.json", "annotations/instances_default.json", "labels.json", "result.json")
_HEAD = 1 << 16  # bytes; the first key stands there
_KEYS = re.compile(rb'"(?:images|annotations)"\s*:\s*\[')
_FIRST_KEYS = re.compile(rb'"(?:categories|licenses)"\s*:\s*\[|"info"\s*:\s*\{')  # alone, other programs' notes
_OTHERS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # Hugging Face's
_OTHER_KINDS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")  # COCO's own, without objects
_TRIED = 20  # images looked for in a folder that might be the one
_MOST_FILES = 10  # of one split; more than that are one an image, of another program


def load_coco(
    annotations: Path,
    images: Path,
    *,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
) -> DetectionIndex:
    """Read and check an annotation file.

    Args:
        annotations: the JSON file.
        images: the folder that its file names are relative to.
        class_names: see ``DetectionIndex.of``.
        strict: likewise.

    Raises:
        DataError: the file cannot be read, or see ``DetectionIndex.of``.
    """
    annotations, images = Path(annotations), Path(images)
    content = without_root(read_json(annotations))
    return DetectionIndex.of(annotations, images, content, class_names=class_names, strict=strict)


@dataclass(frozen=True, slots=True)
class CocoSource:
    """COCO files in a folder, with the images they are about."""

    format: ClassVar[str] = "coco"
    folder: Path
    files: Mapping[str, Path]  # annotation file of each split
    absent: Mapping[str, str] = field(default_factory=dict)  # what to say of splits that cannot be read

    @classmethod
    def find(cls, path: Path) -> "CocoSource | None":
        """The COCO data in a folder, laid out as COCO's own, or as exporters do it.

        Annotation files are ``annotations/instances_<split>.json`` (also with 2017 behind),
        ``annotations/<split>.json``, ``<split>.json``, a name with the split's in it, as ``coco_train.json``, or
        ``<split>/`` with one JSON file in it; or else a single file for data without splits.

        Raises:
            DataError: every split has several annotation files, and nothing says which one is meant.
        """
        if not path.is_dir():
            return None
        claims = _claims(path)
        files = {split: found[0] for split, found in claims.items() if len(found) == 1}
        absent = {split: several_files(path, split, found) for split, found in claims.items() if len(found) > 1}
        if absent and not files:
            raise DataError(absent[in_order(tuple(absent))[0]])
        if list(files) == ["default"]:  # CVAT's name for data without splits
            return cls(path, {"train": files["default"]}, absent)
        if files:
            return cls(path, files, _unannotated(path, claims) | absent)
        lone = _lone_file(path)
        return cls(path, {"train": lone}) if lone else None

    @property
    def origin(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits with an annotation file."""
        return in_order(tuple(self.files))

    def load(self, split: str, *, class_names: Sequence[str] | None = None, strict: bool = False) -> DetectionIndex:
        """See ``Source.load``."""
        return self.raw(split).index(class_names, strict)

    def raw(self, split: str, errors: list[DataError] | None = None) -> RawSplit:
        """See ``Source.raw``: nothing is looked at yet."""
        if split in self.absent:
            raise DataError(self.absent[split])
        if split not in self.files:
            raise missing_split(self, split)
        file = self.files[split]
        content = read_json(file) if errors is not None else without_root(read_json(file))
        return RawSplit(file, image_folder(self.folder, file, split, content), content, Problems())


def _claims(path: Path) -> dict[str, list[Path]]:
    """The annotation files of every split: of more and less usual names those with the most usual ones."""
    claims: dict[str, list[Path]] = {}
    for step in _annotation_files(path):
        found: dict[str, list[Path]] = {}
        for split, file in step:
            found.setdefault(canonical(split), []).append(file)
        claims |= found
    return claims


def _annotation_files(path: Path) -> Iterator[list[tuple[str, Path]]]:
    """Splits with their files, all of one kind of name at a time, the most usual kind last."""
    files = [file for folder in (path, path / "annotations") for file in sorted(folder.glob("*.json"))]
    named = [(split, file) for file in files if (split := _split_in(file.stem)) and _is_coco(file)]
    yield [(split, file) for split, file in named if file.name.startswith(_OTHER_KINDS)]
    folders = [folder for folder in subfolders(path) if canonical(folder.name) in SPELLINGS]
    yield [(folder.name, file) for folder in folders for file in _files_of_split(folder)]
    yield [(split, file) for split, file in named if not file.name.startswith(_OTHER_KINDS)]
    yield [(split, file) for split, file in named if canonical(file.stem) in SPELLINGS]
    usual = sorted((path / "annotations").glob("instances_*.json"))
    yield [(file.stem.removeprefix("instances_").removesuffix("2017"), file) for file in usual]


def _unannotated(path: Path, claims: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """What to say of folders of images that are named like splits, but that no annotation file is about."""
    folders = split_folders(path / "images") | split_folders(path)
    return {
        split: without_annotations(
            folder, split, f"{path / 'annotations' / f'instances_{split}.json'} or {folder / _LONE_NAMES[0]}"
        )
        for split, folder in folders.items()
        if split not in claims and holds_images(folder)
    }


def _split_in(stem: str) -> str | None:
    """The one split that a file's name speaks of, as ``train_annotations`` or ``coco-val``."""
    found = {canonical(word) for word in re.split(r"[\W_]+", stem)} & set(SPELLINGS)
    return found.pop() if len(found) == 1 else None


def _lone_file(folder: Path) -> Path | None:
    """The one COCO file of a folder, or of its annotations/."""
    found = _coco_files(folder)
    return found[0] if len(found) == 1 else None


def _files_of_split(folder: Path) -> list[Path]:
    """The COCO files of a folder that is named like a split; none where there is one an image."""
    found = _coco_files(folder)
    return found if len(found) <= _MOST_FILES else []


def _coco_files(folder: Path) -> list[Path]:
    """The COCO files of a folder, or of its annotations/; where one has a usual name, that one alone."""
    usual = [folder / name for name in _LONE_NAMES]
    others = [file for place in (folder, folder / "annotations") for file in sorted(place.glob("*.json"))]
    found = [file for file in dict.fromkeys([*usual, *others]) if file.is_file() and _is_coco(file)]
    return found[:1] if found and found[0] in usual else found


def _is_coco(file: Path) -> bool:
    """Whether a file begins like COCO's, without reading all of it."""
    if file.name in _OTHERS or not os.path.isfile(file):
        return False
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
    except OSError:
        return False
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return False
    return bool(_KEYS.search(head) or (len(head) == _HEAD and _FIRST_KEYS.search(head)))


def image_folder(folder: Path, file: Path, split: str, content: Mapping[str, Any]) -> Path:
    """The folder that the file names of an annotation file are relative to: the one that holds most of the first.

    Raises:
        DataError: none of the usual folders does.
    """
    own = [found[split] for found in (split_folders(folder / "images"), split_folders(folder)) if split in found]
    places = [folder / "images" / split, folder / "images" / f"{split}2017", folder / split, folder / f"{split}2017"]
    places = [*dict.fromkeys([*places[:2], *own[:1], *places[2:], *own[1:]])]
    places += [file.parent / "images", file.parent / "data", folder / "images", folder / "data"]
    places += [folder / "images" / "default", folder / "JPEGImages"]
    places += [place / "images" for place in (folder / split, *own)] + [file.parent, folder]
    existing = [place for place in dict.fromkeys(places) if place.is_dir()]
    if existing:
        rows = content.get("images")
        names = (
            [row.get("file_name") for row in rows[:_TRIED] if isinstance(row, dict)] if isinstance(rows, list) else []
        )
        texts = [name.replace("\\", "/") for name in names if isinstance(name, str)]
        held = [sum(os.path.isfile(place / name) for name in texts) for place in existing]
        if not texts or max(held):
            return existing[held.index(max(held))]
        meant = [place for place in existing if place not in (folder, folder / "annotations")]
        if meant:
            return meant[0]  # what is missing there will be named
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise DataError(f"No image folder for the split '{split}'; looked for {looked}.")


def without_root(content: dict[str, Any]) -> dict[str, Any]:
    """The same without the category that Roboflow writes for a project as a whole: the parent of all others.

    No annotation has it, and where a project is named like a class it would name that twice.
    """
    categories, annotations = content.get("categories"), content.get("annotations")
    if not isinstance(categories, list) or not isinstance(annotations, list) or len(categories) < 2:
        return content
    root, *others = categories
    is_root = (
        isinstance(root, dict)
        and root.get("id") == 0
        and root.get("supercategory") == "none"
        and all(isinstance(row, dict) and row.get("supercategory") == root.get("name") for row in others)
        and not any(isinstance(row, dict) and row.get("category_id") == 0 for row in annotations)
    )
    return content | {"categories": others} if is_root else content


def _without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)  # most of COCO's bytes, and never used here
    return entry


def read_json(path: Path) -> dict[str, Any]:
    """The content of a COCO file without its outlines.

    Raises:
        DataError: it cannot be read, or is no JSON object.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a device has no end, a pipe would be waited for
        raise DataError(f"{path}: is no file. Give a COCO annotation file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_without_segmentation)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give a COCO annotation file.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} (character {error.pos}): "
            f"{error.msg}. Is the file truncated? Copy it again."
        ) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: not a JSON text file ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds a {type(content).__name__}, expected a COCO object with 'images', 'annotations' "
            "and 'categories'."
        )
    return content
