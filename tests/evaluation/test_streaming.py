"""Evaluation in several processes, of which each knows its own detections first."""

from types import SimpleNamespace

import pytest
from torch import nn

from builders_detections import random_scene
from qskd.evaluation import streaming
from qskd.evaluation.coco_map import CocoEvaluator


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_saw_an_image_differently_report_the_same(monkeypatch, process):
    """A sampler repeats an image in another batch, where rounding differs: the first process's detections count."""
    truth, found = random_scene(5, 7, 3, 10)
    ids, categories = [image["id"] for image in truth["images"]], [10, 20, 30]
    other = found[0]._replace(scores=1 - found[0].scores)
    shares = [([0, 2, 4, 6], found), ([1, 3, 5, 0], [other, *found[1:]])]
    evaluators = []
    for share, seen in shares:
        evaluators.append(CocoEvaluator(truth, categories))
        evaluators[-1].add([ids[i] for i in share], [seen[i] for i in share])
    states = [evaluator.state() for evaluator in evaluators]
    monkeypatch.setattr(streaming, "gather_object", lambda own: states)
    model, two = SimpleNamespace(model=nn.Linear(1, 1)), SimpleNamespace(num_processes=2)
    measured = streaming.evaluate_detector(model, [], evaluators[process], accelerator=two)
    alone = CocoEvaluator(truth, categories)
    alone.add(ids, found)
    assert measured == alone.result()
    differing = CocoEvaluator(truth, categories)
    differing.add(ids, [other, *found[1:]])
    assert measured != differing.result()
