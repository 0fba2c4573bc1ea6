"""The detection loss equals transformers' on one process, layer by layer, and worked examples by hand."""

from collections.abc import Sequence
from math import exp, log
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import ConditionalDetrConfig, DabDetrConfig, DeformableDetrConfig, DetrConfig, RTDetrConfig
from transformers.loss.loss_deformable_detr import (
    DeformableDetrForObjectDetectionLoss,
    DeformableDetrHungarianMatcher,
)
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher
from transformers.loss.loss_utils import LOSS_MAPPING

from qskd.data.batch import Targets
from qskd.errors import UnsupportedFamily
from qskd.losses import set_prediction
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.adapter import MatchCosts, Proposals
from qskd.models.view import DetrView

CLASSES, LAYERS, QUERIES = 5, 3, 7
FAMILIES = {
    "detr": (DetrConfig, ForObjectDetectionLoss),
    "conditional_detr": (ConditionalDetrConfig, DeformableDetrForObjectDetectionLoss),
    "dab-detr": (DabDetrConfig, DeformableDetrForObjectDetectionLoss),
    "deformable_detr": (DeformableDetrConfig, DeformableDetrForObjectDetectionLoss),
}
FOCAL = MatchCosts(kind="focal", class_weight=2.0, box_weight=5.0, giou_weight=2.0)
SOFTMAX = MatchCosts(kind="softmax", class_weight=1.0, box_weight=5.0, giou_weight=2.0)


def config_of(family: str, **settings: object):
    values = {"num_labels": CLASSES, "auxiliary_loss": True, "decoder_layers": LAYERS, **settings}
    return FAMILIES[family][0](**values)


def random_targets(counts: Sequence[int], seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(0, CLASSES, (count,), generator=generator) for count in counts]
    boxes = [torch.rand(count, 4, generator=generator) * 0.4 + 0.2 for count in counts]
    return Targets.from_lists(labels, boxes)


