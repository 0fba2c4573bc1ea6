"""One image of an inspection, read by the code that distils."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qskd.data.batch import Batch
from qskd.losses.attention_guided_feature import AttentionGuidedFeature, query_weights
from qskd.losses.local_alignment_prediction import LocalAlignmentPrediction
from qskd.models.adapter import DetrAdapter
from qskd.models.view import DetrView
from qskd.reporting.query_scene import Array, Pairs, Scene
from qskd.runs.inspected_images import InspectedImages
from qskd.selection.assignment import match_to_targets
from qskd.teacher import TeacherSide, Teaching


@dataclass(frozen=True, slots=True)
class Apprentice:
    """A student, in eval mode on its device, and the term that pairs its queries with the teacher's."""

    adapter: DetrAdapter
    lapd: LocalAlignmentPrediction

    @torch.no_grad()
    def pairs(self, batch: Batch, teaching: Teaching) -> tuple[Pairs, ...]:
        """The pairs of each learning layer, on a batch of one image."""
        view = self.adapter.read(batch).view
        answer = teaching.answer_of(view, match_to_targets(view, batch.targets, self.adapter.match_costs))
        prepared = self.lapd.prepare(teaching.lesson)
        theirs, ours = prepared.tensors["query"][:, 0], self.lapd.partners(answer, teaching.lesson, prepared)[:, 0]
        owner, objects = prepared.tensors["owner"][:, 0], answer.match.shape[-1]
        chosen = self.lapd.teacher_layers(teaching.lesson.view.num_layers)
        first = view.num_layers - len(chosen)
        return tuple(
            _pairs_of(
                place + first, layer, theirs[place], ours[place], owner[place], objects, teaching.lesson.view, view
            )
            for place, layer in enumerate(chosen)
        )


@dataclass(frozen=True, slots=True)
class SceneReader:
    """Makes scenes of images.

    Args:
        side: the teacher and its selection.
        images: where they come from.
        agfd: whose mask to show; None for none.
        apprentice: whose pairs to show; None for none.
    """

    side: TeacherSide
    images: InspectedImages
    agfd: AttentionGuidedFeature | None
    apprentice: Apprentice | None

    @torch.no_grad()
    def read(self, position: int) -> Scene:
        """The scene of the image at this position."""
        device = next(self.side.adapter.model.parameters()).device
        batch = self.images.batch([position]).to(device)
        teaching = self.side.read(batch, capture_attention=True)
        view, groups, targets = teaching.lesson.view, teaching.lesson.groups, teaching.lesson.targets
        score, best = view.scores()[:, 0].max(-1)
        mass = view.attention_mass(query_weights(groups))[:, 0]  # [L, S]
        known = torch.zeros_like(batch.targets.is_object)
        if teaching.columns is None:
            known = batch.targets.is_object
        else:
            known.scatter_(1, teaching.columns, targets.is_object)
        return Scene(
            name=self.images.name(position),
            image=self.images.picture(position),
            class_names=self.images.class_names,
            labels=_plain(targets.labels[0]),
            objects=_plain(targets.boxes[0]),
            unknown=_plain(batch.targets.boxes[0][~known[0]]),
            role=_plain(groups.role[:, 0]),
            owner=_plain(groups.owner[:, 0]),
            giou=_plain(groups.giou[:, 0]),
            score=_plain(score),
            best=_plain(best),
            boxes=_plain(view.boxes[:, 0]),
            attention=tuple(_levels(mass, view)),
            mask=tuple(_levels(self.agfd.token_weights(teaching.lesson)[0], view)) if self.agfd else (),
            pairs=self.apprentice.pairs(batch, teaching) if self.apprentice and targets.total else (),
        )


def _pairs_of(
    student_layer: int,
    teacher_layer: int,
    theirs: Tensor,
    ours: Tensor,
    owner: Tensor,
    objects: int,
    teacher: DetrView,
    student: DetrView,
) -> Pairs:
    """The pairs of one layer; the first ``objects`` of the queries [P] are positives, -1 is no query."""
    is_pair = (theirs >= 0) & (ours >= 0)
    is_positive = torch.arange(len(theirs), device=theirs.device) < objects
    return Pairs(
        student_layer,
        teacher_layer,
        _plain(theirs[is_pair]),
        _plain(ours[is_pair]),
        _plain(is_positive[is_pair]),
        _plain(owner[is_pair]),
        _plain(teacher.boxes[teacher_layer, 0, theirs[is_pair]]),
        _plain(student.boxes[student_layer, 0, ours[is_pair]]),
    )


def _levels(tokens: Tensor, view: DetrView) -> Iterator[Array]:
    """Values of tokens [..., S] as one map [..., h, w] a memory level."""
    sizes = [level.shape[-2] * level.shape[-1] for level in view.memory]
    for part, level in zip(torch.split(tokens, sizes, dim=-1), view.memory, strict=True):
        yield _plain(part.reshape(*part.shape[:-1], *level.shape[-2:]))


def _plain(values: Tensor) -> Array:
    return np.asarray(values.cpu())
