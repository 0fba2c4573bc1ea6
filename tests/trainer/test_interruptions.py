"""Ctrl-C and SIGTERM during a training: a checkpoint, a message, and a resumed run that is the uninterrupted one."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from builders_runs import entries_of
from builders_trainer import adapter_of, trainer_of
from qskd.errors import Interrupted
from qskd.trainer import checkpoints, interruptions

EVERY_2 = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4}


class Signal(TrainerCallback):
    """Sends this process signals when a step begins."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


def build(folder, scenes, **options):
    given = {"max_steps": 6, "lr_scheduler_type": "cosine", "ema_decay": 0.9, **EVERY_2} | options
    return trainer_of(folder, scenes, adapter_of("detr", dropout=0.1), **given)


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.distiller.state_dict().items()}


def assert_goes_on(folder, scenes, whole, **options):
    """The resumed run has the weights and the log of the whole one."""
    torch.manual_seed(99)
    resumed = build(folder, scenes, **options)
    resumed.train(resume_from_checkpoint=str(checkpoints.latest(folder / "checkpoints")))
    wanted = weights(whole)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(resumed).items())
    for key in ("loss", "eval_AP"):
        assert entries_of(folder, key) == entries_of(whole.run_folder, key), key
    assert resumed.state.best_global_step == whole.state.best_global_step
    assert load_file(folder / "best/model.safetensors").keys()
    return resumed


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
@pytest.mark.parametrize("step", [3, 4], ids=["between-evaluations", "where-one-is-due"])
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(tmp_path, scenes, number, name, step):
    whole = build(tmp_path / "whole", scenes)
    whole.train()
    before = signal.getsignal(number)
    cut = build(tmp_path / "cut", scenes)
    cut.add_callback(Signal(step, number))
    with pytest.raises(Interrupted, match=f"ended by {name} after step {step}") as caught:
        cut.train()
    assert signal.getsignal(number) is before
    assert caught.value.signal == number
    kept = tmp_path / "cut" / "checkpoints" / f"checkpoint-{step}"
    assert f"The last complete checkpoint is {kept}" in str(caught.value)
    assert "--resume_from_checkpoint last" in str(caught.value)
    assert (kept / "evaluation_due").is_file() is (step == 4)
    assert_goes_on(tmp_path / "cut", scenes, whole)


def test_a_signal_at_the_end_of_an_epoch_leaves_its_evaluation_to_the_resumed_run(tmp_path, scenes):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch"}  # 16 images, 4 a step
    whole = build(tmp_path / "whole", scenes, **options)
    whole.train()
    cut = build(tmp_path / "cut", scenes, **options)
    cut.add_callback(Signal(4, signal.SIGTERM))
    with pytest.raises(Interrupted, match="after step 4"):
        cut.train()
    assert entries_of(tmp_path / "cut", "eval_AP") == []
    assert_goes_on(tmp_path / "cut", scenes, whole, **options)


AMID_AN_EPOCH = {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 9, "max_steps": 2}


def test_a_signal_in_a_last_step_amid_an_epoch_leaves_its_evaluation_to_the_resumed_run(tmp_path, scenes):
    cut = build(tmp_path, scenes, **AMID_AN_EPOCH)
    cut.add_callback(Signal(2, signal.SIGTERM))
    with pytest.raises(Interrupted, match="after step 2"):
        cut.train()
    kept = tmp_path / "checkpoints" / "checkpoint-2"
    assert not (tmp_path / "best").exists()
    build(tmp_path, scenes, **AMID_AN_EPOCH).train(resume_from_checkpoint=str(kept))
    assert [entry["step"] for entry in entries_of(tmp_path, "eval_AP")] == [2]
    assert (tmp_path / "best" / "model.safetensors").is_file()


