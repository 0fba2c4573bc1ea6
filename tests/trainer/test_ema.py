import pytest
import torch
from torch import nn

from qskd.trainer.ema import ModelAverage


class Net(nn.Module):
    """One weight, a floating and an integer buffer, and the weight once more under another name."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.tied = self.weight
        self.register_buffer("mean", torch.tensor([10.0 * value], dtype=torch.float64))
        self.register_buffer("count", torch.tensor(int(value)))

    def set(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.mean.fill_(10.0 * value)
            self.count.fill_(int(value))


def test_the_decay_grows_until_it_reaches_its_full_value():
    """Decays 2/11 and 3/12, then 0.3, since 4/13 is above it."""
    net = Net(1.0)
    average = ModelAverage(net, 0.3)
    wanted = 1.0
    for value, decay in ((3.0, 2 / 11), (-2.0, 3 / 12), (5.0, 0.3), (0.5, 0.3)):
        net.set(value)
        average.update(net)
        wanted = decay * wanted + (1 - decay) * value
        assert average.model.weight.item() == pytest.approx(wanted, abs=1e-15)
        assert average.model.mean.item() == pytest.approx(10 * wanted, abs=1e-14)
    assert average.updates == 4


def test_two_updates_worked_by_hand():
    """1 -> 2/11 * 1 + 9/11 * 12 = 110/11 = 10; then 1/4 * 10 + 3/4 * 2 = 4."""
    net = Net(1.0)
    average = ModelAverage(net, 0.9998)
    seen = []
    for value in (12.0, 2.0):
        net.set(value)
        average.update(net)
        seen.append(average.model.weight.item())
    assert seen == pytest.approx([10.0, 4.0], abs=1e-14)


def test_counters_are_copied():
    net = Net(1.0)
    average = ModelAverage(net, 0.9)
    net.set(7.0)
    average.update(net)
    assert average.model.count.item() == 7


def test_a_shared_tensor_stays_shared_and_moves_once():
    net = Net(1.0)
    average = ModelAverage(net, 0.9)
    assert average.model.tied is average.model.weight
    net.set(12.0)
    average.update(net)
    assert average.model.tied.item() == pytest.approx(10.0)


def test_the_average_is_frozen_and_its_own():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    average = ModelAverage(net, 0.5)
    assert not average.model.training
    assert net.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    before = average.model[0].weight.clone()
    with torch.no_grad():
        net[0].weight.add_(1.0)
    assert torch.equal(average.model[0].weight, before)
