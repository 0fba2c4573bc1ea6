"""How a command leaves the other processes; two of them that do are in ``invariants``."""

import pytest
import torch

from qskd.runs import processes


@pytest.fixture
def connected():
    """This process connected to none but itself."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("backend", "ended_well", "stays"),
    [("gloo", True, False), ("gloo", False, False), ("nccl", True, False), ("nccl", False, True)],
)
def test_a_command_disconnects_unless_nccl_might_wait_for_a_process_that_failed(
    connected, monkeypatch, backend, ended_well, stays
):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    processes.part(ended_well=ended_well)
    assert torch.distributed.is_initialized() is stays


def test_a_process_alone_has_nothing_to_disconnect():
    processes.part(ended_well=True)


@pytest.mark.parametrize(("given", "found"), [({}, (0, 1, 1)), ({"RANK": "5", "WORLD_SIZE": "8"}, (5, 8, 1))])
def test_the_launcher_says_which_process_this_is(monkeypatch, given, found):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, given.get(name, ""))
    assert (processes.rank(), processes.world(), processes.on_this_machine()) == found
