"""What settings of a training cannot be: alone, together, or with the data that is given."""

import math
from dataclasses import fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from transformers import SchedulerType, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from qskd.data.index import DetectionIndex
from qskd.data.statistics import MEDIUM, SMALL
from qskd.errors import ConfigError
from qskd.evaluation.coco_map import CocoMetrics

if TYPE_CHECKING:
    from qskd.trainer.config import DistillationConfig

Fading = Literal["constant", "linear", "cosine"]
_LEAST: dict[str, float] = {
    "backbone_lr_scale": 0.0,
    "detection_weight": 0.0,
    "distillation_warmup_steps": 0,
    "early_stopping_patience": 0,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 1,
    "per_device_train_batch_size": 1,
    "seed": 0,
}

_LESS_MEMORY = "is not supported; for less memory try a smaller batch with gradient_accumulation_steps, or bf16."
_REFUSED = {
    "activation_checkpointing": _LESS_MEMORY,  # the newer name of the same
    "auto_find_batch_size": "changes the run behind your back; set per_device_train_batch_size.",
    "fsdp": "is not supported: a model must fit on one device. Several of them share the images, with torchrun.",
    "gradient_checkpointing": _LESS_MEMORY,
    "save_only_model": "would leave checkpoints that cannot be resumed; best/ and last/ are models alone.",
    "load_best_model_at_end": "is not needed: the best weights are always in <output_dir>/best. Leave it out.",
}
_FOLLOW_AP = ("reduce_lr_on_plateau", "greedy")  # schedules that transformers steps with what is measured
_AREAS = {"small": (0.0, SMALL), "medium": (SMALL, MEDIUM), "large": (MEDIUM, math.inf)}  # pixels, as COCO bins them
_MANY_STEPS = 10**6  # for a schedule that is made only to see whether it can be
_PACKAGES = {"azure_ml": "azureml", "comet_ml": "comet_ml"}  # of loggers that are named otherwise
_METRICS = tuple(entry.name for entry in fields(CocoMetrics) if entry.name.startswith("A"))


def refuse_what_cannot_work(config: "DistillationConfig") -> None:
    """Refuse what is known to be wrong before transformers has looked at the settings.

    Raises:
        ConfigError: says what was given and what to give.
    """
    for name, least in _LEAST.items():
        if getattr(config, name) < least:
            raise ConfigError(f"{name} is {getattr(config, name)}; give at least {least}.")
    for name, reason in _REFUSED.items():
        if getattr(config, name, False):
            raise ConfigError(f"{name} {reason}")
    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        raise ConfigError(f"num_train_epochs is {config.num_train_epochs}; give more than 0, or max_steps.")
    looking = looks_at_ap(config)
    if looking and getattr(config.eval_strategy, "value", config.eval_strategy) == "no":
        raise ConfigError(f"{looking} needs evaluations; set eval_strategy to steps or epoch.")
    _refuse_values(config)


def _refuse_values(config: "DistillationConfig") -> None:
    if not 0.0 <= config.ema_decay < 1.0:
        raise ConfigError(f"ema_decay is {config.ema_decay}; it must lie in [0, 1), 0 switches the average off.")
    if config.distillation_schedule not in get_args(Fading):
        raise ConfigError(
            f"distillation_schedule is '{config.distillation_schedule}'; give {', '.join(get_args(Fading))}."
        )
    if best_by(config) not in _METRICS:
        raise ConfigError(f"metric_for_best_model is '{config.metric_for_best_model}'; give {', '.join(_METRICS)}.")


def looks_at_ap(config: "DistillationConfig") -> str | None:
    """The setting that decides by what evaluations find, if there is one."""
    if config.early_stopping_patience:
        return "early_stopping_patience"
    name = getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)
    return f"lr_scheduler_type {name}" if follows_ap(config) else None


