"""Resuming runs that are over, or that were about to be: no step is added, and what was owed is made up once."""

import os
import signal

import pytest
from transformers import TrainerCallback

from builders_runs import entries_of
from builders_trainer import adapter_of, trainer_of
from qskd.errors import Interrupted
from qskd.trainer import checkpoints, interruptions

# Without learning every evaluation finds the same AP: step 1 has the best, and at step 3 a patience of 2 is over.
STOPS_AT_3 = {
    "learning_rate": 0.0,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "max_steps": 9,
    "early_stopping_patience": 2,
    "ema_decay": 0.0,
}


class At(TrainerCallback):
    """Does something in the middle of a step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.do()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def give_up():
    raise KeyboardInterrupt


def build(folder, scenes, **options):
    return trainer_of(folder, scenes, adapter_of("detr"), **(STOPS_AT_3 | options))


def resumed(folder, scenes, **options):
    trainer = build(folder, scenes, **options)
    trainer.train(resume_from_checkpoint=str(checkpoints.latest(folder / "checkpoints")))
    return trainer


def cut_at(folder, scenes, step, do=terminate, **options):
    trainer = build(folder, scenes, **options)
    trainer.add_callback(At(step, do))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def evaluated(folder):
    return [entry["step"] for entry in entries_of(folder, "eval_AP")]


def test_a_run_that_stopped_early_gains_no_step_by_being_resumed_unless_it_is_given_more_patience(tmp_path, scenes):
    build(tmp_path, scenes).train()
    assert resumed(tmp_path, scenes).state.global_step == 3
    assert evaluated(tmp_path) == [1, 2, 3]
    assert len(entries_of(tmp_path, "train_runtime")) == 1
    assert resumed(tmp_path, scenes, early_stopping_patience=3).state.global_step == 4


def test_a_run_whose_owed_evaluation_would_have_stopped_it_takes_no_step(tmp_path, scenes):
    cut_at(tmp_path, scenes, 3)
    assert evaluated(tmp_path) == [1, 2]
    again = resumed(tmp_path, scenes)
    assert again.state.global_step == 3
    assert evaluated(tmp_path) == [1, 2, 3]
    assert [entry["step"] for entry in entries_of(tmp_path)] == [1, 2, 3]
    assert resumed(tmp_path, scenes).state.global_step == 3
    assert evaluated(tmp_path) == [1, 2, 3]


ENDS_AT_2 = {"max_steps": 2, "early_stopping_patience": 0}


def test_an_evaluation_that_a_checkpoint_owes_is_in_the_log_once(tmp_path, scenes):
    """The checkpoint of step 4 comes before the evaluation at the end of the epoch; the run is killed in step 6."""
    options = {"eval_strategy": "epoch", "save_steps": 4, "max_steps": 6, "early_stopping_patience": 0}
    cut_at(tmp_path, scenes, 6, give_up, **options)
    assert evaluated(tmp_path) == [4]
    resumed(tmp_path, scenes, **options)
    assert evaluated(tmp_path) == [4, 6]


def test_only_the_first_process_logs_the_evaluation_of_a_run_that_is_over(tmp_path, scenes):
    """The checkpoint was written by the first process, and says of itself that it is that."""
    cut_at(tmp_path, scenes, 2, **ENDS_AT_2)
    other = build(tmp_path, scenes, **ENDS_AT_2)
    other.is_world_process_zero = lambda: False
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert other.state.global_step == 2
    assert evaluated(tmp_path) == [1]
    resumed(tmp_path, scenes, **ENDS_AT_2)
    assert evaluated(tmp_path) == [1, 2]


def test_the_best_ap_of_a_run_that_is_over_begins_anew_in_another_folder(tmp_path, scenes):
    cut_at(tmp_path / "one", scenes, 2, **ENDS_AT_2)
    other = build(tmp_path / "two", scenes, **ENDS_AT_2)
    other.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoints" / "checkpoint-2"))
    assert (tmp_path / "two" / "best" / "model.safetensors").is_file()


def test_a_signal_in_the_evaluation_that_a_run_owes_leaves_it_owed(tmp_path, scenes, monkeypatch):
    cut_at(tmp_path, scenes, 2, **ENDS_AT_2)
    goes_on = interruptions.until

    def signalled(asked, batches):
        terminate()
        return goes_on(asked, batches)

    monkeypatch.setattr("qskd.trainer.trainer.until", signalled)
    with pytest.raises(Interrupted, match=r"after step 2\. The last complete checkpoint is .*checkpoint-2"):
        resumed(tmp_path, scenes, **ENDS_AT_2)
    monkeypatch.undo()
    resumed(tmp_path, scenes, **ENDS_AT_2)
    assert evaluated(tmp_path) == [1, 2]


def test_later_checkpoints_stay_until_the_run_that_went_on_from_an_earlier_one_has_its_own(tmp_path, scenes):
    options = {"max_steps": 3, "early_stopping_patience": 0, "save_total_limit": 9, "eval_strategy": "no"}
    build(tmp_path, scenes, **options).train()
    place = tmp_path / "checkpoints"
    again = build(tmp_path, scenes, **options)
    seen = []
    again.add_callback(At(2, lambda: seen.extend(sorted(path.name for path in place.iterdir()))))
    again.train(resume_from_checkpoint=str(place / "checkpoint-1"))
    assert seen == ["abandoned-2", "abandoned-3", "checkpoint-1"]
    assert sorted(path.name for path in place.iterdir()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
