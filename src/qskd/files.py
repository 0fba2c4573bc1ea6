"""Files and folders that are there whole or not at all, whatever happens while they are written.

What is written goes to a hidden name beside its own (``.best.<random>.tmp``), to the disk, and then to its place by a
rename. Nobody who made the folder can have put a link under that name, and two processes do not write to one. A folder
cannot be renamed over another, so that one steps aside first (``.best.old``); ``mend`` finishes or undoes what a kill
cut off in between. Links are moved and removed themselves, never what they lead to.
"""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from qskd.errors import ConfigError


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


def make_folder(path: Path, flag: str) -> None:
    """Make the folder that results go to, before there are any.

    Args:
        path: with its parents; it may be there.
        flag: what named it.

    Raises:
        ConfigError: it cannot be made, or nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be made ({error.strerror}). Give another folder.") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {path}: nothing can be written there. Give another folder.")


def place_for_file(path: Path, flag: str) -> None:
    """Make the folder of a file that is written at the end, and see now that it can be.

    Raises:
        ConfigError: ``path`` is a folder, or its own folder cannot be made or written to.
    """
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder. Give the name of a file.")
    make_folder(path.parent, f"The folder of {flag}")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Where to write a folder; it replaces what is at ``path`` when the block ends well."""
    fresh = _fresh(path)
    try:
        yield fresh
        put(fresh, path)
    except BaseException:
        _away(fresh)
        raise


def put(fresh: Path, path: Path) -> None:
    """Move a finished folder to ``path``, in place of what is there."""
    to_disk(fresh)
    old = path.with_name(f".{path.name}.old")
    _away(old)
    if path.is_dir() or path.is_symlink():
        path.rename(old)
    fresh.rename(path)
    _sync(path.parent)
    _away(old)


def remove(path: Path) -> None:
    """Remove a folder so that it is never seen in part."""
    fresh = _fresh(path)
    path.rename(fresh)
    _away(fresh)


def mend(folder: Path, patterns: Iterable[str]) -> None:
    """Finish or undo, for names that fit the patterns, what was cut off while it was written below ``folder``."""
    for pattern in patterns:
        for old in folder.glob(f".{pattern}.old"):
            path = folder / old.name.removeprefix(".").removesuffix(".old")
            if os.path.lexists(path):
                _away(old)
            else:
                old.rename(path)
        for fresh in (*folder.glob(f".{pattern}.tmp"), *folder.glob(f".{pattern}.*.tmp")):
            _away(fresh)


def to_disk(path: Path) -> None:
    """Return when a file, or a folder with all that is in it, would survive a loss of power."""
    if path.is_dir():
        for place, _, names in os.walk(path):
            for name in names:
                _sync(Path(place, name))
            _sync(Path(place))
    else:
        _sync(path)


def is_temporary(name: str, of: str) -> bool:
    """Whether a file's name is one that ``of`` has while it is written."""
    return name.startswith(f".{of}.") and name.endswith(".tmp")


def _fresh(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _away(path: Path) -> None:
    """Remove a folder, a file or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
