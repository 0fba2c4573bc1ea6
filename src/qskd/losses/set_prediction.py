"""The detection loss of set-prediction DETRs, all decoder layers at once.

Letters: L decoder layers, B images, Q queries, C classes, N targets of an image (padded), S proposals.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from qskd.boxes import aligned_giou
from qskd.data.batch import Targets
from qskd.errors import UnsupportedFamily
from qskd.models.adapter import MatchCosts, Proposals
from qskd.models.view import DetrView
from qskd.selection.assignment import match_to_targets

_KIND: dict[str, Literal["softmax", "focal"]] = {
    "detr": "softmax",
    "table-transformer": "softmax",
    "conditional_detr": "focal",
    "dab-detr": "focal",
    "deformable_detr": "focal",
}


@dataclass(frozen=True, slots=True)
class SetPredictionLoss:
    """Class, box and GIoU loss of one-to-one matched queries, summed over decoder layers.

    kind "softmax": cross-entropy over C classes and no-object, a weighted mean over all queries (DETR and
    Table Transformer); "focal": sigmoid focal loss summed over queries and classes, divided by the number of
    objects (Deformable, Conditional and DAB-DETR).

    Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", section 3.1; Zhu et al. 2021,
    "Deformable DETR", appendix A.3. Values equal those of ``transformers`` with ``auxiliary_loss=True`` on
    one process; every layer of the view is trained, as in the papers, whatever ``config.auxiliary_loss`` is, and so
    are the proposals of a two-stage model, which transformers 5.23 leaves out.
    """

    costs: MatchCosts  # with which proposals are matched; queries come matched already
    class_weight: float = 1.0
    box_weight: float = 5.0  # of the L1 distance of cxcywh boxes, summed over the 4 numbers
    giou_weight: float = 2.0
    no_object_weight: float = 0.1  # "softmax" only: weight of queries without object
    alpha: float = 0.25  # "focal" only: weight of present classes; negative: no balancing
    gamma: float = 2.0  # "focal" only

    @property
    def kind(self) -> Literal["softmax", "focal"]:
        """Which classification loss, decided by the matching costs."""
        return self.costs.kind

    @classmethod
    def from_config(cls, config: Any, *, class_weight: float = 1.0) -> "SetPredictionLoss":
        """The loss that ``transformers`` gives a model with this configuration.

        Args:
            config: a Hugging Face configuration of a set-prediction family.
            class_weight: transformers uses 1 whatever ``config.cls_loss_coefficient`` says; the authors of
                Conditional, DAB and Deformable DETR trained with 2.

        Raises:
            UnsupportedFamily: ``config.model_type`` is none of the set-prediction families.
        """
        kind = _KIND.get(config.model_type)
        if kind is None:
            raise UnsupportedFamily(
                f"No set-prediction loss for model type '{config.model_type}'. Families that have one: "
                f"{', '.join(_KIND)}; the others compute their own loss in transformers."
            )
        costs = MatchCosts(
            kind=kind,
            class_weight=float(config.class_cost),
            box_weight=float(config.bbox_cost),
            giou_weight=float(config.giou_cost),
        )
        return cls(
            costs=costs,
            class_weight=class_weight,
            box_weight=float(config.bbox_loss_coefficient),
            giou_weight=float(config.giou_loss_coefficient),
            no_object_weight=float(getattr(config, "eos_coefficient", 0.1)),
            alpha=float(getattr(config, "focal_alpha", 0.25)),
        )

    def __call__(
        self,
        view: DetrView,
        targets: Targets,
        match: Tensor,
        num_boxes: float | Tensor,
        proposals: Proposals | None = None,
        *,
        step: tuple[float, float] | None = None,
    ) -> dict[str, Tensor]:
        """Weighted scalar parts, each summed over layers; their sum is the loss.

        Args:
            view: the student's predictions.
            targets: the objects of the same images.
            match: [L, B, N] long, query of each object; -1 where there is none.
            num_boxes: divides the box losses and the focal loss, at least 1: the objects of this batch, or of
                the whole optimiser step divided by the number of processes.
            proposals: first-stage predictions of a two-stage model, trained to find objects whatever their
                class (all labels 0), with a matching of their own.
            step: images and matched queries of the optimiser step, each divided by the number of processes;
                "softmax" then takes its mean over the step, so that micro-batches add up; None takes it over
                this batch.

        Returns:
            ``loss_class``, ``loss_box``, ``loss_giou``; with proposals also ``proposal_class``,
            ``proposal_box``, ``proposal_giou``. Each carries gradient also when there is no object at all.
        """
        losses = self._parts("loss", view, targets, match, num_boxes, step)
        if proposals is not None:
            stage, objects = _proposal_view(proposals), _without_classes(targets)
            stage_match = match_to_targets(stage, objects, self.costs)
            losses |= self._parts("proposal", stage, objects, stage_match, num_boxes, step)
        return losses

    def _parts(
        self,
        prefix: str,
        view: DetrView,
        targets: Targets,
        match: Tensor,
        num_boxes: float | Tensor,
        step: tuple[float, float] | None,
    ) -> dict[str, Tensor]:
        pairs = _Pairs(match.clamp(min=0), match >= 0, targets.labels)
        with torch.autocast(view.logits.device.type, enabled=False):
            if view.no_object is None:
                class_loss = self._focal(view.logits, pairs) / num_boxes
            else:
                class_loss = self._cross_entropy(view.logits, view.no_object, pairs, step)
            box_loss, giou_loss = _box_losses(view.boxes, targets.boxes, pairs)
        return {
            f"{prefix}_class": self.class_weight * class_loss,
            f"{prefix}_box": self.box_weight * box_loss / num_boxes,
            f"{prefix}_giou": self.giou_weight * giou_loss / num_boxes,
        }

    def _focal(self, logits: Tensor, pairs: "_Pairs") -> Tensor:
        """Focal loss summed over layers, images, queries and classes.

        Every class of every query counts as absent; the pairs, few, are then corrected.
        """
        present, absent = (self.alpha, 1.0 - self.alpha) if self.alpha >= 0 else (1.0, 1.0)
        hit = pairs.class_logits(logits)  # [L, B, N]
        correction = present * _focal_term(-hit, self.gamma) - absent * _focal_term(hit, self.gamma)
        return absent * _focal_term(logits.float(), self.gamma).sum() + pairs.total(correction).sum()

    def _cross_entropy(
        self,
        logits: Tensor,
        no_object: Tensor,
        pairs: "_Pairs",
        step: tuple[float, float] | None,
    ) -> Tensor:
        """Weighted mean cross-entropy of each layer's queries, summed over layers.

        Every query counts as one without object; the pairs, few, are then corrected. ``step`` is (images,
        matched queries) of what the mean is over, None for this batch.
        """
        background = no_object.float()  # [L, B, Q]
        evidence = torch.logaddexp(logits.float().logsumexp(-1), background)  # [L, B, Q] log of the normaliser
        empty = self.no_object_weight * (evidence - background)  # [L, B, Q]
        correction = (evidence - empty).gather(2, pairs.query) - pairs.class_logits(logits)  # [L, B, N]
        total = empty.sum((1, 2)) + pairs.total(correction)  # [L]
        _, images, queries = background.shape
        num_images, num_pairs = step or (images, pairs.is_pair.sum((1, 2)))
        weight = self.no_object_weight * num_images * queries + (1.0 - self.no_object_weight) * num_pairs
        return (total / weight).sum()


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Objects and their queries; unmatched objects read query 0 and are masked out of every sum."""

    query: Tensor  # [L, B, N] long
    is_pair: Tensor  # [L, B, N] bool
    labels: Tensor  # [B, N] long

    def class_logits(self, logits: Tensor) -> Tensor:
        """[L, B, N] float32 logit of each object's class at its query, from [L, B, Q, C]."""
        flat = logits.flatten(2)  # [L, B, Q * C]
        return flat.gather(2, self.query * logits.shape[-1] + self.labels).float()

    def total(self, values: Tensor) -> Tensor:
        """[L] sum over the pairs of values [L, B, N]."""
        return values.where(self.is_pair, 0.0).sum((1, 2))


def _focal_term(logits: Tensor, gamma: float) -> Tensor:
    """p^gamma * -log(1 - p), p = sigmoid(logits): focal loss of an absent class; at -logits, of a present."""
    return logits.sigmoid().pow(gamma) * functional.softplus(logits)


def _box_losses(boxes: Tensor, targets: Tensor, pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """L1 and 1 - GIoU of the pairs, summed: two scalars."""
    index = pairs.query[..., None].expand(*pairs.query.shape, 4)
    predicted = boxes.gather(2, index).float()  # [L, B, N, 4]
    wanted = targets.float().expand_as(predicted)
    distance = (predicted - wanted).abs().sum(-1)  # [L, B, N]
    return pairs.total(distance).sum(), pairs.total(1.0 - aligned_giou(predicted, wanted)).sum()


def _proposal_view(proposals: Proposals) -> DetrView:
    """Proposals as a decoder of one layer whose queries are the memory tokens."""
    return DetrView(proposals.logits[None], None, proposals.boxes[None], (), (), ())


def _without_classes(targets: Targets) -> Targets:
    """The same objects, all of class 0: proposals only tell object from background."""
    return Targets(torch.zeros_like(targets.labels), targets.boxes, targets.is_object, targets.counts)
