"""The detections of one model on one split, in a file: what it answered, to be looked at again without asking it.

Letters: I images, K detections of all images, best first within each.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qskd.errors import DataError
from qskd.evaluation.coco_map import EvaluatorState
from qskd.evaluation.detections import Array, Detections

_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class KeptDetections:
    """At most 100 detections of each image, as they were scored."""

    state: EvaluatorState
    class_names: tuple[str, ...]  # what the class indices mean
    images: str  # digest of the split's image ids and file names

    def save(self, path: Path) -> None:
        """Write a compressed .npz: about 1.2 kB an image with 100 detections."""
        rows = self.state.rows
        head = {"version": _VERSION, "class_names": self.class_names, "images": self.images}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:  # under a mere name, numpy would add .npz to it
            np.savez_compressed(
                file,
                head=np.array(json.dumps(head)),
                image_ids=self.state.image_ids,
                counts=self.state.counts.astype(np.uint16),
                scores=rows[:, 0],
                labels=rows[:, 1].astype(np.uint16),
                boxes=rows[:, 2:],
            )

    @classmethod
    def load(cls, path: Path) -> "KeptDetections":
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is damaged, of another version, or no such file at all.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                head = json.loads(str(file["head"]))
                columns = {name: file[name] for name in ("image_ids", "counts", "scores", "labels", "boxes")}
            is_sound = head["version"] == _VERSION and _is_sound(head, **columns)
            rows = [columns["scores"][:, None], columns["labels"][:, None], columns["boxes"]]
            state = EvaluatorState(
                columns["image_ids"].astype(np.int64),
                columns["counts"].astype(np.int64),
                np.concatenate(rows, axis=1, dtype=np.float32),
            )
        except Exception as error:  # numpy and its archives raise whatever the bytes make them
            raise DataError(f"{path} cannot be read ({str(error)[:200]}): the file is damaged.") from error
        if not is_sound:
            raise DataError(f"{path} was written by another version of qskd, or is damaged.")
        return cls(state, tuple(head["class_names"]), head["images"])

    def by_image(self, class_names: Sequence[str]) -> dict[int, Detections]:
        """Detections by image id, their labels as positions in ``class_names``; other classes are left out."""
        position = {name: at for at, name in enumerate(class_names)}
        new_label = np.array([position.get(name, -1) for name in self.class_names], dtype=np.int64)
        found = {}
        parts = np.split(self.state.rows, np.cumsum(self.state.counts)[:-1]) if len(self.state.counts) else []
        for image_id, rows in zip(self.state.image_ids.tolist(), parts, strict=True):
            labels = new_label[rows[:, 1].astype(np.int64)]
            rows, labels = rows[labels >= 0], labels[labels >= 0]
            found[image_id] = Detections(rows[:, 0], labels, rows[:, 2:])
        return found


def _is_sound(
    head: dict[str, Any], image_ids: Array, counts: Array, scores: Array, labels: Array, boxes: Array
) -> bool:
    """Whether what a file holds fits together: as many rows as the images count, of classes that have a name."""
    names, found = head["class_names"], len(scores)
    return (
        isinstance(head["images"], str)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and all(column.dtype.kind in "iu" for column in (image_ids, counts, labels))
        and all(column.dtype.kind == "f" and np.isfinite(column).all() for column in (scores, boxes))
        and image_ids.shape == counts.shape == (len(np.unique(image_ids)),)
        and scores.shape == labels.shape == (found,)
        and boxes.shape == (found, 4)
        and sum(counts.tolist()) == found
        and min(counts.tolist(), default=0) >= 0
        and (found == 0 or (labels.min() >= 0 and labels.max() < len(names)))
    )


def images_digest(ids: Array | Sequence[int], file_names: Sequence[str]) -> str:
    """SHA-256 over image ids and file names, in whatever order they are given."""
    lines = sorted(f"{int(id_)} {name}" for id_, name in zip(ids, file_names, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def as_evaluated(truth: dict[str, Any], class_names: Sequence[str], state: EvaluatorState) -> KeptDetections:
    """What an evaluator collected on a split whose ground truth is given in COCO's form."""
    ids = [image["id"] for image in truth["images"]]
    names = [image["file_name"] for image in truth["images"]]
    return KeptDetections(state, tuple(class_names), images_digest(ids, names))
