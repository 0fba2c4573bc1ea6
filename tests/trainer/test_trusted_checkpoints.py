"""A checkpoint that somebody else wrote runs nothing when it is resumed."""

import os

import pytest
import torch

from builders_trainer import adapter_of, trainer_of
from qskd.errors import CheckpointError

OPTIONS = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


class Evil:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path, scenes, name):
    trainer_of(tmp_path, scenes, adapter_of("detr"), **OPTIONS).train()
    canary = tmp_path / "canary"
    checkpoint = tmp_path / "checkpoints" / "checkpoint-1"
    torch.save({"state": Evil(canary)}, checkpoint / name)
    with pytest.raises(CheckpointError, match="was not loaded"):
        trainer_of(tmp_path, scenes, adapter_of("detr"), **OPTIONS).train(resume_from_checkpoint=str(checkpoint))
    assert not canary.exists()
    torch.load(checkpoint / name, weights_only=False)
    assert canary.exists(), "the pickle does what it should not"
