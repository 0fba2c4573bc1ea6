import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from builders_runs import complete_checkpoint
from qskd.errors import CheckpointError
from qskd.trainer import checkpoints
from qskd.trainer.ema import ModelAverage

IDENTITY = {"teacher": "abc", "classes": ["cat", "dog"], "method": "qskd"}


class Tied(nn.Module):
    """Two layers with one weight, as detection heads that decoder layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)


def moved(decay: float = 0.9) -> tuple[Tied, ModelAverage]:
    net = Tied()
    average = ModelAverage(net, decay)
    for _ in range(3):
        net.norm(torch.rand(4, 3))
        with torch.no_grad():
            net.first.weight.add_(1.0)
        average.update(net)
    return net, average


def test_everything_saved_comes_back(tmp_path):
    net, average = moved()
    checkpoints.save(tmp_path, net, average, IDENTITY)
    other = Tied()
    other_average = ModelAverage(other, 0.9)
    checkpoints.load(tmp_path, other, other_average, IDENTITY)
    for one, two in ((net, other), (average.model, other_average.model)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[name]), name
    assert other_average.updates == 3
    assert other.second.weight is other.first.weight


def test_a_checkpoint_without_an_average_is_read_without_one(tmp_path):
    net, _ = moved()
    checkpoints.save(tmp_path, net, None, IDENTITY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distiller.safetensors", "identity.json"]
    checkpoints.load(tmp_path, Tied(), None, IDENTITY)


@pytest.mark.parametrize("name", ["distiller.safetensors", "average.safetensors", "identity.json"])
def test_an_incomplete_checkpoint_says_what_is_missing(tmp_path, name):
    net, average = moved()
    checkpoints.save(tmp_path, net, average, IDENTITY)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoints.load(tmp_path, net, average, IDENTITY)


@pytest.mark.parametrize(
    ("key", "value"), [("teacher", "xyz"), ("classes", ["dog", "cat"]), ("method", "none"), ("new", 1)]
)
def test_another_runs_checkpoint_is_refused_before_anything_is_loaded(tmp_path, key, value):
    net, average = moved()
    checkpoints.save(tmp_path, net, average, IDENTITY)
    other = Tied()
    before = other.first.weight.clone()
    with pytest.raises(CheckpointError, match="belongs to another run") as caught:
        checkpoints.load(tmp_path, other, ModelAverage(other, 0.9), IDENTITY | {key: value})
    assert f"its {key} is {IDENTITY.get(key)!r}, this run's is {value!r}" in str(caught.value)
    assert torch.equal(other.first.weight, before)


def test_how_much_learns_is_compared_where_a_checkpoint_says_so(tmp_path):
    net, average = moved()
    (tmp_path / "old").mkdir()
    checkpoints.save(tmp_path / "old", net, average, IDENTITY)
    assert checkpoints.check(tmp_path / "old", IDENTITY | {checkpoints.TRAINED: 3})
    assert checkpoints.check(tmp_path / "old", IDENTITY | {"lapd.hard_negative_box_weight": 1.0})
    with pytest.raises(CheckpointError, match=r"box_weight is 1\.0, this run's is 0\.0"):
        checkpoints.check(tmp_path / "old", IDENTITY | {"lapd.hard_negative_box_weight": 0.0})
    checkpoints.save(tmp_path / "old", net, average, IDENTITY | {"lapd.hard_negative_schedule": "linear"})
    with pytest.raises(CheckpointError, match=r"schedule is 'linear', this run's is 'constant'"):
        checkpoints.check(tmp_path / "old", IDENTITY)
    checkpoints.save(tmp_path, net, average, IDENTITY | {checkpoints.TRAINED: 3})
    with pytest.raises(CheckpointError, match=r"number of tensors that learn .* is 3, this run's is 4"):
        checkpoints.check(tmp_path, IDENTITY | {checkpoints.TRAINED: 4})


def test_the_identity_is_readable(tmp_path):
    net, average = moved()
    checkpoints.save(tmp_path, net, average, IDENTITY)
    assert json.loads((tmp_path / "identity.json").read_text()) == IDENTITY | {"average_updates": 3}
    assert load_file(tmp_path / "average.safetensors").keys() == load_file(tmp_path / "distiller.safetensors").keys()


def write(folder, *steps, complete=True):
    for step in steps:
        made = complete_checkpoint(folder / f"checkpoint-{step}", 1)
        if not complete:
            (made / "trainer_state.json").unlink()


def test_the_latest_checkpoint_is_the_complete_one_of_the_greatest_step(tmp_path):
    write(tmp_path, 9, 10, 100, "best")
    write(tmp_path, 101, complete=False)
    (tmp_path / "checkpoint-102").write_text("a file")
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-100"
    assert checkpoints.latest(tmp_path, before=100) == tmp_path / "checkpoint-10"
    assert checkpoints.latest(tmp_path, before=9) is None
    assert checkpoints.latest(tmp_path / "nowhere") is None


PARTS = sorted(path for path in ("trainer_state.json", "identity.json", "distiller.safetensors", "average.safetensors"))
STATES = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.mark.parametrize("name", PARTS + STATES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, name, share):
    """Cut off at any place, as by a copy that ended early."""
    write(tmp_path, 4, 6)
    torn = tmp_path / "checkpoint-6" / name
    data = torn.read_bytes()
    torn.write_bytes(data[: int(share * len(data))])
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-4"
    assert f"checkpoint-6 is passed over: it is no complete checkpoint, {name} is damaged" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_state_of_a_loss_scaler_is_noticed_though_few_runs_have_one(tmp_path, share):
    write(tmp_path, 4, 6)
    for step in (4, 6):
        torch.save({"scale": 1024.0}, tmp_path / f"checkpoint-{step}" / "scaler.pt")
    torn = tmp_path / "checkpoint-6" / "scaler.pt"
    torn.write_bytes(torn.read_bytes()[: int(share * torn.stat().st_size)])
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-4"
    assert checkpoints.damage_of(tmp_path / "checkpoint-6") == "scaler.pt is damaged"


@pytest.mark.parametrize("step", ["\u00b2", "\u2460", "-1", "1e3", "0x1", " "])
def test_a_folder_whose_step_is_no_number_is_no_checkpoint(tmp_path, step):
    write(tmp_path, 4, step)
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.parametrize("name", PARTS + STATES[:2])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(tmp_path, caplog, name):
    write(tmp_path, 4, 6)
    (tmp_path / "checkpoint-6" / name).unlink()
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-4"
    assert f"{name} is missing" in caplog.text


def test_what_is_half_written_is_no_checkpoint_and_is_removed(tmp_path):
    write(tmp_path, 4)
    write(tmp_path / ".unfinished", 6)
    complete_checkpoint(tmp_path / ".checkpoint-2.tmp", 2)  # on its way out
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-4"
    checkpoints.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_the_oldest_go_but_neither_the_newest_nor_the_best(tmp_path):
    write(tmp_path, 2, 4, 6, 8, 10)
    best, newest = str(tmp_path / "checkpoint-4"), tmp_path / "checkpoint-6"  # run again from checkpoint-4
    checkpoints.rotate(tmp_path, None, newest, best)
    assert len(list(tmp_path.iterdir())) == 5
    checkpoints.rotate(tmp_path, 3, newest, best)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-6", "checkpoint-10"}
    checkpoints.rotate(tmp_path, 1, newest, best)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-6"}
    checkpoints.rotate(tmp_path, 1, newest, None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-6"}


def test_the_oldest_is_the_one_of_the_least_step_whenever_it_was_copied(tmp_path):
    write(tmp_path, 50, 100, 150)
    for step, time in ((100, 1e9), (50, 1e9 + 5), (150, 1e9 + 90)):
        os.utime(tmp_path / f"checkpoint-{step}", (time, time))
    checkpoints.rotate(tmp_path, 2, tmp_path / "checkpoint-150", None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-100", "checkpoint-150"}


def test_a_run_that_goes_on_from_an_earlier_checkpoint_does_not_go_back_to_later_ones(tmp_path):
    write(tmp_path, 50, 75, 100)
    checkpoints.set_aside(tmp_path, tmp_path / "checkpoint-100")
    assert checkpoints.latest(tmp_path).name == "checkpoint-100"
    checkpoints.set_aside(tmp_path, tmp_path / "checkpoint-50")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-50", "abandoned-75", "abandoned-100"}
    assert checkpoints.latest(tmp_path).name == "checkpoint-50"
    checkpoints.forget_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-50"}


def test_checkpoints_of_another_folder_set_nothing_aside(tmp_path):
    write(tmp_path / "one", 50)
    write(tmp_path / "two", 75)
    checkpoints.set_aside(tmp_path / "two", tmp_path / "one" / "checkpoint-50")
    assert checkpoints.latest(tmp_path / "two").name == "checkpoint-75"
