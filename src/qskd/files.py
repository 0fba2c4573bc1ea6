"""Files and folders that are there whole or not at all, whatever happens while they are written.

What is written goes to a hidden name beside its own (``.best.tmp``), to the disk, and then to its place by a rename.
A folder cannot be renamed over another, so that one steps aside first (``.best.old``); ``mend`` finishes or undoes what
a kill cut off in between.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file; it takes its place when the block ends well, and leaves nothing when it does not."""
    fresh = _fresh(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield fresh
        to_disk(fresh)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole_file(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Where to write a folder; it replaces what is at ``path`` when the block ends well."""
    fresh = _fresh(path)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        yield fresh
        put(fresh, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def put(fresh: Path, path: Path) -> None:
    """Move a finished folder to ``path``, in place of what is there."""
    to_disk(fresh)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.is_dir():
        path.rename(old)
    fresh.rename(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder so that it is never seen in part."""
    fresh = _fresh(path)
    shutil.rmtree(fresh, ignore_errors=True)
    path.rename(fresh)
    shutil.rmtree(fresh, ignore_errors=True)


def mend(folder: Path, patterns: Iterable[str]) -> None:
    """Finish or undo, for names that fit the patterns, what was cut off while it was written below ``folder``."""
    for pattern in patterns:
        for old in folder.glob(f".{pattern}.old"):
            path = folder / old.name.removeprefix(".").removesuffix(".old")
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(path)
        for fresh in folder.glob(f".{pattern}.tmp"):
            if fresh.is_dir():
                shutil.rmtree(fresh, ignore_errors=True)
            else:
                fresh.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Return when a file, or a folder with all that is in it, would survive a loss of power."""
    if path.is_dir():
        for place, _, names in os.walk(path):
            for name in names:
                _sync(Path(place, name))
            _sync(Path(place))
    else:
        _sync(path)


def _fresh(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), which no file of qskd has")
        return super().compose_node(parent, index)


def plain_yaml(text: str) -> Any:
    """The plain values of a YAML text.

    Raises:
        yaml.YAMLError: it is none, has aliases, or is nested without end.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
