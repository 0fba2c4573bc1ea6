"""The student's half of a step: the student with everything that is trained beside it, and what losses are divided by.

``Distiller`` is the one module that is wrapped, optimised and checkpointed. The teacher's half is in ``teacher.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from qskd.data.batch import Batch, Targets
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.losses.term import Prepared, Term
from qskd.models.adapter import DetrAdapter, Reading
from qskd.selection.assignment import match_to_targets
from qskd.teacher import Teaching, Unlabeled


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What the losses of one optimiser step are divided by.

    Sums over the step's micro-batches and over processes, divided by the number of processes: data-parallel
    wrappers average gradients, so every process divides by its share.
    """

    num_boxes: float  # objects, at least 1
    num_images: float
    num_pairs: float  # objects that find a query: of an image with more objects than queries, as many as queries
    terms: Mapping[str, Tensor]  # each term's ``amount`` [A]
    is_last: bool = False  # whether any process was told to end before the step; it rides along in the reduction

    @classmethod
    def of(
        cls,
        batches: Sequence[Batch],
        prepared: Sequence[Mapping[str, Prepared]],
        *,
        num_queries: int,
        accelerator: Accelerator | None = None,
        is_last: bool = False,
    ) -> "StepTotals":
        """Totals of a step's micro-batches; one reduction over processes where there are several.

        Args:
            batches: the micro-batches.
            prepared: what the terms prepared for each of them; empty without a teacher.
            num_queries: Q of the student.
            accelerator: knows the other processes.
            is_last: whether this process was told to end.
        """
        counts = [count for batch in batches for count in batch.targets.counts]
        boxes, images = float(sum(counts)), float(len(counts))
        pairs = float(sum(min(count, num_queries) for count in counts))
        names = list(prepared[0]) if prepared else []
        amounts = [torch.stack([made[name].amount for made in prepared]).sum(0) for name in names]
        world = accelerator.num_processes if accelerator is not None else 1
        if accelerator is not None and world > 1:
            flat = torch.cat([torch.tensor([boxes, images, pairs, is_last], device=accelerator.device), *amounts])
            flat = accelerator.reduce(flat, reduction="sum")
            boxes, images, pairs, told = flat[:4].tolist()
            is_last = told > 0
            ends = torch.tensor([len(amount) for amount in amounts]).cumsum(0).tolist()
            amounts = list((flat[4:] / world).tensor_split(ends[:-1])) if amounts else []
        terms = dict(zip(names, amounts, strict=True))
        return cls(max(boxes, 1.0) / world, images / world, pairs / world, terms, is_last)


