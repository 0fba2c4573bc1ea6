"""What the first of several processes decides for all; whole runs of two are in ``invariants``."""

import pytest
import torch

from qskd.errors import ConfigError
from qskd.trainer.agreement import decided


@pytest.fixture
def second_of_two(monkeypatch):
    """Makes this process the second one, to which the first sends an answer."""

    def become(answer):
        def receive(objects, src):
            assert src == 0
            objects[:] = [answer]

        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        monkeypatch.setattr(torch.distributed, "broadcast_object_list", receive)

    return become


def not_asked():
    raise AssertionError("only the first process looks")


def test_a_process_alone_decides_for_itself():
    assert decided(lambda: 3) == 3


def test_another_process_takes_what_the_first_found(second_of_two):
    second_of_two("checkpoint-2")
    assert decided(not_asked) == "checkpoint-2"


def test_another_process_raises_what_the_first_raised(second_of_two):
    second_of_two(ConfigError("holds another run"))
    with pytest.raises(ConfigError, match="holds another run"):
        decided(not_asked)


def test_the_first_process_sends_its_error_before_it_raises_it(monkeypatch):
    sent = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda objects, src: sent.extend(objects))
    with pytest.raises(ConfigError, match="no checkpoint"):
        decided(lambda: (_ for _ in ()).throw(ConfigError("no checkpoint")))
    assert isinstance(sent[0], ConfigError)
