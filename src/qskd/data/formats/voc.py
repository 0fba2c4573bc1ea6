"""Pascal VOC data: an XML file for every image, and text files that say which images belong to a split.

Corners are taken as they stand, xmin to xmax, without VOC's one pixel: so do the usual converters. Objects marked
``difficult`` become crowds: neither learnt nor counted as missed, as in VOC's own evaluation.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from qskd.data.formats.layout import (
    SPELLINGS,
    Content,
    RawSplit,
    canonical,
    first_folder,
    holds_images,
    in_order,
    is_image,
    missing_split,
    read_text,
    several_files,
    subfolders,
    tolerated,
    without_annotations,
)
from qskd.data.formats.voc_pages import Page, read_page, stem_of
from qskd.data.images import upright_size
from qskd.data.index import DetectionIndex
from qskd.errors import DataError

_ANNOTATIONS = ("Annotations", "annotations", "labels", "xml", "xmls", "annotations/xmls", "annots")
_IMAGES = ("JPEGImages", "images", "Images", "imgs", "image", "img")
_SETS = ("ImageSets/Main", "ImageSets", "splits", ".")


@dataclass(slots=True)
class VocSource:
    """VOC data in a folder."""

    format: ClassVar[str] = "voc"
    folder: Path
    parts: Mapping[str, tuple[tuple[Path, Path], ...]]  # of each split: XML files with the folder of their image
    has_sets: bool = False
    absent: Mapping[str, str] = field(default_factory=dict)  # what to say of splits that cannot be read
    _pages: dict[Path, Page] = field(default_factory=dict)
    _listings: dict[Path, dict[str, Path]] = field(default_factory=dict)  # of each image folder, by stem

    @classmethod
    def find(cls, path: Path) -> "VocSource | None":
        """The VOC data in a folder: Annotations/ with JPEGImages/ (and ImageSets/), or XML files beside images.

        Raises:
            DataError: several years of VOC lie in the folder, or every split lies there several times.
        """
        if not path.is_dir():
            return None
        if folder := _devkit(path):
            sets = _sets_of(folder)
            return cls(folder, _parts_of_devkit(folder, sets), bool(sets))
        if parts := {folder: files for folder in subfolders(path) if (files := _beside(folder))}:
            absent = _absent(path, list(parts))
            by_split = {canonical(folder.name): files for folder, files in parts.items()}
            kept = {split: files for split, files in by_split.items() if split not in absent}
            if not kept:
                raise DataError(next(iter(absent.values())))
            return cls(path, kept, absent=absent)
        files = _beside(path)
        return cls(path, {"train": files}) if files else None

    @property
    def origin(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits with XML files."""
        return in_order(tuple(self.parts))

    def load(self, split: str, *, class_names: Sequence[str] | None = None, strict: bool = False) -> DetectionIndex:
        """See ``Source.load``."""
        return self.raw(split).index(class_names, strict)

    def raw(self, split: str, errors: list[DataError] | None = None) -> RawSplit:
        """See ``Source.raw``. Classes are those of all splits, by name."""
        if split in self.absent:
            raise DataError(self.absent[split])
        if split not in self.parts:
            raise missing_split(self, split)
        pages = list(self._pages_of(split, errors))
        every = [page for name in self.parts for page in self._pages_of(name, None if errors is None else [])]
        vocabulary = sorted({found.name for page in every for found in page.objects})
        if not vocabulary or not pages:
            raise DataError(f"{self.folder}: no XML file names an object, so there are no classes.")
        folder = _common([page.image for page in pages])
        content = Content(vocabulary)
        label_of = {name: label for label, name in enumerate(vocabulary)}
        for page, size in _sized(pages, errors):
            image = content.add_image(page.image.relative_to(folder).as_posix(), *size)
            for found in page.objects:
                content.add_box(image, label_of[found.name], found.box, page.file.name, is_crowd=found.is_difficult)
        _note(content, pages)
        content.problems.add("images without an XML file left out", self._without_page(split))
        return RawSplit(self.folder, folder, content.as_coco(), content.problems)

    def _pages_of(self, split: str, errors: list[DataError] | None) -> Iterator[Page]:
        for where in self.parts[split]:
            with tolerated(errors):
                yield self._page(*where)

    def _without_page(self, split: str) -> list[str]:
        """Images in the folders of a split that no XML file is about; with image sets there are always some."""
        if self.has_sets:
            return []
        folders = dict.fromkeys(images for _, images in self.parts[split])
        shown = {page.image for page in self._pages_of(split, [])}
        listed = [image for folder in folders for image in self._listings[folder].values()]
        return [image.name for image in listed if image not in shown]

    def _page(self, file: Path, images: Path) -> Page:
        if images not in self._listings:
            self._listings[images] = {path.stem: path for path in sorted(images.iterdir()) if is_image(path)}
        if file not in self._pages:
            self._pages[file] = read_page(file, images, self._listings[images])
        return self._pages[file]


