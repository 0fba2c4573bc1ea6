"""The teacher's half of a step, outside of all that is trained: batches in, lessons out.

It runs without gradient on every micro-batch of an optimiser step before any of them is learnt from, so that all
normalisers are known.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from qskd.data.batch import Batch, Targets
from qskd.labels import LabelMap
from qskd.losses.term import Lesson, Prepared, StudentAnswer, Term
from qskd.models.adapter import DetrAdapter, Need
from qskd.models.host import constant
from qskd.models.relabel import known_targets, to_student_classes
from qskd.models.view import DetrView
from qskd.selection.confident import confident, drawn
from qskd.selection.groups import GroupQuerySelection, QueryGroups, matched_object


@dataclass(frozen=True, slots=True)
class Teaching:
    """The teacher's side of one micro-batch."""

    lesson: Lesson
    columns: Tensor | None  # [B, N'] which object each lesson object is; None: the batch's own objects
    prepared: Mapping[str, Prepared]
    student_content: Tensor | None = None  # [B, 2] see ``StudentAnswer.content``

    def answer_of(self, view: DetrView, match: Tensor) -> StudentAnswer:
        """A student's side of the same micro-batch; ``match`` [L, B, N] is with all objects of the batch."""
        if self.columns is None:
            return StudentAnswer(view, match, content=self.student_content)
        taken = matched_object(match, view.num_queries) >= 0
        match = match.gather(2, self.columns.expand(match.shape[0], -1, -1))  # [L, B, N']
        match = match.masked_fill(~self.lesson.targets.is_object, -1)
        return StudentAnswer(view, match, taken, self.student_content)


@dataclass(frozen=True, slots=True)
class Asked:
    """The objects of a micro-batch that its teacher knows the classes of."""

    targets: Targets  # N' objects
    columns: Tensor | None  # see ``Teaching.columns``
    known: Tensor  # [K] bool, of the student's classes
    others: Tensor | None  # [B] objects that are left out; None: there are none

    @classmethod
    def of(cls, batch: Batch, label_map: LabelMap) -> "Asked":
        """What a teacher with this vocabulary is asked about."""
        known = constant(label_map.known, batch.pixels.device, torch.bool)
        targets, columns = known_targets(batch.targets, known, all(label_map.known))
        others = None if columns is None else batch.targets.is_object.sum(1) - targets.is_object.sum(1)
        return cls(targets, columns, known, others)

    def answered(
        self, view: DetrView, groups: QueryGroups, content: Tensor | None = None, student_content: Tensor | None = None
    ) -> Teaching:
        """With the teacher's answer; nothing is prepared.

        Args:
            view: what the teacher found, in the student's classes.
            groups: its queries around these objects.
            content: [B, 2] of its images where they are not the student's; None where both see the same.
            student_content: likewise, of the student's.
        """
        lesson = Lesson(view, groups, self.targets, self.known, self.others, content)
        return Teaching(lesson, self.columns, {}, student_content)


def prepared(read: Teaching, terms: Mapping[str, Term]) -> Teaching:
    """With what the terms need, and free of the tensors captured for attention."""
    made = {name: term.prepare(read.lesson) for name, term in terms.items()}
    return replace(read, lesson=replace(read.lesson, view=read.lesson.view.without_attention()), prepared=made)


@dataclass(frozen=True, slots=True)
class Unlabeled:
    """A micro-batch of images without annotations, in which the teacher's detections stand in for objects."""

    batch: Batch  # its targets are all confident detections: what distillation looks at
    detected: Batch | None  # the same images for the student's detection loss; None leaves that loss out
    teaching: Teaching


class Teacher(Protocol):
    """Whatever turns batches into lessons."""

    def to(self, device: torch.device) -> None:
        """Give lessons on this device from now on."""

    def teach(self, batch: Batch) -> Teaching:
        """The teacher's side of one micro-batch."""

    def label(self, batch: Batch, threshold: float, *, sample: torch.Generator | None) -> Unlabeled:
        """The same for images without annotations, see ``TeacherSide.label``."""


class TeacherSide:
    """A frozen teacher that turns batches into lessons. Not a module: nothing of it is trained or saved.

    Args:
        adapter: the teacher, in eval mode and frozen.
        label_map: from the student's classes to the teacher's.
        selection: Group Query Selection, run on the teacher's queries.
        terms: the distillation terms by name; only their ``prepare`` is used here.
        precision: what the model computes in: "float32" and "bfloat16" whatever autocast surrounds it; None goes with
            what surrounds it.
    """

    def __init__(
        self,
        adapter: DetrAdapter,
        label_map: LabelMap,
        selection: GroupQuerySelection,
        terms: Mapping[str, Term],
        precision: Literal["float32", "bfloat16"] | None = None,
    ) -> None:
        self.adapter = adapter
        self.label_map = label_map
        self.selection = selection
        self.terms = terms
        self.precision = precision
        self._needs_attention = any(Need.ATTENTION in term.needs for term in terms.values())

    def to(self, device: torch.device) -> None:
        """Move the teacher."""
        self.adapter.model.to(device)

    @torch.no_grad()
    def teach(self, batch: Batch) -> Teaching:
        """The teacher's view, groups and every term's preparation for one micro-batch."""
        return prepared(self.read(batch, capture_attention=self._needs_attention), self.terms)

    @torch.no_grad()
    def label(self, batch: Batch, threshold: float, *, sample: torch.Generator | None) -> Unlabeled:
        """The same for images without annotations: the teacher's confident detections stand in for the objects.

        Args:
            batch: its targets are not looked at.
            threshold: of scores, in (0, 1); less sure detections are no objects.
            sample: draws (on the CPU) which detections take part in the student's detection loss, each with a
                probability that is its score: the expected loss is that of a label as soft as the teacher is sure. None
                leaves that loss out.
        """
        view = self._view(batch, capture_attention=self._needs_attention)
        targets, scores = confident(view, threshold)
        labelled = replace(batch, targets=targets)
        detected = replace(batch, targets=drawn(targets, scores, sample)) if sample is not None else None
        return Unlabeled(labelled, detected, prepared(self._read(view, labelled), self.terms))

    @torch.no_grad()
    def read(self, batch: Batch, *, capture_attention: bool) -> Teaching:
        """The teacher's view, with its attention if asked for, and its groups; nothing is prepared."""
        return self._read(self._view(batch, capture_attention=capture_attention), batch)

    def _view(self, batch: Batch, *, capture_attention: bool) -> DetrView:
        with self._computing(batch.pixels.device.type):
            reading = self.adapter.read(batch.for_teacher(), capture_attention=capture_attention)
        return to_student_classes(reading.view, self.label_map)

    def _computing(self, device: str) -> AbstractContextManager[object]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def _read(self, view: DetrView, batch: Batch) -> Teaching:
        asked = Asked.of(batch, self.label_map)
        groups = self.selection(view, asked.targets, self.adapter.match_costs)
        own = batch.teacher_images
        return asked.answered(view, groups) if own is None else asked.answered(view, groups, own.content, batch.content)
