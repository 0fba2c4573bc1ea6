"""What is told about one image of an inspection: its objects, a teacher's queries, and where they look."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qskd.selection.groups import Role

ROLE_NAMES = {Role.POSITIVE: "positive", Role.HARD_NEGATIVE: "hard negative", Role.EASY_NEGATIVE: "easy negative"}
"""In the order in which they are told."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The P pairs that LAPD makes of one student layer and the teacher layer it learns from."""

    student_layer: int  # from 0
    teacher_layer: int
    teacher_query: Array  # [P]
    student_query: Array  # [P]
    is_positive: Array  # [P] bool; the others are hard negatives
    owner: Array  # [P] object
    teacher_boxes: Array  # [P, 4] cxcywh, fractions of the image
    student_boxes: Array  # [P, 4]

    @property
    def counts(self) -> tuple[int, int]:
        """Pairs of positives, and of hard negatives."""
        positives = int(self.is_positive.sum())
        return positives, len(self.is_positive) - positives

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; layers count from 1."""
        return {
            "student_layer": self.student_layer + 1,
            "teacher_layer": self.teacher_layer + 1,
            "teacher_query": self.teacher_query.tolist(),
            "student_query": self.student_query.tolist(),
            "role": [ROLE_NAMES[Role.POSITIVE if one else Role.HARD_NEGATIVE] for one in self.is_positive],
            "object": self.owner.tolist(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One image. L layers, Q queries, N objects; boxes are cxcywh in fractions of the image."""

    name: str
    image: Image.Image
    class_names: Sequence[str]
    labels: Array  # [N] class index of the objects that the teacher knows
    objects: Array  # [N, 4] their boxes
    unknown: Array  # [M, 4] boxes of the others
    role: Array  # [L, Q]
    owner: Array  # [L, Q]
    giou: Array  # [L, Q] with the owner
    score: Array  # [L, Q] of the best class
    best: Array  # [L, Q] that class
    boxes: Array  # [L, Q, 4]
    attention: tuple[Array, ...]  # [L, h, w] a memory level: mass of the selected queries
    mask: tuple[Array, ...]  # [h, w] a memory level: AGFD's weights; empty where the method has none
    pairs: tuple[Pairs, ...]  # of each learning student layer; empty without a student

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.role)

    def count(self, layer: int, role: Role) -> int:
        """Queries of a role in a layer."""
        return int((self.role[layer] == role).sum())

    def hard_negatives(self, layer: int, number: int) -> list[int]:
        """The hard negatives of an object in a layer, greatest GIoU first."""
        found = np.flatnonzero((self.role[layer] == Role.HARD_NEGATIVE) & (self.owner[layer] == number))
        return [int(query) for query in found[np.argsort(-self.giou[layer, found], kind="stable")]]

    def positive(self, layer: int, number: int) -> int | None:
        """The query matched to an object in a layer."""
        found = np.flatnonzero((self.role[layer] == Role.POSITIVE) & (self.owner[layer] == number))
        return int(found[0]) if len(found) else None

    @property
    def most_sought(self) -> int | None:
        """The object with the most hard negatives in the last layer, the first of equals; None without objects."""
        counts = [len(self.hard_negatives(-1, number)) for number in range(len(self.objects))]
        return int(np.argmax(counts)) if counts else None

    def pairs_of(self, layer: int) -> Pairs | None:
        """Those of the last student layer that learns from a teacher layer."""
        return next((pairs for pairs in reversed(self.pairs) if pairs.teacher_layer == layer), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; layers count from 1, queries and objects from 0."""
        objects = [
            {"class": self.class_names[label], "box": _rounded(box)}
            for label, box in zip(self.labels, self.objects, strict=True)
        ]
        return {
            "name": self.name,
            "width": self.image.width,
            "height": self.image.height,
            "objects": objects,
            "objects_of_unknown_class": [_rounded(box) for box in self.unknown],
            "layers": [self._layer_as_dict(layer) for layer in range(self.num_layers)],
            "pairs": [pairs.as_dict() for pairs in self.pairs],
        }

    def _layer_as_dict(self, layer: int) -> dict[str, Any]:
        return {
            "layer": layer + 1,
            "counts": {role.name.lower(): self.count(layer, role) for role in ROLE_NAMES},
            "role": [Role(role).name.lower() for role in self.role[layer].tolist()],
            "object": self.owner[layer].tolist(),
            "giou": _rounded(self.giou[layer]),
            "score": _rounded(self.score[layer]),
            "class": [self.class_names[best] for best in self.best[layer].tolist()],
            "box": [_rounded(box) for box in self.boxes[layer]],
        }


def _rounded(values: Array) -> list[float | None]:
    """To four places; None for what is no number."""
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]