def test_a_kill_in_the_last_evaluation_leaves_it_to_the_resumed_run(tmp_path, scenes, monkeypatch):
    cut = build(tmp_path, scenes, **AMID_AN_EPOCH)
    monkeypatch.setattr(cut, "evaluate", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cut.train()
    kept = tmp_path / "checkpoints" / "checkpoint-2"
    build(tmp_path, scenes, **AMID_AN_EPOCH).train(resume_from_checkpoint=str(kept))
    assert [entry["step"] for entry in entries_of(tmp_path, "eval_AP")] == [2]


@pytest.mark.parametrize(("delay", "is_due"), [(1, True), (2, False)])
def test_no_evaluation_is_due_before_the_first_one_that_was_asked_for(tmp_path, scenes, delay, is_due):
    options = {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 4, "max_steps": 5}
    build(tmp_path, scenes, **options, eval_delay=delay).train()
    assert (tmp_path / "checkpoints" / "checkpoint-4" / "evaluation_due").is_file() is is_due


@pytest.mark.parametrize("step", [4, 6], ids=["amid", "after-the-last-step"])
def test_a_signal_during_an_evaluation_leaves_it_to_the_resumed_run(tmp_path, scenes, monkeypatch, step):
    whole = build(tmp_path / "whole", scenes)
    whole.train()
    cut = build(tmp_path / "cut", scenes, per_device_eval_batch_size=2)

    def signalled(asked, batches):
        for place, batch in enumerate(interruptions_until(asked, batches)):
            if place == 1 and cut.state.global_step == step:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    interruptions_until = interruptions.until
    monkeypatch.setattr("qskd.trainer.trainer.until", signalled)
    with pytest.raises(Interrupted, match=f"ended by Ctrl-C after step {step}"):
        cut.train()
    monkeypatch.undo()
    assert checkpoints.latest(tmp_path / "cut" / "checkpoints").name == f"checkpoint-{step}"
    assert_goes_on(tmp_path / "cut", scenes, whole)


@pytest.mark.parametrize("strategy", ["epoch", "no"])
def test_a_signal_after_the_last_moment_to_ask_is_heeded_too(tmp_path, scenes, monkeypatch, strategy):
    """While the last checkpoint is written, or where none is: the run must not go on to measuring."""
    options = {"save_strategy": strategy, "eval_strategy": "no", "max_steps": 2}
    cut = build(tmp_path, scenes, **options)
    place, name = (checkpoints, "rotate") if strategy == "epoch" else (cut, "_finalize_training")
    goes_on = getattr(place, name)

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return goes_on(*arguments)

    monkeypatch.setattr(place, name, signalled)
    with pytest.raises(Interrupted, match=r"ended by SIGTERM after step 2\. The last complete checkpoint is .*-2:"):
        cut.train()
    monkeypatch.undo()
    resumed = build(tmp_path, scenes, **options)
    resumed.train(resume_from_checkpoint=str(checkpoints.latest(tmp_path / "checkpoints")))
    wanted = weights(cut)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(resumed).items())


def test_a_second_ctrl_c_leaves_at_once_and_the_last_checkpoint_stays(tmp_path, scenes, capfd):
    trainer = build(tmp_path, scenes)
    trainer.add_callback(Signal(5, signal.SIGINT, signal.SIGINT))
    with pytest.raises(Interrupted, match="left at once"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert checkpoints.latest(tmp_path / "checkpoints").name == "checkpoint-4"
    assert "Ctrl-C leaves at once" in capfd.readouterr().err


def test_a_scheduler_that_repeats_itself_gets_one_checkpoint(tmp_path, scenes):
    trainer = build(tmp_path, scenes)
    trainer.add_callback(Signal(3, signal.SIGTERM, signal.SIGTERM, signal.SIGTERM))
    with pytest.raises(Interrupted, match="SIGTERM after step 3"):
        trainer.train()


def test_a_signal_that_kills_the_loading_processes_too_loses_no_step(tmp_path, scenes):
    """As a scheduler sends it, to every process of a job."""
    whole = build(tmp_path / "whole", scenes)
    whole.train()
    cut = build(tmp_path / "cut", scenes, dataloader_num_workers=1)

    class ToAll(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                children = torch.multiprocessing.active_children()
                assert children
                for child in children:
                    subprocess.run(["kill", str(child.pid)], check=True)  # by a process that is not its parent
                os.kill(os.getpid(), signal.SIGTERM)

    cut.add_callback(ToAll())
    with pytest.raises(Interrupted, match="SIGTERM after step"):
        cut.train()
    assert checkpoints.latest(tmp_path / "cut" / "checkpoints").name in ("checkpoint-3", "checkpoint-4")
    assert_goes_on(tmp_path / "cut", scenes, whole)


def test_a_signal_before_the_first_step_leaves_no_checkpoint(tmp_path, scenes, monkeypatch):
    trainer = build(tmp_path, scenes, eval_on_start=True)
    measured = trainer.get_eval_dataloader

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return measured(*arguments)

    monkeypatch.setattr(trainer, "get_eval_dataloader", signalled)
    with pytest.raises(Interrupted, match=r"after step 0\. No checkpoint had been written yet"):
        trainer.train()


ENDS = {
    "an epoch": "loader = shield(DataLoader(Numbers(), num_workers=2, persistent_workers=True)); list(loader)",
    "an error that keeps its frames": "iterator = iter(shield(DataLoader(Numbers(), num_workers=2))); next(iterator)",
    "a resumed epoch": (
        "loader = Accelerator(cpu=True).prepare(DataLoader(Numbers(), num_workers=2));"
        "iterator = iter(skip_first_batches(shield(loader), 2)); next(iterator)"
    ),
    "an error that is forgotten": (
        "iterator = iter(shield(DataLoader(Numbers(), num_workers=2))); next(iterator); del iterator"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("left", ENDS)
def test_a_process_ends_although_what_loads_for_it_outlives(left):
    """At its end multiprocessing sends SIGTERM to such processes, which go on at that of others, and waits for them."""
    script = (
        "import multiprocessing\n"
        "from accelerate import Accelerator, skip_first_batches\n"
        "from torch.utils.data import DataLoader, Dataset\n"
        "from qskd.trainer.interruptions import shield\n"
        "multiprocessing.get_logger()\n"  # makes multiprocessing's the first of the functions at the end
        "class Numbers(Dataset):\n"
        "    def __len__(self): return 50\n"
        "    def __getitem__(self, number): return number\n"
        f"{ENDS[left]}\n"
        "print('done')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("done\n", "")
