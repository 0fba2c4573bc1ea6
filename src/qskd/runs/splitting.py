"""Making splits where there are none, or others than there are; `qskd split`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qskd.data.formats.layout import Source, is_image, missing_split
from qskd.data.image_facts import facts_of
from qskd.data.index import DetectionIndex
from qskd.data.splitting import check_shares, divide, look_alikes
from qskd.data.writing import ImageFolder, claim_folder, suffix_of, write_annotations
from qskd.errors import ConfigError, DataError
from qskd.runs.building import open_data
from qskd.runs.checking import NEAR, Checked, check, lines
from qskd.runs.options import SourceOptions


@dataclass(frozen=True, slots=True)
class Divided:
    """What a new split holds."""

    images: int
    boxes: int
    classes: dict[str, int]  # objects of each class


def split(
    data: SourceOptions, folder: Path, shares: Mapping[str, float], *, source_split: str = "train", seed: int = 0
) -> dict[str, Divided]:
    """Divide one split of a data set into several, written in COCO's form; images are linked where the disk allows it.

    Args:
        data: which data; only ``data``, ``data_format`` and ``box_format`` count.
        folder: a new folder.
        shares: of the images, for each new split; they add up to 1.
        source_split: which split to divide.
        seed: another one gives another division.

    Raises:
        ConfigError: the folder is there already, or the shares make no sense.
        DataError: the data cannot be used, or `qskd check` finds an error in the split: nothing is written then.
    """
    check_shares(shares)
    source = open_data(data)
    if source_split not in source.splits:
        raise missing_split(source, source_split)
    known = _hashes_of_good(data, source, source_split)
    index = source.load(source_split)
    hashes = _hashes(index, known)
    labels = [index.labels(position).tolist() for position in range(len(index))]
    names = [f"{name}|{image}" for name, image in zip(index.images.file_names, index.images.ids.tolist(), strict=True)]
    chosen = divide(names, labels, shares, seed=seed, groups=look_alikes(hashes, NEAR))
    empty = [name for name in shares if name not in chosen]
    if empty:
        raise ConfigError(f"The split '{empty[0]}' would hold no image; give it a larger share, or divide more images.")
    claim_folder(folder)
    return {name: _write(index, folder, name, [one == name for one in chosen]) for name in shares}


def _hashes_of_good(data: SourceOptions, source: Source, split: str) -> dict[str, bytes]:
    """Look at everything in a split; hashes of its images by path.

    Raises:
        DataError: there are errors, which would be in the divided data too.
    """
    found = next((one for one in check(data).splits if one.name == split), None)
    if found is None:  # it cannot be read at all, and reading it will say why
        return {}
    errors = [one for one in found.mended.findings if one.severity == "error"]
    if errors:
        told = "\n".join(lines(Checked(source.origin, source.format, source.splits, findings=errors)))
        told = told.replace("(--json has", "(`qskd check --json` has")
        raise DataError(
            f"{source.origin}: the split '{split}' has errors, and what is divided would have them too:\n{told}\n"
            f"Make a clean copy with `qskd check {data.data} --fix CLEAN` and divide that; or mend the data."
        )
    return {os.path.normpath(record.path): found.facts[image].hash for image, record in found.records.items()}


def _hashes(index: DetectionIndex, known: Mapping[str, bytes]) -> list[bytes]:
    """A hash of each image; those that nobody has looked at yet are decoded."""
    paths = [os.path.normpath(record.path) for record in index.images]
    missing = [record for record, path in zip(index.images, paths, strict=True) if path not in known]
    found = {os.path.normpath(facts.path): facts.hash for facts in facts_of(missing)}
    found |= known
    return [found[path] for path in paths]


def _write(index: DetectionIndex, folder: Path, name: str, belongs: list[bool]) -> Divided:
    content = index.ground_truth()
    images = [row for row, mine in zip(content["images"], belongs, strict=True) if mine]
    ids = {row["id"] for row in images}
    annotations = [row for row in content["annotations"] if row["image_id"] in ids]
    place = ImageFolder(folder / "images" / name)
    for record, row, mine in zip(index.images, content["images"], belongs, strict=True):
        if mine:
            wanted = row["file_name"] if is_image(Path(row["file_name"])) else row["file_name"] + suffix_of(record)
            row["file_name"] = place.place(record, wanted)
    write_annotations(folder, name, content | {"images": images, "annotations": annotations})
    by_id = {row["id"]: row["name"] for row in content["categories"]}
    classes = dict.fromkeys(by_id.values(), 0)
    for row in annotations:
        classes[by_id[row["category_id"]]] += 1
    return Divided(len(images), len(annotations), classes)