def random_predictions(images: int, columns: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(LAYERS, images, QUERIES, columns, generator=generator) * 2
    boxes = torch.rand(LAYERS, images, QUERIES, 4, generator=generator) * 0.5 + 0.1
    return logits.requires_grad_(), boxes.requires_grad_()


def view_of(logits: Tensor, boxes: Tensor, kind: str) -> DetrView:
    if kind == "softmax":
        return DetrView(logits[..., :-1], logits[..., -1], boxes, (), (), ())
    return DetrView(logits, None, boxes, (), (), ())


def match_by_transformers(config, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
    matcher_of = HungarianMatcher if config.model_type == "detr" else DeformableDetrHungarianMatcher
    matcher = matcher_of(config.class_cost, config.bbox_cost, config.giou_cost)
    match = torch.full((len(logits), *targets.labels.shape), -1)
    for layer in range(len(logits)):
        outputs = {"logits": logits[layer], "pred_boxes": boxes[layer]}
        for image, (query, column) in enumerate(matcher(outputs, targets.as_huggingface())):
            match[layer, image, column] = query
    return match


def by_hand(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_transformers_still_trains_these_families_with_the_losses_compared_here():
    names = ["ConditionalDetr", "DabDetr", "DeformableDetr"]
    assert {LOSS_MAPPING[f"{name}ForObjectDetection"] for name in names} == {DeformableDetrForObjectDetectionLoss}
    assert LOSS_MAPPING["ForObjectDetection"] is ForObjectDetectionLoss
    assert "DetrForObjectDetection" not in LOSS_MAPPING


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "counts",
    [(3, 2), (4, 0, 1), (0, 0), (QUERIES + 4, 2), (1,)],
    ids=["plain", "one empty image", "no objects at all", "more objects than queries", "one image"],
)
def test_value_and_gradients_equal_transformers(family, counts):
    config = config_of(family, bbox_loss_coefficient=4, giou_loss_coefficient=3)
    criterion = SetPredictionLoss.from_config(config)
    targets = random_targets(counts)
    logits, boxes = random_predictions(len(counts), CLASSES + (criterion.kind == "softmax"))

    expected, _, _ = FAMILIES[family][1](logits[-1], targets.as_huggingface(), "cpu", boxes[-1], config, logits, boxes)
    wanted = torch.autograd.grad(expected, [logits, boxes])

    match = match_by_transformers(config, logits, boxes, targets)
    parts = criterion(view_of(logits, boxes, criterion.kind), targets, match, max(targets.total, 1))
    total = torch.stack(list(parts.values())).sum()
    found = torch.autograd.grad(total, [logits, boxes])

    assert set(parts) == {"loss_class", "loss_box", "loss_giou"}
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["detr", "conditional_detr"])
def test_each_part_is_the_weighted_sum_of_that_part_over_layers(family):
    config = config_of(family)
    criterion = SetPredictionLoss.from_config(config)
    targets = random_targets((3, 1))
    logits, boxes = random_predictions(2, CLASSES + (criterion.kind == "softmax"))
    _, by_layer, _ = FAMILIES[family][1](logits[-1], targets.as_huggingface(), "cpu", boxes[-1], config, logits, boxes)
    match = match_by_transformers(config, logits, boxes, targets)
    parts = criterion(view_of(logits, boxes, criterion.kind), targets, match, 4)
    names = {"loss_class": ("loss_ce", 1), "loss_box": ("loss_bbox", 5), "loss_giou": ("loss_giou", 2)}
    for ours, (theirs, weight) in names.items():
        layers = [by_layer[theirs], by_layer[f"{theirs}_0"], by_layer[f"{theirs}_1"]]
        assert parts[ours].item() == pytest.approx(weight * sum(layers).item(), rel=1e-5)


def test_focal_parts_of_one_matched_and_one_free_query_worked_by_hand():
    # Two queries, two classes; query 1 is the object, class 0. alpha 0.25, gamma 2, two objects in the step.
    logits = by_hand([[[[0.0, 1.0], [2.0, -1.0]]]])
    boxes = by_hand([[[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]]]])
    targets = Targets.from_lists([torch.tensor([0])], [torch.tensor([[0.5, 0.5, 0.2, 0.4]])])
    criterion = SetPredictionLoss(costs=FOCAL, class_weight=2.0, box_weight=5.0, giou_weight=3.0)
    parts = criterion(DetrView(logits, None, boxes, (), (), ()), targets, torch.tensor([[[1]]]), 2.0)

    def p(z: float) -> float:
        return 1 / (1 + exp(-z))

    absent = sum(0.75 * p(z) ** 2 * -log(1 - p(z)) for z in (0.0, 1.0, -1.0))
    present = 0.25 * (1 - p(2.0)) ** 2 * -log(p(2.0))
    assert parts["loss_class"].item() == pytest.approx(2.0 * (absent + present) / 2, rel=1e-6)
    assert parts["loss_box"].item() == pytest.approx(5.0 * 0.2 / 2, rel=1e-6)  # only the width differs
    # The object lies inside the prediction and takes half of it: IoU = GIoU = 0.5.
    assert parts["loss_giou"].item() == pytest.approx(3.0 * 0.5 / 2, rel=1e-5)


def test_softmax_class_loss_of_one_matched_and_one_free_query_worked_by_hand():
    # One class. Query 0: logits (class, no object) = (0, 0), the object. Query 1: (log 3, 0), free.
    logits, no_object = by_hand([[[[0.0], [log(3)]]]]), by_hand([[[0.0, 0.0]]])
    boxes = by_hand([[[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]]]])
    targets = Targets.from_lists([torch.tensor([0])], [torch.tensor([[0.5, 0.5, 0.2, 0.2]])])
    criterion = SetPredictionLoss(costs=SOFTMAX, no_object_weight=0.1)
    parts = criterion(DetrView(logits, no_object, boxes, (), (), ()), targets, torch.tensor([[[0]]]), 1.0)
    # -log(1/2) with weight 1 and -log(1/4) with weight 0.1.
    assert parts["loss_class"].item() == pytest.approx((log(2) + 0.1 * log(4)) / 1.1, rel=1e-6)
    assert parts["loss_box"].item() == pytest.approx(0.0, abs=1e-6)
    assert parts["loss_giou"].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("counts", [(3, 0, 2, 1), (QUERIES + 2, 0, 2, 1), (0, 0, 0, 0)], ids=["few", "many", "none"])