class Distiller(nn.Module):
    """Student, trainable projections and weighted terms in one forward, so that a wrapper sees all of it.

    Args:
        student: the student's adapter; its model becomes ``self.student``.
        criterion: the detection loss, or None for families that compute their own.
        terms: distillation terms by name; modules among them are trained and checkpointed with the student.
        weights: weight of each term.
        detection_weight: weight of the student's own detection loss.
    """

    def __init__(
        self,
        student: DetrAdapter,
        criterion: SetPredictionLoss | None,
        terms: Mapping[str, Term] | None = None,
        weights: Mapping[str, float] | None = None,
        detection_weight: float = 1.0,
    ) -> None:
        super().__init__()
        terms = terms or {}
        self.student = student.model
        self.adapter = student
        self.criterion = criterion
        self.terms = terms
        self.projections = nn.ModuleDict({name: term for name, term in terms.items() if isinstance(term, nn.Module)})
        self.weights = dict(weights or {})
        self.detection_weight = detection_weight

    def forward(
        self,
        batch: Batch,
        totals: StepTotals,
        teaching: Teaching | None = None,
        warmup: float = 1.0,
        unlabeled: Unlabeled | None = None,
    ) -> dict[str, Tensor]:
        """Weighted loss parts of one micro-batch, and their sum under ``loss``.

        Args:
            batch: images and objects.
            totals: the normalisers of the whole optimiser step.
            teaching: the teacher's side; None trains the student plainly.
            warmup: factor in [0, 1] on all distillation terms.
            unlabeled: images without annotations to learn from in the same step; their parts are added.

        Returns:
            Scalars by name; summed over a step's micro-batches (and averaged over processes) they give the step's
            loss. All but ``loss`` are detached.
        """
        reading = self.adapter.read(batch, with_loss=True)
        match = self._match(reading, batch.targets, needed=teaching is not None)
        loss, parts = self._detection(reading, batch, match, totals)
        if teaching is not None and match is not None:
            distilled = self._distillation(reading, match, teaching, totals, warmup)
            loss = loss + _sum(distilled)
            parts |= distilled
        if unlabeled is not None:
            more, extra = self._unlabeled(unlabeled, totals, warmup)
            loss = loss + more
            parts = extra | {name: part + extra[name] if name in extra else part for name, part in parts.items()}
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def _unlabeled(self, given: Unlabeled, totals: StepTotals, warmup: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and parts of images whose objects are the teacher's detections."""
        reading = self.adapter.read(given.detected or given.batch, with_loss=given.detected is not None)
        match = match_to_targets(reading.view, given.batch.targets, self.adapter.match_costs)
        parts = self._distillation(reading, match, given.teaching, totals, warmup)
        loss = _sum(parts)
        if given.detected is not None:
            found = self._match(reading, given.detected.targets, needed=False)
            more, extra = self._detection(reading, given.detected, found, totals)
            loss, parts = loss + more, parts | extra
        return loss, parts

    def totals(
        self,
        batches: Sequence[Batch],
        teachings: Sequence[Teaching | None],
        accelerator: Accelerator | None = None,
        is_last: bool = False,
    ) -> StepTotals:
        """The normalisers of an optimiser step with these micro-batches; see ``StepTotals.of``."""
        prepared = [teaching.prepared for teaching in teachings if teaching is not None]
        queries = self.adapter.num_queries
        return StepTotals.of(batches, prepared, num_queries=queries, accelerator=accelerator, is_last=is_last)

    def one_term(self, batch: Batch, totals: StepTotals, teaching: Teaching, name: str) -> Tensor:
        """The weighted loss of one distillation term alone, with its graph."""
        reading = self.adapter.read(batch)
        match = match_to_targets(reading.view, batch.targets, self.adapter.match_costs)
        return _sum(self._term(name, reading, match, teaching, totals))

    def _match(self, reading: Reading, targets: Targets, needed: bool) -> Tensor | None:
        if self.criterion is None and not (needed and self.terms):
            return None
        return match_to_targets(reading.view, targets, self.adapter.match_costs)

    def _detection(
        self, reading: Reading, batch: Batch, match: Tensor | None, totals: StepTotals
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.criterion is not None:
            assert match is not None
            parts = self.criterion(
                reading.view,
                batch.targets,
                match,
                totals.num_boxes,
                reading.proposals,
                step=(totals.num_images, totals.num_pairs),
            )
            total, scale = _sum(parts), self.detection_weight
        else:
            assert reading.own_loss is not None
            # The family divided by this micro-batch's objects; the step's count belongs there.
            scale = self.detection_weight * max(batch.targets.total, 1) / totals.num_boxes
            total, parts = reading.own_loss.total, reading.own_loss.parts
        return total * scale, {name: part * scale for name, part in parts.items()}

    def _distillation(
        self, reading: Reading, match: Tensor, teaching: Teaching, totals: StepTotals, warmup: float
    ) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        for name in self.terms:
            parts |= {part: loss * warmup for part, loss in self._term(name, reading, match, teaching, totals).items()}
        return parts

    def _term(
        self, name: str, reading: Reading, match: Tensor, teaching: Teaching, totals: StepTotals
    ) -> dict[str, Tensor]:
        answer = teaching.answer_of(reading.view, match)
        losses = self.terms[name](answer, teaching.lesson, teaching.prepared[name], totals.terms[name])
        return {part: loss * self.weights[name] for part, loss in losses.items()}


def _sum(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum() if parts else torch.zeros(())
