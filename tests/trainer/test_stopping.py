"""Runs that stop before their last step: what they say and what they leave."""

import errno

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from builders_runs import edited, entries_of, without_objects
from builders_trainer import adapter_of, dataset, trainer_of
from qskd.data.batch import collate
from qskd.errors import ConfigError, NonFiniteLoss
from qskd.trainer.refusing import check_data
from qskd.trainer.trainer import StepInput


class Poison(TrainerCallback):
    """Fills one weight of the student with NaN after a step, as a division by zero in an optimiser would."""

    def __init__(self, step, trainer, value=float("nan")):
        self.step, self.trainer, self.value = step, trainer, value

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(self.trainer.distiller.student.parameters()).fill_(self.value)


def poisoned(folder, scenes, step, **options):
    trainer = trainer_of(folder, scenes, adapter_of("detr"), **({"max_steps": 9} | options))
    trainer.add_callback(Poison(step, trainer))
    return trainer


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_its_batch(tmp_path, scenes):
    trainer = poisoned(tmp_path, scenes, 3, save_strategy="steps", save_steps=2)
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.train()
    said = str(caught.value)
    assert "The loss at step 4 is not finite: loss" in said
    assert f"The last good checkpoint is {tmp_path}/checkpoints/checkpoint-2" in said
    assert "--learning_rate" in said
    batch = torch.load(tmp_path / "nonfinite_step4.pt", weights_only=True)
    assert batch["pixels"].shape == (4, 3, 64, 64)
    assert str(list(batch["image_ids"])) in said
    known = {record.id for record in trainer.train_dataset.index.images}
    assert set(batch["image_ids"]) <= known
    assert batch["labels"].shape == batch["boxes"].shape[:2]
    assert batch["parts"]["loss"] != batch["parts"]["loss"]
    # The step was not taken, and nothing of it was logged.
    assert trainer.state.global_step == 3
    assert [entry["step"] for entry in entries_of(tmp_path)] == [1, 2, 3]


def test_a_batch_that_cannot_be_saved_hides_no_loss_that_is_not_finite(tmp_path, scenes, monkeypatch):
    def full(content, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    trainer = poisoned(tmp_path, scenes, 1)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(NonFiniteLoss, match=r"step 2 is not .* could not be saved to .*\(No space left on device\)"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_each_of_several_processes_saves_a_batch_of_its_own(tmp_path, scenes, monkeypatch):
    batches = []
    for process in (0, 1):
        trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=1)
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
        monkeypatch.setattr(type(trainer.args), "process_index", process)
        batch = collate([dataset(scenes, "val")[process]])
        with pytest.raises(NonFiniteLoss, match=f"nonfinite_step1_process{process}.pt"):
            trainer._stop(StepInput(batch, None, None, None), {"loss": float("nan")})
        monkeypatch.undo()
        batches.append(batch.image_ids)
    saved = [torch.load(path, weights_only=True)["image_ids"] for path in sorted(tmp_path.glob("nonfinite_step1_*.pt"))]
    assert saved == batches
    assert saved[0] != saved[1]


@pytest.mark.parametrize("family", ["rt_detr", "d_fine", "lw_detr", "deformable_detr"])
def test_a_family_with_a_loss_of_its_own_stops_in_the_same_way(tmp_path, scenes, family):
    """Hugging Face's matchers refuse predictions that are not finite before there is a loss."""
    student = adapter_of(family)
    trainer = trainer_of(tmp_path, scenes, student, max_steps=3, size=128)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(NonFiniteLoss, match="The loss at step 1 is not finite"):
        trainer.train()
    assert (tmp_path / "nonfinite_step1.pt").is_file()


def test_the_last_good_checkpoint_can_be_resumed(tmp_path, scenes):
    with pytest.raises(NonFiniteLoss):
        poisoned(tmp_path, scenes, 3, save_strategy="steps", save_steps=2).train()
    again = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert [entry["step"] for entry in entries_of(tmp_path)] == [1, 2, 3, 4]


def test_a_learning_rate_that_is_far_too_high_is_noticed(tmp_path, scenes):
    """After the first step all weights are about 1e30; the checkpoint of that step is not called good."""
    options = {"learning_rate": 1e30, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=5, **options)
    with pytest.raises(NonFiniteLoss, match="The loss at step 2 is not finite") as caught:
        trainer.train()
    assert "No good checkpoint had been written yet" in str(caught.value)


def test_weights_that_are_not_finite_are_not_saved(tmp_path, scenes):
    trainer = poisoned(tmp_path, scenes, 2, save_strategy="steps", save_steps=1, save_total_limit=1)
    with pytest.raises(NonFiniteLoss, match="The weights after step 2 are not finite") as caught:
        trainer.train()
    kept = tmp_path / "checkpoints" / "checkpoint-1"
    assert f"The last good checkpoint is {kept}" in str(caught.value)
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "distiller.safetensors").values())