@pytest.mark.parametrize("family", ["detr", "deformable_detr"])
def test_micro_batches_add_up_to_the_whole_step(family, counts):
    config = config_of(family)
    criterion = SetPredictionLoss.from_config(config)
    targets, num_boxes = random_targets(counts), max(sum(counts), 1)
    logits, boxes = random_predictions(4, CLASSES + (criterion.kind == "softmax"))
    match = match_by_transformers(config, logits, boxes, targets)
    whole = criterion(view_of(logits, boxes, criterion.kind), targets, match, num_boxes)
    summed = dict.fromkeys(whole, 0.0)
    for start in (0, 2):
        rows = slice(start, start + 2)
        piece = Targets(targets.labels[rows], targets.boxes[rows], targets.is_object[rows], targets.counts[rows])
        view = view_of(logits[:, rows], boxes[:, rows], criterion.kind)
        parts = criterion(
            view, piece, match[:, rows], num_boxes, step=(4, sum(min(count, QUERIES) for count in counts))
        )
        summed = {name: summed[name] + parts[name].item() for name in summed}
    assert summed == pytest.approx({name: part.item() for name, part in whole.items()}, rel=1e-5)


def test_twice_the_objects_of_the_step_halve_box_and_focal_losses():
    criterion = SetPredictionLoss(costs=FOCAL)
    logits, boxes = random_predictions(1, CLASSES)
    targets, match = random_targets((2,)), torch.tensor([[[1, 4]]]).expand(LAYERS, -1, -1)
    one = criterion(view_of(logits, boxes, "focal"), targets, match, 3.0)
    two = criterion(view_of(logits, boxes, "focal"), targets, match, torch.tensor(6.0))
    for name, part in one.items():
        assert two[name].item() == pytest.approx(part.item() / 2)


@pytest.mark.parametrize("kind", ["softmax", "focal"])
def test_padding_of_targets_and_unmatched_objects_change_nothing(kind):
    criterion = SetPredictionLoss(costs=SOFTMAX if kind == "softmax" else FOCAL)
    logits, boxes = random_predictions(2, CLASSES + (kind == "softmax"))
    targets, match = random_targets((2, 1)), torch.tensor([[[1, 4], [0, -1]]]).expand(LAYERS, -1, -1)
    wide = Targets(
        torch.cat([targets.labels, torch.full((2, 3), 2)], 1),
        torch.cat([targets.boxes, torch.zeros(2, 3, 4)], 1),
        torch.cat([targets.is_object, torch.zeros(2, 3, dtype=torch.bool)], 1),
        targets.counts,
    )
    padded = torch.cat([match, torch.full((LAYERS, 2, 3), -1)], 2)
    view = view_of(logits, boxes, kind)
    one, two = criterion(view, targets, match, 3.0), criterion(view, wide, padded, 3.0)
    assert {k: v.item() for k, v in one.items()} == pytest.approx({k: v.item() for k, v in two.items()})