def follows_ap(config: "DistillationConfig") -> bool:
    """Whether the learning rate goes by what is measured."""
    return getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type) in _FOLLOW_AP


def check_data(config: "DistillationConfig", train_images: int | None, val: DetectionIndex | None) -> None:
    """Refuse data with which a training would not do what its settings say.

    Args:
        config: the settings.
        train_images: None where nothing is trained.
        val: on which AP is measured; None where it is not.

    Raises:
        ConfigError: what a setting goes by cannot be measured, or dropping the last batch drops all of them.
    """
    looking, metric = looks_at_ap(config), best_by(config)
    if looking is None and val is not None and metric != "AP":
        looking = "metric_for_best_model"
    if looking and not (val is not None and _tells(val, metric)):
        raise ConfigError(
            f"{looking} goes by {metric}, but there are no validation images with objects that tell it. Leave it out."
        )
    together = config.train_batch_size * config.world_size
    if config.dataloader_drop_last and train_images is not None and train_images < together:
        raise ConfigError(
            f"dataloader_drop_last drops all {train_images} training images: {together} make a batch of every process. "
            "Leave it out, or give a smaller per_device_train_batch_size."
        )


def best_by(config: "DistillationConfig") -> str:
    """The metric that decides what is best, as COCO calls it."""
    return str(config.metric_for_best_model).removeprefix("eval_")


def _tells(val: DetectionIndex, metric: str) -> bool:
    """Whether there is an object that the metric is about."""
    areas = val.annotations.areas[~val.annotations.is_crowd]
    low, high = _AREAS.get(metric.rpartition("_")[2], (0.0, math.inf))
    return bool(((areas >= low) & (areas <= high)).any())


def settled_schedule(config: "DistillationConfig") -> dict[str, Any] | None:
    """The settings of the schedule; one that follows AP is told that more of it is better, and may fall to 0.

    Raises:
        ConfigError: the opposite was asked for.
    """
    given: dict[str, Any] | None = config.lr_scheduler_kwargs
    if not follows_ap(config):
        return given
    name = SchedulerType(config.lr_scheduler_type).value
    # The least rate of "greedy" is 1e-3 by itself: above most of ours, which could only rise.
    settled = {"mode": "max"} | ({"min_lr": 0.0} if name == "greedy" else {}) | (given or {})
    if settled["mode"] != "max":
        raise ConfigError(
            f"lr_scheduler_kwargs has mode {settled['mode']}, but AP is better where it is greater: leave mode out."
        )
    return settled


def check_schedule(config: "DistillationConfig") -> None:
    """Refuse a schedule that could not be made when training starts."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    kwargs = dict(config.lr_scheduler_kwargs or {})
    try:
        get_scheduler(config.lr_scheduler_type, optimizer, 0, _MANY_STEPS, scheduler_specific_kwargs=kwargs)
    except (TypeError, ValueError, KeyError) as error:
        name = SchedulerType(config.lr_scheduler_type).value
        raise ConfigError(f"lr_scheduler_kwargs {kwargs} do not fit lr_scheduler_type {name}: {error}") from error


def check_processes(config: "DistillationConfig") -> None:
    """Refuse batches that are dealt out unevenly: processes would wait for each other in the last ones."""
    if config.world_size > 1 and config.accelerator_config.even_batches is False:
        raise ConfigError(
            f"accelerator_config has even_batches false, but there are {config.world_size} processes: some would "
            "have no batch left where others wait for them. Leave it out."
        )


def check_loggers(config: "DistillationConfig") -> None:
    """Refuse a logger that does not exist or whose library is not installed; transformers would say so later."""
    wanted = [config.report_to] if isinstance(config.report_to, str) else list(config.report_to or [])
    for name in wanted:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(f"report_to is '{name}'; give none, or {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")
        package = _PACKAGES.get(name, name)
        if find_spec(package) is None:
            raise ConfigError(f"report_to is '{name}', but {package} is not installed: `pip install {package}`.")