def _note(content: Content, pages: Sequence[Page]) -> None:
    boxless = [page.file.name for page in pages if page.boxless]
    content.problems.add("objects without a box dropped", boxless, sum(page.boxless for page in pages))
    unsized = [page.file.name for page in pages if page.size is None]
    content.problems.add("XML files without an image size, read from the image", unsized)
    difficult = [page.file.name for page in pages if any(found.is_difficult for found in page.objects)]
    marked = sum(found.is_difficult for page in pages for found in page.objects)
    content.problems.add("objects marked difficult, neither learnt nor scored", difficult, marked)


def _sized(pages: Sequence[Page], errors: list[DataError] | None) -> Iterator[tuple[Page, tuple[int, int]]]:
    """Every page with the (height, width) of its image, from its XML file or else from the image itself."""
    for page in pages:
        with tolerated(errors):
            yield page, page.size if page.size is not None else upright_size(page.image)


def _devkit(path: Path) -> Path | None:
    """The folder with Annotations/ and images: the path itself, or one year of VOC below it."""
    if _is_devkit(path):
        return path
    places = [*subfolders(path), *subfolders(path / "VOCdevkit")]
    found = [place for place in places if _is_devkit(place) and canonical(place.name) not in SPELLINGS]
    if len(found) > 1:
        years = ", ".join(str(place) for place in found)
        raise DataError(f"{path} holds several sets of VOC data: {years}. Give one of them.")
    return found[0] if found else None


def _is_devkit(folder: Path) -> bool:
    return _annotations(folder) is not None and first_folder([folder / name for name in _IMAGES]) is not None


def _annotations(folder: Path) -> Path | None:
    """The folder of XML files, one of the usual names."""
    places = (folder / name for name in _ANNOTATIONS)
    return next((place for place in places if place.is_dir() and next(place.glob("*.xml"), None)), None)


def _sets_of(folder: Path) -> dict[str, Path]:
    """The files that say which images belong to a split; where training images are not set apart, trainval."""
    for place in (folder / name for name in _SETS):
        files = {file.stem.lower(): file for file in sorted(place.glob("*.txt"))} if place.is_dir() else {}
        sets = {canonical(stem): file for stem, file in files.items() if canonical(stem) in SPELLINGS}
        if "train" not in sets and "trainval" in files:
            sets = {"train": files["trainval"], **sets}
        if sets:
            return sets
    return {}


def _parts_of_devkit(folder: Path, sets: Mapping[str, Path]) -> dict[str, tuple[tuple[Path, Path], ...]]:
    annotations = _annotations(folder)
    images = first_folder([folder / name for name in _IMAGES])
    assert annotations is not None
    assert images is not None
    parts = {split: tuple((xml, images) for xml in _listed(file, annotations)) for split, file in sets.items()}
    return parts or {"train": tuple((xml, images) for xml in sorted(annotations.glob("*.xml")))}


def _listed(file: Path, annotations: Path) -> Iterator[Path]:
    """The XML files of the names in an image set."""
    lines = [line.strip() for line in read_text(file, "an image set").splitlines()]
    if not any(lines):
        raise DataError(f"{file}: is empty; expected the name of an image a line.")
    for number, name in enumerate(lines, start=1):
        if not name:
            continue
        # The name alone, or a name and whether a class is there, or a path and its XML file's.
        pages = [annotations / f"{stem_of(text)}.xml" for text in (name, name.rsplit(maxsplit=1)[0], name.split()[0])]
        xml = next((page for page in pages if os.path.isfile(page)), None)
        if xml is None:
            raise DataError(f"{file}, line {number}: names '{name[:80]}', but there is no {str(pages[0])[:240]}.")
        yield xml


def _beside(folder: Path) -> tuple[tuple[Path, Path], ...]:
    """XML files in a folder with their images, or in folders of their own within it."""
    if (files := sorted(folder.glob("*.xml"))) and any(is_image(file) for file in folder.iterdir()):
        return tuple((file, folder) for file in files)
    annotations, images = _annotations(folder), first_folder([folder / name for name in _IMAGES])
    return tuple((file, images) for file in sorted(annotations.glob("*.xml"))) if annotations and images else ()


def _absent(path: Path, read: Sequence[Path]) -> dict[str, str]:
    """What to say of folders named like splits: of those without XML files, and of several for one split."""
    absent: dict[str, str] = {}
    for split in SPELLINGS:
        folders = [folder for folder in subfolders(path) if canonical(folder.name) == split]
        annotated = [folder for folder in folders if folder in read]
        if len(annotated) > 1:
            absent[split] = several_files(path, split, annotated)
        elif not annotated and (bare := [folder for folder in folders if holds_images(folder)]):
            absent[split] = without_annotations(bare[0], split, "an XML file beside each of them")
    return absent


def _common(images: Sequence[Path]) -> Path:
    parents = {image.parent for image in images}
    return parents.pop() if len(parents) == 1 else Path(*_shared([parent.parts for parent in parents]))


def _shared(parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    columns = zip(*parts, strict=False)
    same = [column[0] for column in columns if len(set(column)) == 1]
    return tuple(same)
