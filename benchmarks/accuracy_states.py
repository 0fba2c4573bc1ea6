"""A task of the grid with its lock and notes, and how far it is: what was asked of it against what would be now."""

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accuracy_preparing import NOTES, weights_print

State = Literal["done", "changed", "begun", "failed", "open"]


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is made once, by a qskd command or by a function."""

    name: str
    product: Path  # there when the task is done, written last
    needs: tuple[str, ...] = ()  # names of tasks that come first
    command: tuple[str, ...] = ()  # arguments of `python -m qskd`
    make: Callable[[], None] | None = None  # instead of a command
    facts: Mapping[str, Any] = field(default_factory=dict)  # kept beside the run
    teacher: Path | None = None  # whose weights or answers went into it

    @property
    def folder(self) -> Path:
        """The run folder of a command."""
        return self.product.parent

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.product.exists()


def state_of(task: Task) -> State:
    """How far a task is; "changed" is done, begun or failed with other settings, method, data or teacher than now."""
    notes = notes_of(task.folder)
    if _is_changed(task, notes):
        return "changed"
    if task.done:
        return "done"
    if notes.get("failed"):
        return "failed"
    return "begun" if notes else "open"


def _is_changed(task: Task, notes: Mapping[str, Any]) -> bool:
    if not notes:
        return False  # nothing is known of it
    wanted = {name: task.facts[name] for name in ("settings", "options") if task.facts.get(name)}
    teacher = teacher_print(task)
    if teacher is not None and "teacher" in notes:
        wanted["teacher"] = teacher
    return any(notes.get(name) != value for name, value in wanted.items())


def notes_of(folder: Path) -> dict[str, Any]:
    """What was written beside a run; empty where nothing was."""
    try:
        found: dict[str, Any] = json.loads((folder / NOTES).read_text())
    except (OSError, ValueError):
        return {}
    return found


def teacher_print(task: Task) -> str | None:
    """What tells a task's teacher from others; None without a teacher, or while there is none."""
    return None if task.teacher is None else weights_print(task.teacher)


def write_notes(task: Task, notes: Mapping[str, Any]) -> None:
    """Write beside a run what is known of it, at once as a whole."""
    fresh = task.folder / f".{NOTES}"
    fresh.write_text(json.dumps(notes, indent=2) + "\n")
    fresh.replace(task.folder / NOTES)


def take_lock(folder: Path) -> int | None:
    """An open file beside a folder, locked for as long as any process has it open; None where another one has it."""
    path = folder.with_name(f".{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
