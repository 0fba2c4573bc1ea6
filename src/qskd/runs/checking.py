"""Looking at all of a data set before anything is trained on it; `qskd check`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from qskd import __version__
from qskd.data.findings import Finding, Group, grouped
from qskd.data.formats.layout import Source, is_image, missing_split
from qskd.data.image_facts import ImageFacts, alike, facts_of
from qskd.data.index import ImageRecord
from qskd.data.mended import Mended
from qskd.data.mending import mend, with_boxes
from qskd.data.statistics import SplitStatistics, statistics_of
from qskd.data.writing import ImageFolder, claim_folder, is_plain, suffix_of, write_annotations
from qskd.errors import DataError
from qskd.runs.building import open_data
from qskd.runs.options import SourceOptions

NEEDED = ("train", "val")  # splits; what is wrong with others stops no training
NEAR = 6  # of 128 bits: two images whose hashes differ in at most so many look alike


@dataclass(slots=True)
class CheckedSplit:
    """One split, looked at."""

    name: str
    mended: Mended
    statistics: SplitStatistics
    records: dict[int, ImageRecord]  # by image id
    facts: dict[int, ImageFacts]  # by image id; empty where pixels were not looked at

    @property
    def places(self) -> list[Path]:
        """Where it comes from: its annotation file or what describes it, and the folder of its images."""
        return list(dict.fromkeys((self.mended.origin, self.mended.folder)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.statistics.as_dict() | {"places": [str(place) for place in self.places]}


@dataclass(slots=True)
class Checked:
    """All of a data set, looked at."""

    origin: str
    format: str
    names: tuple[str, ...]  # of the splits that there are, also where they cannot be read
    splits: list[CheckedSplit] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def groups(self) -> list[Group]:
        """Findings by kind, errors first."""
        return grouped(self.findings)

    @property
    def is_good(self) -> bool:
        """Whether nothing was found that stops or spoils a training."""
        return not any(one.severity == "error" for one in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.origin,
            "format": self.format,
            "qskd": __version__,
            "good": self.is_good,
            "splits": {split.name: split.as_dict() for split in self.splits},
            "findings": [one.as_dict() for one in self.findings],
        }


def check(data: SourceOptions, *, pixels: bool = True) -> Checked:
    """Look at every split, entry and image.

    Args:
        data: which data; only ``data``, ``data_format`` and ``box_format`` count.
        pixels: decode every image, to find damaged, odd and repeated ones.

    Raises:
        ConfigError: no data was named.
        DataError: nothing there is in a known format.
    """
    source = open_data(data)
    found = Checked(source.origin, source.format, source.splits)
    for name in source.splits:
        split = _check_split(source, name, found.findings, pixels)
        if split is not None:
            found.splits.append(split)
    _find_absent(found, source)
    _compare_classes(found)
    _find_repeated(found)
    found.findings = [_weighed(one) for one in found.findings]
    return found


def _find_absent(found: Checked, source: Source) -> None:
    """Splits that should be there, and why they are not."""
    for name, why in source.absent.items():
        found.findings.append(Finding("error", "split that cannot be read", name, why, name))
    there = {*source.splits, *source.absent}
    if "train" not in there:
        why = str(missing_split(source, "train"))
        found.findings.append(Finding("error", "no training split", "train", why, "train"))
    if "val" not in there:
        found.findings.append(Finding("warning", "no validation split", source.origin, "make one with `qskd split`"))


def _weighed(finding: Finding) -> Finding:
    """The same, as a warning or a note where it is about a split that no training needs."""
    if finding.severity != "error" or finding.split in ("", *NEEDED):
        return finding
    is_note = finding.kind in ("split that cannot be read", "no list of annotations")  # as in tests nobody labelled
    return replace(finding, severity="note" if is_note else "warning")


def _check_split(source: Source, name: str, findings: list[Finding], pixels: bool) -> CheckedSplit | None:
    try:
        mended = _mended(source, name)
    except DataError as error:
        findings.append(Finding("error", "split that cannot be read", name, str(error), name))
        return None
    records = {image: mended.record(image) for image in mended.images}
    facts = dict(zip(records, facts_of(list(records.values())), strict=True)) if pixels else {}
    _judge_images(mended, facts)
    _find_empty(mended)
    split = CheckedSplit(name, mended, statistics_of(mended.as_coco()), records, facts)
    empty = split.statistics.empty_images
    if empty:
        mended.note("note", "images without objects", str(mended.origin), f"{empty} of {split.statistics.images}")
    findings += mended.findings
    return split


def _mended(source: Source, name: str) -> Mended:
    errors: list[DataError] = []
    raw = source.raw(name, errors)
    mended = mend(raw.origin, raw.folder, name, raw.content, raw.blobs, raw.unread)
    for error in errors:
        mended.note("error", "entry that cannot be read", str(error))
    for file in raw.orphans:
        mended.note("error", "label file without an image", str(file))
    mended.listed += len(errors) - sum(raw.unread.values()) + len(raw.orphans)  # these had no image in the content
    for line in raw.problems.lines():
        mended.note("note", "told by the reader", source.origin, line)
    return mended


def _find_empty(mended: Mended) -> None:
    """A split without images or classes; told even where it is empty because of what was told before."""
    listed = f"{mended.listed} listed, none of use" if mended.listed else "none is listed"
    if not mended.images:
        mended.note("error", "split without images", str(mended.origin), listed)
    if not mended.categories:
        mended.note("error", "split without classes", str(mended.origin), "there is nothing to be learnt")


def _judge_images(mended: Mended, found: Mapping[int, ImageFacts]) -> None:
    """Note what decoding found, and take damaged images out of the mended split."""
    for image, facts in found.items():
        name = f"image {mended.images[image]['file_name']}"
        if facts.is_bomb or facts.damage:
            kind, told = "decompression bomb" if facts.is_bomb else "image damaged", facts.damage or f"{facts.size}"
            boxes = mended.count_boxes(image)
            mended.note("error", kind, name, f"{told}; {with_boxes(boxes)}" if boxes else told)
        for kind in facts.kinds:
            mended.note("note", f"{kind} image", name)
        if facts.damage or facts.is_bomb:
            mended.drop_image(image)


def _compare_classes(found: Checked) -> None:
    """Classes of another split that the training split has not."""
    training = [split for split in found.splits if split.name == "train"]
    for split in found.splits if training else ():
        extra = set(split.mended.categories.values()) - set(training[0].mended.categories.values())
        if extra:
            kind = "classes that the training split has not"
            found.findings.append(Finding("error", kind, split.name, ", ".join(sorted(extra)), split.name))


def _find_repeated(found: Checked) -> None:
    """Images that look alike in two splits: what was learnt is measured then."""
    for first, second in combinations(found.splits, 2):
        ours, theirs = list(first.facts), list(second.facts)
        pairs = alike(_hashes(first), _hashes(second), NEAR)
        for mine, other, distance in pairs:
            kind = "the same image in two splits" if distance == 0 else "images that look alike in two splits"
            names = (first.records[ours[mine]].path.name, second.records[theirs[other]].path.name)
            where = f"{first.name} {names[0]} and {second.name} {names[1]}"
            found.findings.append(Finding("warning", kind, where, f"{distance} of 128 bits differ", second.name))


def _hashes(split: CheckedSplit) -> list[bytes]:
    return [facts.hash for facts in split.facts.values()]


@dataclass(frozen=True, slots=True)
class CleanSplit:
    """What a clean copy holds of a split, and what it does not."""

    name: str
    content: dict[str, Any]  # in COCO's form
    images: int  # left out
    boxes: int  # likewise, of those that could be counted

    def line(self) -> str:
        """For the console."""
        kept = f"{self.name}: {len(self.content['images'])} images, {len(self.content['annotations'])} boxes"
        return f"{kept}; left out: {self.images} images, {self.boxes} boxes"


def clean_splits(found: Checked) -> list[CleanSplit]:
    """What a clean copy would hold: what could be mended is, what could not is left out.

    Raises:
        DataError: no image would be left, of all splits or of the training split.
    """
    splits = []
    for split in found.splits:
        content, given = split.mended.clean(), split.mended
        if content["images"] and content["categories"]:
            lost = given.listed - len(content["images"]), given.listed_boxes - len(content["annotations"])
            splits.append(CleanSplit(split.name, content, *lost))
        elif split.name == "train":
            raise DataError("No image of the split 'train' would be left. Mend the errors above in the data itself.")
    if not splits:
        raise DataError("No image would be left. Mend the errors above in the data itself.")
    return splits


def write_clean(found: Checked, splits: Sequence[CleanSplit], folder: Path) -> None:
    """A clean copy in COCO's form.

    Images are linked, or copied, or converted to upright RGB where they are anything else.

    Raises:
        ConfigError: the folder is there already and not empty.
    """
    claim_folder(folder)
    records = {split.name: split.records for split in found.splits}
    for split in splits:
        images = ImageFolder(folder / "images" / split.name)
        for row in split.content["images"]:
            record, name = records[split.name][row["id"]], row["file_name"]
            name = name if is_image(Path(name)) else name + suffix_of(record)
            row["file_name"] = images.place(record, name) if is_plain(record) else images.convert(record, name)
        write_annotations(folder, split.name, split.content)


def lines(found: Checked, most: int = 5) -> Sequence[str]:
    """Findings for the console, a few of each kind."""
    shown = []
    for group in found.groups:
        shown.append(f"{group.severity}: {group.kind} ({len(group.findings)})")
        shown += [f"  {one.line()}" for one in group.findings[:most]]
        if len(group.findings) > most:
            shown.append(f"  ... and {len(group.findings) - most} more (--json has them all)")
    return shown