@pytest.mark.parametrize("kind", ["softmax", "focal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_have_a_finite_float32_loss(kind, dtype):
    criterion = SetPredictionLoss(costs=SOFTMAX if kind == "softmax" else FOCAL)
    logits, boxes = random_predictions(1, CLASSES + (kind == "softmax"))
    logits = (logits * 30).to(dtype).detach().requires_grad_()
    targets, match = random_targets((2,)), torch.tensor([[[1, 4]]]).expand(LAYERS, -1, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = criterion(view_of(logits, boxes.to(dtype), kind), targets, match, 2.0)
    exact = criterion(view_of(logits.double(), boxes.to(dtype).double(), kind), targets, match, 2.0)
    for name, part in parts.items():
        assert part.item() == pytest.approx(exact[name].item(), rel=1e-5)
    torch.stack(list(parts.values())).sum().backward()
    assert all(part.dtype == torch.float32 and part.isfinite() for part in parts.values())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_proposals_learn_to_tell_objects_of_any_class_from_background(monkeypatch):
    criterion = SetPredictionLoss(costs=FOCAL)
    logits, boxes = random_predictions(1, CLASSES)
    targets = random_targets((2,))
    stage = Proposals(logits[0], boxes[0])
    asked: list[tuple[Tensor, Tensor]] = []

    def assign(view: DetrView, objects: Targets, costs: MatchCosts) -> Tensor:
        asked.append((view.logits, objects.labels))
        return torch.tensor([[[5, 2]]])

    monkeypatch.setattr(set_prediction, "match_to_targets", assign)
    match = torch.tensor([[[1, 4]]]).expand(LAYERS, -1, -1)
    parts = criterion(view_of(logits, boxes, "focal"), targets, match, 2.0, stage)
    # The same loss as a decoder of one layer whose objects all have class 0.
    anything = Targets(torch.zeros(1, 2, dtype=torch.long), targets.boxes, targets.is_object, targets.counts)
    single = view_of(logits[:1], boxes[:1], "focal")
    expected = criterion(single, anything, torch.tensor([[[5, 2]]]), 2.0)
    assert [shape_of(one) for one in asked] == [((1, 1, QUERIES, CLASSES), [[0, 0]])]
    for name, part in expected.items():
        assert parts[name.replace("loss", "proposal")].item() == pytest.approx(part.item())
    assert len(parts) == 6


def shape_of(asked: tuple[Tensor, Tensor]) -> tuple[tuple[int, ...], list[list[int]]]:
    return tuple(asked[0].shape), asked[1].tolist()


def test_proposals_are_matched_to_the_objects_they_sit_on():
    criterion = SetPredictionLoss(costs=FOCAL)
    logits, boxes = random_predictions(1, CLASSES)
    targets = random_targets((2,))
    proposal_boxes = boxes[0].detach().clone()
    proposal_boxes[0, [6, 3]] = targets.boxes[0]
    stage = Proposals(torch.zeros(1, QUERIES, CLASSES), proposal_boxes)
    match = torch.tensor([[[1, 4]]]).expand(LAYERS, -1, -1)
    parts = criterion(view_of(logits, boxes, "focal"), targets, match, 2.0, stage)
    assert parts["proposal_box"].item() == pytest.approx(0.0, abs=1e-6)
    assert parts["proposal_giou"].item() == pytest.approx(0.0, abs=1e-6)


def test_configuration_decides_kind_and_weights():
    loss = SetPredictionLoss.from_config(config_of("detr", eos_coefficient=0.3, bbox_loss_coefficient=7, class_cost=3))
    assert (loss.kind, loss.no_object_weight, loss.box_weight) == ("softmax", 0.3, 7.0)
    assert loss.costs == MatchCosts("softmax", class_weight=3.0, box_weight=5.0, giou_weight=2.0)
    focal = SetPredictionLoss.from_config(config_of("deformable_detr", focal_alpha=0.4), class_weight=2.0)
    assert (focal.kind, focal.alpha, focal.class_weight) == ("focal", 0.4, 2.0)


@pytest.mark.parametrize("config", [RTDetrConfig(), SimpleNamespace(model_type="yolos")])
def test_families_with_a_loss_of_their_own_are_refused_by_name(config):
    with pytest.raises(UnsupportedFamily, match=f"'{config.model_type}'.*conditional_detr"):
        SetPredictionLoss.from_config(config)
