import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from builders_views import FOCAL, SOFTMAX, random_boxes, random_targets, random_view
from qskd.data.batch import Targets
from qskd.models.adapter import MatchCosts
from qskd.models.view import DetrView
from qskd.selection.assignment import assign, match_to_targets, matching_cost

INF = float("inf")


def rt_detr_matcher(use_focal_loss: bool) -> RTDetrHungarianMatcher:
    return RTDetrHungarianMatcher(
        SimpleNamespace(
            matcher_class_cost=2.0,
            matcher_bbox_cost=5.0,
            matcher_giou_cost=2.0,
            use_focal_loss=use_focal_loss,
            matcher_alpha=0.3,
            matcher_gamma=1.5,
        )
    )


HUGGINGFACE = {
    "detr": (HungarianMatcher(1, 5, 2), SOFTMAX, True),
    "deformable_detr": (DeformableDetrHungarianMatcher(2, 5, 2), FOCAL, False),
    "rt_detr": (rt_detr_matcher(True), MatchCosts("focal", 2.0, 5.0, 2.0, alpha=0.3, gamma=1.5), False),
    "rt_detr-softmax": (rt_detr_matcher(False), MatchCosts("softmax", 2.0, 5.0, 2.0), True),
}


def by_huggingface(matcher: torch.nn.Module, view: DetrView, targets: Targets) -> Tensor:
    expected = torch.full((view.num_layers, view.num_images, targets.labels.shape[1]), -1)
    for layer in range(view.num_layers):
        logits = view.logits[layer]
        if view.no_object is not None:
            logits = torch.cat([logits, view.no_object[layer][..., None]], dim=-1)
        outputs = {"logits": logits, "pred_boxes": view.boxes[layer]}
        for image, (queries, objects) in enumerate(matcher(outputs, targets.as_huggingface())):
            expected[layer, image, objects] = queries
    return expected


@pytest.mark.parametrize("name", HUGGINGFACE)
@pytest.mark.parametrize("counts", [(4, 1, 0), (7, 7, 7), (15, 3, 12)], ids=["few", "equal", "more-than-queries"])
def test_matching_equals_that_of_transformers(name: str, counts: tuple[int, ...]) -> None:
    matcher, costs, softmax = HUGGINGFACE[name]
    view = random_view(1, layers=3, images=3, queries=10, softmax=softmax)
    targets = random_targets(counts)
    assert torch.equal(match_to_targets(view, targets, costs), by_huggingface(matcher, view, targets))


@pytest.mark.parametrize("counts", [(), (0, 0)], ids=["no-images", "no-objects"])
def test_nothing_is_matched_where_there_is_nothing(counts: tuple[int, ...]) -> None:
    match = match_to_targets(random_view(images=len(counts)), random_targets(counts), FOCAL)
    assert match.shape == (2, len(counts), 0)


def test_padded_objects_are_never_matched() -> None:
    match = match_to_targets(random_view(), random_targets((1, 5)), FOCAL)
    assert (match[:, 0, 1:] == -1).all()
    assert (match[:, 1] >= 0).all()


@pytest.mark.parametrize(
    ("where", "broken"),
    [("boxes", float("nan")), ("boxes", INF), ("boxes", -INF), ("logits", float("nan"))],
)
def test_a_broken_query_is_matched_last_and_crashes_nothing(where: str, broken: float) -> None:
    view, targets = random_view(queries=6), random_targets((5, 6))
    tensor = getattr(view, where).clone()
    tensor[:, :, 2] = broken
    match = match_to_targets(replace(view, **{where: tensor}), targets, FOCAL)
    assert (match[:, 0] != 2).all()
    assert match[:, 1].sort(-1).values.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_cost_adds_up_by_hand() -> None:
    # Query box (0.25, 0.5, 0.5, 1) is the left half, object (0.5, 0.5, 1, 1) the whole image:
    # L1 = 0.25 + 0 + 0.5 + 0 = 0.75, GIoU = IoU = 0.5. p = softmax(0, log 3)[0] = 0.25.
    view = replace(
        random_view(layers=1, images=1, queries=1, classes=1, softmax=True),
        logits=torch.zeros(1, 1, 1, 1),
        no_object=torch.full((1, 1, 1), 3.0).log(),
        boxes=torch.tensor([[[[0.25, 0.5, 0.5, 1.0]]]]),
    )
    targets = Targets.from_lists([torch.tensor([0])], [torch.tensor([[0.5, 0.5, 1.0, 1.0]])])
    cost = matching_cost(view, targets, MatchCosts("softmax", 4.0, 8.0, 2.0))
    assert cost.item() == pytest.approx(-4.0 * 0.25 + 8.0 * 0.75 - 2.0 * 0.5)


def test_matching_does_not_care_for_autocast() -> None:
    view, targets = random_view(queries=40), random_targets((9, 9))
    expected = match_to_targets(view, targets, FOCAL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(match_to_targets(view, targets, FOCAL), expected)


def cheapest(cost: list[list[float]]) -> float:
    """Of all assignments with the most allowed pairs, by trying them all."""
    rows, columns = len(cost), len(cost[0])
    best: tuple[int, float] = (0, 0.0)
    for size in range(min(rows, columns), 0, -1):
        totals = [
            sum(cost[r][c] for r, c in zip(chosen, order, strict=True))
            for chosen in itertools.combinations(range(rows), size)
            for order in itertools.permutations(range(columns), size)
        ]
        if min(totals) < INF:
            return min(totals)
    return best[1]


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("forbidden", [0.0, 0.3, 0.7, 1.0])
def test_the_most_allowed_pairs_are_made_and_the_cheapest(rows: int, forbidden: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    cost = torch.randn(2, 10, rows, 4, generator=generator) * 10
    cost[torch.rand(cost.shape, generator=generator) < forbidden] = INF
    assigned = assign(cost)
    for one, columns in zip(cost.view(-1, rows, 4), assigned.view(-1, rows), strict=True):
        chosen = [(row, int(column)) for row, column in enumerate(columns) if column >= 0]
        assert len({column for _, column in chosen}) == len(chosen)
        total = sum(one[row, column].item() for row, column in chosen)
        assert total == pytest.approx(cheapest(one.tolist()), abs=1e-5)


def test_rows_may_name_their_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    place = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(20)]).view(4, 5, 3)
    cost = torch.rand(4, 5, 3, generator=generator)
    cost[0, 2] = INF
    cost[1] = INF
    dense = torch.full((4, 5, 9), INF).scatter(-1, place, cost)
    assert torch.equal(assign(cost, place), assign(dense))


def test_two_objects_fight_for_one_query() -> None:
    # Row 0 would rather have column 0 (1 < 2), but row 1 has no other: 0 -> 1, 1 -> 0.
    assert assign(torch.tensor([[1.0, 2.0], [5.0, INF]])).tolist() == [1, 0]


def test_boxes_of_any_float_type_are_matched_alike() -> None:
    view, targets = random_view(dtype=torch.float64), random_targets((3, 2))
    single = replace(view, logits=view.logits.float(), boxes=view.boxes.float())
    assert torch.equal(match_to_targets(view, targets, FOCAL), match_to_targets(single, targets, FOCAL))
    assert random_boxes(2, generator=torch.Generator()).dtype == torch.float32
