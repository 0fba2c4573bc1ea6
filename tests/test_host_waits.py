"""How often the host would wait for a GPU in a distillation step."""

from collections import Counter

import pytest
import torch

from builders import batch_for
from builders_syncs import HostWaits
from builders_trainer import adapter_of
from qskd.distiller import Distiller
from qskd.labels import LabelMap
from qskd.losses.attention_guided_feature import query_weights
from qskd.losses.presets import build_terms, resolve
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models import host
from qskd.models.loading import as_teacher
from qskd.selection.groups import GroupQuerySelection
from qskd.teacher import TeacherSide

MATCHING = "selection/assignment.py"
OWN_LOSS = "models/families/"
"""Where Hugging Face's criteria are called from, which wait as they like, with and without a teacher."""


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(host, "waits_for", lambda tensor: True)


def waits_of(family):
    """Where the host waits in the second of two steps: in teaching, and in the student's step."""
    teacher, student = as_teacher(adapter_of(family)), adapter_of(family)
    student.model.train()
    settings = resolve("qskd")
    built = build_terms(settings, student=student, teacher=teacher)
    terms = {name: term for name, (term, _) in built.items()}
    criterion = None if student.trains_with == "own" else SetPredictionLoss.from_config(student.model.config)
    distiller = Distiller(student, criterion, terms, {name: weight for name, (_, weight) in built.items()})
    names = list(teacher.id2label.values())
    side = TeacherSide(teacher, LabelMap.between(teacher.id2label, names), settings.selection, terms)
    batch = batch_for(family, (3, 2), num_classes=len(names), padded=False)
    networks = teacher.model.model, student.model.model
    for _ in range(2):
        teaching_waits, step_waits = HostWaits(), HostWaits()
        with teaching_waits.watching(*networks):
            teaching = side.teach(batch)
            totals = distiller.totals([batch], [teaching])
        with step_waits.watching(*networks):
            distiller(batch, totals, teaching)
    return teaching_waits.found, step_waits.found


@pytest.mark.parametrize(
    "family", ["detr", "conditional_detr", "dab-detr", "deformable_detr-two-stage", "rt_detr", "d_fine", "lw_detr"]
)
def test_distillation_waits_for_nothing_but_its_two_matchings(family):
    teaching, step = waits_of(family)
    step = [(kind, place) for kind, place in step if not place.startswith(OWN_LOSS)]
    assert [place for _, place in teaching + step if not place.startswith(MATCHING)] == []
    matchings = [
        Counter(kind for kind, place in found if place.startswith(MATCHING))["numpy"] for found in (teaching, step)
    ]
    assert matchings[0] == 1  # Group Query Selection on the teacher
    plain = 2 if "two-stage" in family else 1  # the student's own, of queries and of proposals
    assert matchings[1] <= plain + 1  # that of hard negatives


@pytest.mark.parametrize("select", ["groups", "all"])
@pytest.mark.parametrize("family", ["detr", "deformable_detr", "rt_detr"])
@torch.no_grad()
def test_attention_of_as_many_queries_as_are_allowed_is_that_of_the_selected(family, select, monkeypatch):
    teacher, batch = as_teacher(adapter_of(family)), batch_for(family, (3, 0), num_classes=2)
    view = teacher.read(batch, capture_attention=True).view
    groups = GroupQuerySelection(select=select)(view, batch.targets, teacher.match_costs)
    weights = query_weights(groups)
    assert int((weights > 0).sum(-1).max()) <= groups.most
    bounded = view.attention_mass(weights, groups.most)
    monkeypatch.setattr(host, "waits_for", lambda tensor: False)
    torch.testing.assert_close(bounded, view.attention_mass(weights))


def test_what_would_wait_is_noticed():
    numbers = torch.arange(3.0)
    for ask in (
        lambda: bool(numbers.any()),
        lambda: numbers.sum().item(),
        lambda: numbers.tolist(),
        lambda: numbers.numpy(),
        lambda: numbers.nonzero(),
        lambda: numbers[numbers > 1],
        lambda: torch.tensor([1.0, 2.0]),
        lambda: numbers.new_tensor([1.0]),
    ):
        waits = HostWaits()
        with waits.watching():
            ask()
        assert waits.found


def test_the_host_waits_for_every_device_but_its_own(monkeypatch):
    monkeypatch.undo()
    assert not host.waits_for(torch.zeros(1))
    assert host.waits_for(torch.zeros(1, device="meta"))  # as good as any accelerator


def test_constants_that_python_takes_for_equal_stay_apart():
    device = torch.device("cpu")
    for _ in range(2):
        assert host.constant((True, False), device, torch.bool).dtype == torch.bool
        assert host.constant((1, 0), device, torch.long).dtype == torch.long
        assert host.constant((1.0, 0.0), device, torch.float32).dtype == torch.float32


def test_counting_is_bounded_where_it_would_wait():
    weights = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    assert host.most_selected(weights, 3) == 3
    assert host.most_selected(weights, 9) == 4
    assert host.most_selected(weights, None) == 2
