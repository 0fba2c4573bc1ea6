"""Which of a teacher's classes is which of the student's: matched by name, never by index."""

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qskd.errors import LabelMapError

_SEPARATORS = re.compile(r"[\s_\-]+")
_UNUSED = frozenset({"", "n/a"})  # rows of a head that stand for no class, as in 91-way COCO heads
_SHOWN = 30  # rows of a table in an error


def normalise(name: str) -> str:
    """A class name without case, outer blanks and the choice between blank, underscore and hyphen."""
    return _SEPARATORS.sub(" ", name.strip()).strip().casefold()


@dataclass(frozen=True, slots=True)
class LabelMap:
    """For every student class, the teacher's row that means the same."""

    student_names: tuple[str, ...]  # by the student's class index
    teacher_index: tuple[int, ...]  # the teacher's index of each student class; -1 where it has none
    teacher_names: tuple[str | None, ...]  # the teacher's spelling of each student class; None where it has none
    unmatched_teacher: tuple[str, ...]  # the teacher's other classes, by their index

    @classmethod
    def between(cls, teacher_names: Mapping[int, str], student_names: Sequence[str]) -> "LabelMap":
        """Match two vocabularies by name; exact spelling first, then as ``normalise`` sees it.

        Args:
            teacher_names: class names by index, for example a model's ``id2label``. "N/A" rows are left out.
            student_names: class names in the order of the student's indices.

        Raises:
            LabelMapError: no name in common, or two classes that could be meant by one name.
        """
        index = match_names(teacher_names, student_names)
        if all(found < 0 for found in index):
            raise LabelMapError(_no_overlap(teacher_names, student_names))
        matched = set(index)
        return cls(
            student_names=tuple(student_names),
            teacher_index=index,
            teacher_names=tuple(teacher_names[found] if found >= 0 else None for found in index),
            unmatched_teacher=tuple(name for key, name in sorted(_used(teacher_names).items()) if key not in matched),
        )

    @classmethod
    def of_model(cls, names: Mapping[int, str]) -> "LabelMap":
        """A model's own classes in the order of its indices, without the rows that stand for none ("N/A").

        Args:
            names: class names by index, a model's ``id2label``. Two of them may be the same.
        """
        used = dict(sorted(_used(names).items()))
        return cls(tuple(used.values()), tuple(used), tuple(used.values()), ())

    @property
    def known(self) -> tuple[bool, ...]:
        """Of every student class: whether the teacher has it."""
        return tuple(index >= 0 for index in self.teacher_index)

    def as_table(self) -> str:
        """Student and teacher classes side by side, one line each, and what was left over."""
        rows = [
            (str(index), name, str(found) if found >= 0 else "-", spelling or "(unknown to the teacher)")
            for index, (name, found, spelling) in enumerate(
                zip(self.student_names, self.teacher_index, self.teacher_names, strict=True)
            )
        ]
        table = _table(("", "student", "", "teacher"), rows)
        if not self.unmatched_teacher:
            return table
        return f"{table}\nThe student does not have: {', '.join(self.unmatched_teacher)}."

    def as_dict(self) -> dict[str, Any]:
        """The map as plain JSON values, for ``label_map.json``."""
        return {
            "classes": [
                {"student_index": index, "student": name, "teacher_index": found, "teacher": spelling}
                for index, (name, found, spelling) in enumerate(
                    zip(self.student_names, self.teacher_index, self.teacher_names, strict=True)
                )
            ],
            "unmatched_teacher": list(self.unmatched_teacher),
        }


def match_names(names: Mapping[int, str], wanted: Sequence[str]) -> tuple[int, ...]:
    """The index of each wanted name among ``names``; -1 where there is none.

    Raises:
        LabelMapError: several names could be meant by one, or one by several.
    """
    exact: dict[str, list[int]] = defaultdict(list)
    loose: dict[str, list[int]] = defaultdict(list)
    for index, name in _used(names).items():
        exact[name].append(index)
        loose[normalise(name)].append(index)
    found = []
    for name in wanted:
        candidates = exact.get(name) or loose.get(normalise(name), [])
        if len(candidates) > 1:
            spelled = ", ".join(f"{index}: '{names[index]}'" for index in candidates)
            raise LabelMapError(f"The class '{name}' could be any of {spelled}. Rename all but one of them.")
        found.append(candidates[0] if candidates else -1)
    _check_distinct(found, wanted)
    return tuple(found)


def _check_distinct(found: Sequence[int], wanted: Sequence[str]) -> None:
    seen: dict[int, str] = {}
    for index, name in zip(found, wanted, strict=True):
        if index >= 0 and index in seen:
            raise LabelMapError(
                f"The classes '{seen[index]}' and '{name}' are the same name to qskd, which ignores "
                "case, blanks, underscores and hyphens. Merge or rename one of them."
            )
        seen[index] = name


def _used(names: Mapping[int, str]) -> dict[int, str]:
    return {int(index): name for index, name in names.items() if normalise(name) not in _UNUSED}


def _no_overlap(teacher_names: Mapping[int, str], student_names: Sequence[str]) -> str:
    teacher = list(_used(teacher_names).values())
    closest = {name: difflib.get_close_matches(name, teacher, n=1) for name in student_names}
    length = min(max(len(teacher), len(student_names)), _SHOWN)
    rows = [
        (_at(student_names, row), _at(teacher, row), _first(closest.get(_at(student_names, row), [])))
        for row in range(length)
    ]
    more = max(len(teacher), len(student_names)) - length
    table = _table(("student", "teacher", "closest"), rows) + (f"\n... and {more} more lines" if more else "")
    advice = (
        "Class names are compared without case, blanks, underscores and hyphens. Rename the categories of "
        "your annotations, or the names under id2label in the teacher's config.json, so that those that mean "
        "the same agree; or take a teacher that knows your classes."
    )
    return f"Teacher and student have no class name in common.\n{table}\n{advice}"


def _at(names: Sequence[str], row: int) -> str:
    return names[row] if row < len(names) else ""


def _first(names: Sequence[str]) -> str:
    return names[0] if names else ""


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)
