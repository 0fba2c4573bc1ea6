"""The numbers of an inspection against hand-worked values and a slow loop in float64."""

import json
import math

import numpy as np
import pytest
import torch

from builders_views import AttentionMatrix, costs_for, random_targets, random_view, take_images, take_targets
from qskd.data.batch import Targets
from qskd.models.view import DetrView
from qskd.selection.foreground import Foreground
from qskd.selection.groups import GroupQuerySelection, QueryGroups, Role
from qskd.selection.statistics import GIOU_BINS, SCORE_BINS, QueryStatistics


def found(view, targets, foreground=None, selection=None):
    groups = (selection or GroupQuerySelection())(view, targets, costs_for(view))
    counted = QueryStatistics(view.num_layers)
    counted.add(view, groups, targets, foreground)
    return counted.numbers(), groups


def random_foreground(images, tokens):
    generator = torch.Generator().manual_seed(4)
    return Foreground(torch.rand(images, tokens, generator=generator), torch.rand(images, generator=generator))


def by_hand():
    """One layer, one image, two objects; a positive each, three hard negatives of the first, an easy one."""
    logit = [[3.0, -3.0], [-3.0, 3.0], [0.0, -3.0], [-3.0, 0.0], [-1.0, -3.0], [-4.0, -3.0]]
    view = DetrView(
        torch.tensor(logit)[None, None],
        None,
        torch.zeros(1, 1, 6, 4),
        (torch.zeros(1, 2, 1, 2),),
        (torch.zeros(1, 1, 2, dtype=torch.bool),),
        (32,),
        AttentionMatrix(torch.tensor([[1, 0], [0.5, 0.5], [1, 0], [0.8, 0.2], [0.6, 0.4], [0, 1]])[None, None]),
    )
    groups = QueryGroups(
        role=torch.tensor([[[1, 1, 2, 2, 2, 0]]], dtype=torch.uint8),
        owner=torch.tensor([[[0, 1, 0, 0, 0, 1]]]),
        giou=torch.tensor([[[0.9, 0.7, 0.5, 0.3, 0.1, -0.5]]]),
        match=torch.tensor([[[0, 1]]]),
    )
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.25, 0.25, 0.5, 0.5]])  # together the left half
    return view, groups, Targets.from_lists([torch.tensor([0, 1])], [boxes])


def test_numbers_worked_by_hand():
    view, groups, targets = by_hand()
    counted = QueryStatistics(1)
    counted.add(view, groups, targets, Foreground(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])))
    numbers = counted.numbers()
    layer = numbers.layers[0]
    assert (numbers.images, numbers.images_with_objects, numbers.objects) == (1, 1, 2)
    assert numbers.object_area == pytest.approx(0.5)
    assert layer.hard_per_object == (1, 0, 0, 1)  # one object has none, one has three
    assert layer.mean_hard == 1.5
    positive, hard, easy = (layer.roles[role] for role in (Role.POSITIVE, Role.HARD_NEGATIVE, Role.EASY_NEGATIVE))
    assert (positive.queries, hard.queries, easy.queries) == (2, 3, 1)
    assert positive.giou.mean == pytest.approx(0.8)
    assert hard.giou.mean == pytest.approx(0.3)
    assert hard.giou.median == pytest.approx(0.3, abs=0.0101)
    assert hard.score.mean == pytest.approx((0.5 + 0.5 + 1 / (1 + math.e)) / 3)
    # The second hard negative sees the other object's class.
    assert hard.agreement == pytest.approx(2 / 3)
    assert (positive.agreement, easy.agreement) == (1.0, 1.0)
    assert positive.foreground == pytest.approx(0.75)
    assert hard.foreground == pytest.approx(0.8)
    assert easy.foreground == 0.0


def bins_of(value, low, high, bins):
    return min(int((value - low) / (high - low) * bins), bins - 1)


def slowly(view, groups, targets, foreground):
    """Per layer and role: count, means, agreement, foreground, histograms; one query at a time, in float64."""
    scores, results = view.scores().double(), {}
    for layer in range(view.num_layers):
        for role in Role:
            rows = []
            for image, count in enumerate(targets.counts):
                for query in range(view.num_queries) if count else ():
                    if groups.role[layer, image, query] != role:
                        continue
                    owner = int(groups.owner[layer, image, query])
                    score = scores[layer, image, query].tolist()
                    attention = view.attention.matrix[layer, image, query].double()
                    rows.append((
                        float(groups.giou[layer, image, query]),
                        max(score),
                        score.index(max(score)) == int(targets.labels[image, owner]),
                        float((attention * foreground[image].double()).sum()),
                        float(attention.sum()),
                    ))  # fmt: skip
            results[layer, role] = rows
    return results


