"""The YAML file that describes YOLO data: where the images of each split are, and what the classes are called."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from qskd.data.formats.layout import canonical, is_image, locate, read_text, spellings
from qskd.errors import DataError

DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
SPLITS = ("train", "val", "test")
_DEEPEST = 20  # lists within lists in a description
_LARGEST_YAML = 1 << 20  # bytes; thousands of class names take a tenth of it


def class_lines(file: Path) -> tuple[str, ...]:
    """Class names of a file with one a line."""
    lines = [line.strip() for line in read_text(file, "a file with one class name a line").splitlines()]
    return tuple(line for line in lines if line)


def is_description(file: Path) -> bool:
    """Whether a YAML file names images; run and model configurations lie about as well."""
    if not os.path.isfile(file):
        return False
    is_usual = file.name in DESCRIPTIONS
    try:
        settings = read_description(file)
    except DataError:
        return is_usual  # its own error is better than none
    has_splits = any(canonical(key) in SPLITS for key in settings)
    has_names = bool({"names", "nc"} & set(settings))
    return has_splits or has_names if is_usual else has_splits and has_names


class _Loader(yaml.BaseLoader):
    """Scalars stay the text they are, since a class may be called no, or 007; nothing stands for something else."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node, unless it repeats another: a few of those can stand for more than fits into memory."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name); write out what it stands for")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_description(file: Path) -> dict[str, Any]:
    """The keys of a YAML file; what it leaves empty is "", other scalars are text."""
    text = read_text(file, "a data.yaml")
    if len(text) > _LARGEST_YAML:
        raise DataError(f"{file}: has {len(text)} characters, far more than the description of a data set.")
    try:
        settings = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{file}: not valid YAML ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(settings, dict):
        kind = "nothing" if settings is None else f"a {type(settings).__name__}"
        raise DataError(f"{file}: holds {kind}, expected keys such as train, val and names.")
    return {key: "" if value in ("~", "null") else value for key, value in settings.items() if isinstance(key, str)}


def base_of(file: Path, given: Any) -> tuple[Path, str]:
    """The folder that names are relative to, and what to say if images are not there either.

    A ``path`` from another machine is not believed, but a folder of that name beside the description is: it may have
    been moved together with it.
    """
    if not isinstance(given, str) or not given:
        return file.parent, ""
    beside = [file.parent / name for name in (PurePosixPath(given.replace("\\", "/")).name,) if name not in ("", "..")]
    places = dict.fromkeys([file.parent / given, Path(os.path.expanduser(given)), *beside])
    found = next((place for place in places if os.path.isdir(place)), None)
    tried = ", ".join(str(place)[:240] for place in places)
    told = f" Its 'path: {given[:120]}' is not there (tried {tried}); correct it."
    return (file.parent, told) if found is None else (found, "")


def located(file: Path, base: Path, value: Any, hint: str = "") -> Iterator[Path]:
    """Where the images of one key are; ``hint`` is added to what is said if they are not there."""
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str) or not name:
            raise DataError(f"{file}: names images as {name!r:.80}; expected a folder or a text file.")
        where = locate(name, (base, file.parent))
        if where is None:
            looked = " and ".join(dict.fromkeys((str(base), str(file.parent))))
            raise DataError(f"{file}: '{name[:120]}' is not there; looked for it from {looked}.{hint}")
        is_list = os.path.isfile(where) and (is_image(where) or where.suffix.lower() == ".txt")
        if not is_list and (not os.path.isdir(where) or where.resolve().parent == where.resolve()):
            raise DataError(f"{file}: '{name[:120]}' is neither a folder of images nor a .txt file with their names.")
        yield where


def test_beside(parts: Mapping[str, tuple[Path, ...]]) -> Path | None:
    """The test images that lie beside those of another split but that exporters forget to name."""
    for split, (first, *_) in parts.items():
        for name in spellings(split):
            if name in first.parts and first.is_dir():
                at = len(first.parts) - 1 - first.parts[::-1].index(name)
                place = Path(*first.parts[:at], "test", *first.parts[at + 1 :])
                if place.is_dir():
                    return place
    return None


def names_of(file: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names by index, from a list, from numbered keys, or numbers where only their count is given."""
    names, count = settings.get("names"), _count(settings.get("nc"))
    if isinstance(names, dict):
        names = _by_number(file, names)
    if not names and (lines := [file.parent / name for name in NAME_FILES if os.path.isfile(file.parent / name)]):
        names = list(class_lines(lines[0]))
    if not names and count:
        return tuple(map(str, range(count)))
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: 'names' is {names!r:.80}; expected the class names, in order.")
    if bad := [name for name in names if not isinstance(name, str) or not name]:
        raise DataError(f"{file}: 'names' holds {bad[0]!r:.80}; expected a text for every class.")
    if count is not None and count != len(names):
        raise DataError(f"{file}: nc is {count}, but 'names' holds {len(names)} names. Correct one of them.")
    return tuple(names)


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) <= 5 else None


def _by_number(file: Path, names: Mapping[str, Any]) -> list[Any]:
    try:
        numbered = {int(key): name for key, name in names.items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: the keys of 'names' must be class numbers, got {list(names)[:5]}.") from error
    if sorted(numbered) != list(range(len(names))):
        raise DataError(f"{file}: 'names' has the numbers {sorted(numbered)[:10]}; expected 0, 1, 2, ...")
    return [numbered[index] for index in range(len(numbered))]
