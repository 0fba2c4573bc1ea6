"""Commands of qskd: how a task's is written, how it is run, and how it would read elsewhere."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accuracy_states import Task

REPOSITORY = Path(__file__).resolve().parents[1]


def as_flags(flags: Mapping[str, Any]) -> list[str]:
    """Flags of a command, sorted by name."""
    words = {True: "true", False: "false", None: "none"}
    return [
        text
        for name, value in sorted(flags.items())
        for text in (f"--{name}", words[value] if value is None or isinstance(value, bool) else str(value))
    ]


def elsewhere(text: str, places: Iterable[tuple[Path, str]]) -> str:
    """A path below one of the places with the place's name; any other text as it is."""
    for folder, word in places:
        if text == str(folder) or text.startswith(f"{folder}/"):
            return word + text.removeprefix(str(folder))
    return text


def repository_file(name: str) -> Path:
    """A file or folder of the repository, or any other by its absolute path."""
    return REPOSITORY / name


def command_line(task: Task) -> list[str]:
    """What is run."""
    return [sys.executable, "-m", "qskd", *task.command]
