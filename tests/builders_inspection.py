"""A small scene and its numbers, for the pages of an inspection."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from builders_views import costs_for, random_targets, random_view
from qskd.reporting.inspection import Subject
from qskd.reporting.query_scene import Pairs, Scene
from qskd.selection.foreground import Foreground
from qskd.selection.groups import GroupQuerySelection
from qskd.selection.statistics import Numbers, QueryStatistics

CLASSES = ("cat", "dog", "owl", "fox", "yak")


def scene_and_numbers(*, count: int = 3, with_pairs: bool = True, **changes: Any) -> tuple[Scene, Numbers]:
    """One image of random predictions: two layers, twelve queries, two memory levels."""
    view = random_view(images=1, grids=((3, 4), (2, 2)), channels=(6, 6), strides=(16, 32))
    targets = random_targets((count,))
    groups = GroupQuerySelection()(view, targets, costs_for(view))
    counted = QueryStatistics(2)
    tokens = torch.rand(1, view.num_tokens, generator=torch.Generator().manual_seed(0))
    counted.add(view, groups, targets, Foreground(tokens, torch.tensor([0.4])))
    score, best = view.scores()[:, 0].max(-1)
    noise = np.random.default_rng(0)
    facts: dict[str, Any] = dict(
        name="a.png",
        image=Image.fromarray(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)),
        class_names=CLASSES,
        labels=targets.labels[0].numpy(),
        objects=targets.boxes[0].numpy(),
        unknown=np.array([[0.5, 0.5, 0.1, 0.1]]),
        role=groups.role[:, 0].numpy(),
        owner=groups.owner[:, 0].numpy(),
        giou=groups.giou[:, 0].numpy(),
        score=score.numpy(),
        best=best.numpy(),
        boxes=view.boxes[:, 0].numpy(),
        attention=(noise.random((2, 3, 4)), noise.random((2, 2, 2))),
        mask=(noise.random((3, 4)), noise.random((2, 2))),
        pairs=(pairs_of(1, view.boxes[1, 0].numpy()),) if with_pairs else (),
    )
    return Scene(**(facts | changes)), counted.numbers()


def pairs_of(layer: int, boxes: np.ndarray) -> Pairs:
    """One pair of positives and two of hard negatives, of the only student layer."""
    return Pairs(
        student_layer=0,
        teacher_layer=layer,
        teacher_query=np.array([0, 1, 2]),
        student_query=np.array([4, 5, 6]),
        is_positive=np.array([True, False, False]),
        owner=np.array([0, 0, 1]),
        teacher_boxes=boxes[:3],
        student_boxes=boxes[4:7],
    )


def subject(**changes: Any) -> Subject:
    facts: dict[str, Any] = dict(
        teacher="teacher",
        family="detr",
        student="student",
        is_labelled=True,
        method="qskd",
        threshold=0.0,
        cap=10,
        settings={"selection.cap": 10},
        notes=["a note"],
    )
    return Subject(**(facts | changes))