@pytest.mark.parametrize("max_grad_norm", [0.1, 0.0], ids=["clipped", "not-clipped"])
def test_a_gradient_that_is_not_finite_is_never_applied(tmp_path, scenes, max_grad_norm):
    """The loss is finite; its gradient overflows on the way back, as behind an almost vertical slope."""
    student = adapter_of("detr")
    next(student.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    trainer = trainer_of(tmp_path, scenes, student, max_steps=2, max_grad_norm=max_grad_norm)
    with pytest.raises(NonFiniteLoss, match="The gradient norm at step 1 is"):
        trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in student.model.state_dict().items())


def test_weights_that_are_not_finite_are_not_evaluated(tmp_path, scenes):
    trainer = poisoned(tmp_path, scenes, 2, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=1)
    with pytest.raises(NonFiniteLoss, match="The weights after step 2 are not finite; nothing can be measured"):
        trainer.train()


# Without learning every evaluation finds the same AP.
EVALUATE = {"learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def test_a_run_stops_early_when_its_ap_does_not_rise(tmp_path, scenes):
    """The AP of step 1 is the best there will be; two evaluations later the patience of 2 is over."""
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=9, early_stopping_patience=2, **EVALUATE)
    trainer.train()
    assert len({entry["eval_AP"] for entry in entries_of(tmp_path, "eval_AP")}) == 1
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(
    ("options", "has_val", "told"),
    [
        ({"early_stopping_patience": 2, **EVALUATE}, False, "early_stopping_patience goes by AP, but there are no"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", **EVALUATE},
            False,
            "lr_scheduler_type reduce_lr_on_plateau goes by AP, but there are no validation images with objects",
        ),
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 64},
            True,
            "dataloader_drop_last drops all 16 training images: 64 make a batch",
        ),
    ],
)
def test_data_with_which_settings_would_do_nothing_is_refused(tmp_path, scenes, options, has_val, told):
    with pytest.raises(ConfigError) as caught:
        trainer_of(tmp_path, scenes, adapter_of("detr"), has_val=has_val, **options)
    assert told in str(caught.value)


def crowds(content):
    for entry in content["annotations"]:
        entry["iscrowd"] = 1


@pytest.mark.parametrize("change", [without_objects, crowds])
def test_what_goes_by_ap_needs_an_image_with_an_object(tmp_path, scenes, change):
    options = {"early_stopping_patience": 2, **EVALUATE}
    args = trainer_of(tmp_path, scenes, adapter_of("detr"), **options).args
    index = dataset(edited(scenes, tmp_path / "data", change, "val"), "val").index
    assert len(index) > 0
    with pytest.raises(ConfigError, match="no validation images with objects"):
        check_data(args, 16, index)


@pytest.mark.parametrize("options", [{}, {"early_stopping_patience": 2}, {"lr_scheduler_type": "greedy"}])
def test_a_metric_of_objects_that_there_are_none_of_is_refused(tmp_path, scenes, options):
    given = {"metric_for_best_model": "AP_large", **EVALUATE} | options
    with pytest.raises(ConfigError, match="goes by AP_large, but there are no validation images with objects that"):
        trainer_of(tmp_path, scenes, adapter_of("detr"), **given)
    trainer_of(tmp_path, scenes, adapter_of("detr"), **given | {"metric_for_best_model": "AP_small"})


def test_a_resumed_run_goes_on_counting(tmp_path, scenes):
    options = {"early_stopping_patience": 2, **EVALUATE}
    trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=2, **options).train()
    resumed = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=9, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert resumed.state.global_step == 3


def test_patience_may_be_asked_for_when_resuming(tmp_path, scenes):
    trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=1, **EVALUATE).train()
    resumed = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=9, early_stopping_patience=1, **EVALUATE)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-1"))
    assert resumed.state.global_step == 2
