"""What a prediction leaves behind: rows of JSON written as they come, and counts."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qskd.evaluation.detections import Detections


class JsonRows:
    """A JSON list on disk, a row a line, complete or not there: until its end it has the ending ``.part``.

    Args:
        path: made with its folders; replaced if it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._separator = "["

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.write("[]\n" if self._separator == "[" else "\n]\n")
        self._file.close()
        if kind is None:
            self._part.replace(self.path)

    def add(self, row: Mapping[str, Any]) -> None:
        """One row more."""
        self._file.write(f"{self._separator}\n{json.dumps(row, allow_nan=False)}")
        self._separator = ","


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file at once, so that nobody reads half of it."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def as_rows(found: Detections, category_ids: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Detections as COCO results have them: a box is [left, top, width, height] in pixels, in full precision.

    Args:
        found: of one image.
        category_ids: of each class.
    """
    corners = found.boxes.astype(float)
    corners[:, 2:] -= corners[:, :2]
    for score, label, box in zip(found.scores.tolist(), found.labels.tolist(), corners.tolist(), strict=True):
        yield {"category_id": category_ids[label], "bbox": box, "score": score}


@dataclass
class Tally:
    """What was counted on the way."""

    class_names: tuple[str, ...]
    boxes: Counter[str] = field(default_factory=Counter)  # by class
    holding: Counter[str] = field(default_factory=Counter)  # images and frames with at least one, by class
    failures: dict[str, str] = field(default_factory=dict)  # name of a file: why it could not be read
    model_seconds: float = 0.0

    def add(self, found: Detections) -> None:
        """Count what was found on one image."""
        names = [self.class_names[label] for label in found.labels]
        self.boxes.update(names)
        self.holding.update(set(names))
