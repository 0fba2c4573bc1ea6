"""What a distillation term is: something that compares a student's view with a teacher's lesson.

A step runs in three moves, so that every normaliser is known before the first gradient:

1. ``prepare`` (no gradient, teacher only) turns the teacher's view into what the term will need, and says how
   much of it there is (``amount``, the micro-batch's contribution to the normalisers).
2. The trainer sums the amounts over the micro-batches of an optimiser step and over processes.
3. ``forward`` returns unweighted parts, each scaled so that summing over micro-batches gives the step's loss.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from qskd.data.batch import Targets
from qskd.models.adapter import Need
from qskd.models.view import DetrView
from qskd.selection.groups import QueryGroups


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the teacher has to say about one micro-batch, in the student's class space."""

    view: DetrView  # classes re-indexed to the student's vocabulary
    groups: QueryGroups  # of the teacher's queries
    targets: Targets  # objects whose class the teacher knows
    known_classes: Tensor  # [C] bool, False for classes the teacher has never seen
    others: Tensor | None = None  # [B] long, objects of other classes in each image; None where there are none
    content: Tensor | None = None  # [B, 2] (height, width) of each image without padding, pixels; None: see below


@dataclass(frozen=True, slots=True)
class Prepared:
    """A term's teacher-side work on one micro-batch."""

    tensors: dict[str, Tensor]  # whatever the term's forward needs, no gradient
    amount: Tensor  # [A] float32, this micro-batch's contribution to the term's normalisers


@dataclass(frozen=True, slots=True)
class StudentAnswer:
    """The student's side of one micro-batch."""

    view: DetrView
    match: Tensor  # [L, B, N] long, query matched to each of ``lesson.targets``; -1 where there is none
    taken: Tensor | None = None  # [L, B, Q] bool, matched to any object; None: to those of ``match`` and no others
    content: Tensor | None = None  # [B, 2] as the lesson's; both are None where both models see the same canvas


class Term(Protocol):
    """One distillation loss; an ``nn.Module`` when it has projections."""

    needs: ClassVar[frozenset[Need]]

    def prepare(self, lesson: Lesson) -> Prepared:
        """Teacher-side work; called under ``torch.no_grad``, outside the wrapped module."""

    def __call__(self, student: StudentAnswer, lesson: Lesson, prepared: Prepared, total: Tensor) -> dict[str, Tensor]:
        """Unweighted scalar parts by name.

        Args:
            student: the student's view and matching.
            lesson: the teacher's view and groups (its attention already consumed by ``prepare``).
            prepared: what ``prepare`` returned for this micro-batch.
            total: [A] ``amount`` summed over micro-batches and processes, divided by the number of processes.
        """
