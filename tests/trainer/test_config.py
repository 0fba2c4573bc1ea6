from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from qskd.errors import ConfigError
from qskd.trainer import DistillationConfig


def config(folder, **options):
    return DistillationConfig(output_dir=str(folder), use_cpu=True, **options)


def test_every_training_argument_keeps_its_name(tmp_path):
    ours = {field.name for field in fields(DistillationConfig)}
    assert {field.name for field in fields(TrainingArguments)} <= ours
    added = ours - {field.name for field in fields(TrainingArguments)}
    assert added == {
        "backbone_lr_scale",
        "channels_last",
        "detection_weight",
        "distillation_schedule",
        "distillation_warmup_steps",
        "early_stopping_patience",
        "ema_decay",
        "freeze_batch_norm",
    }


def test_what_detection_needs_is_set_whatever_was_asked(tmp_path):
    made = config(tmp_path, remove_unused_columns=True, logging_nan_inf_filter=True, greater_is_better=False)
    assert not made.remove_unused_columns
    assert not made.logging_nan_inf_filter
    assert made.greater_is_better
    assert made.metric_for_best_model == "eval_AP"
    assert not made.dataloader_pin_memory


@pytest.mark.parametrize(
    ("asked", "is_cuda", "expected"),
    [
        ({}, True, (True, True)),
        ({}, False, (False, False)),
        ({"dataloader_pin_memory": False}, True, (False, False)),
        ({"accelerator_config": {"non_blocking": False}}, True, (True, False)),
    ],
)
def test_batches_are_copied_while_the_host_goes_on(tmp_path, asked, is_cuda, expected):
    config = DistillationConfig(output_dir=str(tmp_path), **asked)
    config._settle_copies(is_cuda)
    assert (config.dataloader_pin_memory, config.accelerator_config.non_blocking) == expected


def test_the_best_model_may_be_chosen_by_another_number(tmp_path):
    for name in ("AP50", "eval_AP_small", "AR100"):
        assert config(tmp_path, metric_for_best_model=name).metric_for_best_model == name


def test_what_was_asked_for_is_remembered_as_it_was(tmp_path):
    made = config(
        tmp_path, learning_rate=3e-4, eval_strategy="steps", eval_steps=5, lr_scheduler_kwargs={"num_cycles": 1}
    )
    assert made.given["learning_rate"] == 3e-4
    assert made.given["eval_strategy"] == "steps"
    assert made.given["lr_scheduler_kwargs"] == {"num_cycles": 1}
    assert made.given["metric_for_best_model"] is None  # though it has become eval_AP
    assert made.given["remove_unused_columns"] is True  # though it has become False


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must lie in"),
        ({"ema_decay": -0.1}, "ema_decay is -0.1"),
        ({"load_best_model_at_end": True}, "<output_dir>/best"),
        ({"auto_find_batch_size": True}, "set per_device_train_batch_size"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; give at least 1"),
        ({"per_device_eval_batch_size": -2}, "per_device_eval_batch_size is -2"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"backbone_lr_scale": -1.0}, "backbone_lr_scale is -1.0"),
        ({"detection_weight": -1.0}, "detection_weight is -1.0"),
        ({"distillation_warmup_steps": -1}, "distillation_warmup_steps is -1"),
        ({"distillation_schedule": "cosin"}, "distillation_schedule is 'cosin'; give constant, linear, cosine"),
        ({"seed": -1}, "seed is -1"),
        ({"save_only_model": True}, "checkpoints that cannot be resumed"),
        ({"num_train_epochs": -1}, "num_train_epochs is -1; give more than 0"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing is not supported"),
        ({"metric_for_best_model": "mAP"}, "metric_for_best_model is 'mAP'; give AP, AP50, AP75,"),
        ({"fsdp": "full_shard"}, "fsdp is not supported"),
        ({"lr_scheduler_kwargs": "{"}, "lr_scheduler_kwargs is '{', which is no JSON"),
        ({"lr_scheduler_kwargs": "[1]"}, "lr_scheduler_kwargs is '[1]'; expected a JSON object."),
        ({"lr_scheduler_kwargs": {"min_lr": 1}}, "do not fit lr_scheduler_type cosine: "),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs {} do not fit"),
        ({"early_stopping_patience": 3, "eval_strategy": "no"}, "early_stopping_patience needs evaluations"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"},
            "lr_scheduler_type reduce_lr_on_plateau needs evaluations",
        ),
        (
            {"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"mode": "min"}},
            "lr_scheduler_kwargs has mode min, but AP is better where it is greater",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, options, told):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **options)
    assert told in str(caught.value)


def test_a_mapping_given_as_a_text_is_a_mapping(tmp_path):
    made = config(tmp_path, lr_scheduler_kwargs='{"num_cycles": 1}')
    assert made.given["lr_scheduler_kwargs"] == made.lr_scheduler_kwargs == {"num_cycles": 1}


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_follows_ap_leaves_the_rate_alone_while_ap_rises(tmp_path, name):
    made = config(tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs={"patience": 1})
    assert made.lr_scheduler_kwargs["mode"] == "max"
    for values, falls in ((range(1, 20), False), (range(20, 1, -1), True)):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=made.learning_rate)
        schedule = get_scheduler(name, optimizer, scheduler_specific_kwargs=made.lr_scheduler_kwargs)
        for ap in values:
            schedule.step(ap / 20)
        assert (optimizer.param_groups[0]["lr"] < made.learning_rate) == falls, falls


def test_the_schedules_arguments_are_part_of_what_a_resumed_run_must_keep(tmp_path):
    one = config(tmp_path, lr_scheduler_kwargs={"num_cycles": 1}).trajectory()
    assert one["lr_scheduler_kwargs"] == {"num_cycles": 1}
    assert config(tmp_path).trajectory()["lr_scheduler_kwargs"] == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_seed", 9),
        ("dataloader_drop_last", True),
        ("ignore_data_skip", True),
        ("optim_args", "momentum=0.9"),
        ("train_sampling_strategy", "sequential"),
    ],
)
def test_what_decides_which_images_a_step_sees_must_be_kept_too(tmp_path, name, value):
    one, other = config(tmp_path).trajectory(), config(tmp_path, **{name: value}).trajectory()
    assert {key for key in one if one[key] != other[key]} == {name}


def test_several_processes_get_as_many_batches_each(tmp_path, monkeypatch):
    uneven = {"even_batches": False}
    assert config(tmp_path, accelerator_config=uneven).accelerator_config.even_batches is False  # alone, it may
    monkeypatch.setattr(DistillationConfig, "world_size", 2)
    config(tmp_path)
    with pytest.raises(ConfigError, match="accelerator_config has even_batches false, but there are 2 processes"):
        config(tmp_path, accelerator_config=uneven)