@pytest.mark.parametrize("softmax", [False, True])
def test_numbers_equal_those_of_a_slow_loop(softmax):
    view = random_view(layers=3, images=4, queries=20, softmax=softmax)
    targets = random_targets((3, 0, 2, 5))
    foreground = random_foreground(4, view.num_tokens)
    numbers, groups = found(view, targets, foreground)
    assert numbers.object_area == pytest.approx(float(foreground.area[[0, 2, 3]].mean()))
    for (layer, role), rows in slowly(view, groups, targets, foreground.tokens).items():
        made = numbers.layers[layer].roles[role]
        giou, score, agrees, within, everywhere = np.array(rows, dtype=float).T
        assert made.queries == len(rows)
        assert made.giou.mean == pytest.approx(giou.mean(), abs=1e-6)
        assert made.score.mean == pytest.approx(score.mean(), abs=1e-6)
        assert made.agreement == pytest.approx(agrees.mean())
        assert made.foreground == pytest.approx(within.sum() / everywhere.sum(), abs=1e-5)
        for value, spread, width in ((giou, made.giou, 2 / GIOU_BINS), (score, made.score, 1 / SCORE_BINS)):
            for level, quantile in ((0.1, spread.p10), (0.5, spread.median), (0.9, spread.p90)):
                exact = np.quantile(value, level, method="inverted_cdf")
                assert quantile == pytest.approx(exact, abs=width / 2 + 1e-6)
        joint = np.zeros((GIOU_BINS, SCORE_BINS), dtype=int)
        for one, other in zip(giou, score, strict=True):
            joint[bins_of(one, -1, 1, GIOU_BINS), bins_of(other, 0, 1, SCORE_BINS)] += 1
        assert (numbers.layers[layer].joint[role] == joint).all()


def test_hard_negatives_per_object_equal_those_of_a_slow_loop():
    view, targets = random_view(layers=2, images=3, queries=30), random_targets((4, 0, 1))
    numbers, groups = found(view, targets)
    for layer in range(2):
        counts = [
            sum(
                int(groups.role[layer, image, query]) == Role.HARD_NEGATIVE
                and int(groups.owner[layer, image, query]) == number
                for query in range(30)
            )
            for image, objects in enumerate(targets.counts)
            for number in range(objects)
        ]
        assert numbers.layers[layer].hard_per_object == tuple(np.bincount(counts).tolist())
        assert numbers.layers[layer].mean_hard == pytest.approx(sum(counts) / 5)


def test_image_by_image_gives_the_same_as_all_at_once():
    view, targets = random_view(images=4, queries=25), random_targets((3, 0, 1, 2))
    groups = GroupQuerySelection()
    counted = QueryStatistics(view.num_layers)
    foreground = random_foreground(4, view.num_tokens)
    for image in range(4):
        part = Foreground(foreground.tokens[image : image + 1], foreground.area[image : image + 1])
        one, objects = take_images(view, [image]), take_targets(targets, [image])
        counted.add(one, groups(one, objects, costs_for(one)), objects, part)
    whole, _ = found(view, targets, foreground)
    one_by_one, at_once = counted.numbers().as_dict(), whole.as_dict()
    for made, expected in zip(one_by_one["layers"], at_once["layers"], strict=True):
        for role, values in expected["roles"].items():
            assert made["roles"][role]["giou_histogram"] == values["giou_histogram"]
            assert made["roles"][role]["score"] == pytest.approx(values["score"])
            assert made["roles"][role]["attention_within_objects"] == pytest.approx(values["attention_within_objects"])
        assert made["hard_negatives_per_object"] == expected["hard_negatives_per_object"]
    assert {**one_by_one, "layers": 0} == pytest.approx({**at_once, "layers": 0})


def test_without_objects_there_are_no_roles():
    numbers, _ = found(random_view(), random_targets((0, 0)), random_foreground(2, 12))
    assert (numbers.images, numbers.images_with_objects, numbers.objects, numbers.object_area) == (2, 0, 0, None)
    assert all(role.queries == 0 and role.giou is None for layer in numbers.layers for role in layer.roles.values())
    assert numbers.layers[0].mean_hard is None
    json.dumps(numbers.as_dict(), allow_nan=False)


def test_attention_may_be_left_out():
    numbers, _ = found(random_view(), random_targets())
    assert numbers.layers[0].roles[Role.POSITIVE].foreground is None


def test_histograms_of_the_file_hold_every_query():
    view, targets = random_view(queries=15), random_targets((2, 2))
    roles = found(view, targets)[0].as_dict()["layers"][0]["roles"]
    assert sum(sum(role["giou_histogram"]) for role in roles.values()) == 30
    assert sum(sum(role["score_histogram"]) for role in roles.values()) == 30
    assert list(roles) == ["easy_negative", "positive", "hard_negative"]
