"""Settings of a training run: ``TrainingArguments`` with the defaults of detection, and what qskd adds."""

import json
import math
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from qskd.errors import ConfigError
from qskd.evaluation.coco_map import CocoMetrics
from qskd.models.compiling import Compiling

_Fading = Literal["constant", "linear", "cosine"]
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
_TRAJECTORY = (  # decide what a run learns, so they must stay when it is resumed
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "backbone_lr_scale",
    "bf16",
    "data_seed",
    "dataloader_drop_last",
    "detection_weight",
    "distillation_warmup_steps",
    "ema_decay",
    "fp16",
    "ignore_data_skip",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "optim",
    "optim_args",
    "seed",
    "train_sampling_strategy",
    "warmup_steps",
    "weight_decay",
)
_MANY_STEPS = 10**6  # for a schedule that is made only to see whether it can be
_PACKAGES = {"azure_ml": "azureml", "comet_ml": "comet_ml"}  # of loggers that are named otherwise
_METRICS = tuple(entry.name for entry in fields(CocoMetrics) if entry.name.startswith("A"))


@dataclass
class DistillationConfig(TrainingArguments):
    """``transformers.TrainingArguments`` for detectors; every flag keeps its own name.

    What detection always needs (all columns kept, no concatenated predictions) is set here and never asked.
    """

    # Defaults of the field where they differ from those of TrainingArguments.
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (DETR's own: 1e-4)."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay of matrices; never of norms and biases."})
    max_grad_norm: float = field(default=0.1, metadata={"help": "Gradient clipping (DETR's own: 0.1)."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    eval_strategy: IntervalStrategy | str = field(
        default="epoch", metadata={"help": "When to measure AP on the validation split."}
    )
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When to write a checkpoint for resuming."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept for resuming."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log lines."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 - HfArgumentParser reads it in this order
        default="none", metadata={"help": "tensorboard, wandb, mlflow, trackio, none."}
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that load images."})
    # Ours.
    backbone_lr_scale: float = field(
        default=1.0,
        metadata={"help": "Factor on the learning rate of the backbone; 0.1 suits a pretrained one."},
    )
    ema_decay: float = field(
        default=0.9998,
        metadata={"help": "Decay of the moving average that is evaluated and kept; 0 switches it off."},
    )
    detection_weight: float = field(default=1.0, metadata={"help": "Weight of the student's own detection loss."})
    distillation_warmup_steps: int = field(
        default=0, metadata={"help": "Steps over which the distillation terms grow from 0 to their weight."}
    )
    distillation_schedule: _Fading = field(
        default="constant",
        metadata={"help": "What the distillation terms do after their warm-up: stay, or fade to 0 at the end."},
    )
    channels_last: bool = field(
        default=False,
        metadata={"help": "Keep the weights of the student's convolutions in channels-last memory; same results."},
    )
    freeze_batch_norm: bool = field(
        default=False,
        metadata={"help": "Keep the batch norms of the student's backbone as they are; for pretrained backbones."},
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after this many evaluations without a better AP; 0 never stops."}
    )

    def __post_init__(self) -> None:
        self._read_mappings()
        # As asked for, before anything below or in the base class settles it; a second instance to compare with
        # would reset accelerate's state.
        self.given: dict[str, Any] = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}
        # `Batch` carries everything at once; nothing of it matches a forward signature.
        self.remove_unused_columns = False
        self.label_names: list[str] | None = []
        self.metric_for_best_model: str | None = getattr(self, "metric_for_best_model", None) or "eval_AP"
        self.greater_is_better = True
        # A NaN must stop the run (NonFiniteLoss), not vanish from the log.
        self.logging_nan_inf_filter = False
        self._refuse_what_cannot_work()
        self.compiling = self._take_compiling()
        self._check_loggers()
        super().__post_init__()
        self._check_schedule()
        self._check_processes()
        self._settle_copies(self.device.type == "cuda")
        # One process uses one device: nn.DataParallel cannot split a Batch. `torchrun` uses them all.
        self._n_gpu: int = min(int(self.n_gpu), 1)

    def _settle_copies(self, is_cuda: bool) -> None:
        """Batches go to a GPU from pinned memory while the host goes on, unless something else was asked for."""
        self.dataloader_pin_memory: bool = is_cuda and self.given["dataloader_pin_memory"]
        if self.dataloader_pin_memory and self.given["accelerator_config"] is None:
            self.accelerator_config.non_blocking = True

    def trajectory(self) -> dict[str, Any]:
        """The settings that decide what a run learns, as plain values; how long it learns is not among them."""
        settings = {name: getattr(self, name) for name in _TRAJECTORY}
        images = self.train_batch_size * self.world_size * self.gradient_accumulation_steps
        settings["lr_scheduler_kwargs"] = dict(self.lr_scheduler_kwargs or {})
        return {name: getattr(value, "value", value) for name, value in settings.items()} | {"images per step": images}

    def steps_for(self, images: int) -> int:
        """Optimiser steps of a whole run on so many training images."""
        if self.max_steps > 0:
            return int(self.max_steps)
        whole = math.floor if self.dataloader_drop_last else math.ceil
        batches = max(whole(images / (self.train_batch_size * self.world_size)), 1)
        return math.ceil(self.num_train_epochs * math.ceil(batches / self.gradient_accumulation_steps))

    def _read_mappings(self) -> None:
        """Options that are mappings, also where a flag gave them as a text."""
        for name in ("accelerator_config", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs"):
            text = getattr(self, name)
            if isinstance(text, str) and (text.startswith("{") or name.endswith("_kwargs")):
                setattr(self, name, _mapping(name, text))

    def _take_compiling(self) -> Compiling | None:
        """What ``torch_compile`` asks for, kept from the base class, which would compile the whole model."""
        wanted = {
            name: getattr(self, name) for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode")
        }
        if not any(wanted.values()):
            return None
        for name in wanted:
            setattr(self, name, None)
        return Compiling(wanted["torch_compile_backend"] or "inductor", wanted["torch_compile_mode"])

    def _check_schedule(self) -> None:
        """Refuse a schedule that could not be made when training starts."""
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.learning_rate)
        kwargs = dict(self.lr_scheduler_kwargs or {})
        try:
            get_scheduler(self.lr_scheduler_type, optimizer, 0, _MANY_STEPS, scheduler_specific_kwargs=kwargs)
        except (TypeError, ValueError, KeyError) as error:
            name = SchedulerType(self.lr_scheduler_type).value
            raise ConfigError(f"lr_scheduler_kwargs {kwargs} do not fit lr_scheduler_type {name}: {error}") from error

    def _check_processes(self) -> None:
        """Refuse batches that are dealt out unevenly: processes would wait for each other in the last ones."""
        if self.world_size > 1 and self.accelerator_config.even_batches is False:
            raise ConfigError(
                f"accelerator_config has even_batches false, but there are {self.world_size} processes: some would "
                "have no batch left where others wait for them. Leave it out."
            )

    def _check_loggers(self) -> None:
        """Refuse a logger that does not exist or whose library is not installed; transformers would say so later."""
        wanted = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
        for name in wanted:
            if name in ("none", "all"):
                continue
            if name not in INTEGRATION_TO_CALLBACK:
                raise ConfigError(f"report_to is '{name}'; give none, or {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")
            package = _PACKAGES.get(name, name)
            if find_spec(package) is None:
                raise ConfigError(f"report_to is '{name}', but {package} is not installed: `pip install {package}`.")

    def _refuse_what_cannot_work(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {least}.")
        for name, reason in _REFUSED.items():
            if getattr(self, name, False):
                raise ConfigError(f"{name} {reason}")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ConfigError(f"num_train_epochs is {self.num_train_epochs}; give more than 0, or max_steps.")
        if self.early_stopping_patience and getattr(self.eval_strategy, "value", self.eval_strategy) == "no":
            raise ConfigError("early_stopping_patience needs evaluations; set eval_strategy to steps or epoch.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1), 0 switches the average off.")
        if self.distillation_schedule not in get_args(_Fading):
            raise ConfigError(
                f"distillation_schedule is '{self.distillation_schedule}'; give {', '.join(get_args(_Fading))}."
            )
        if str(self.metric_for_best_model).removeprefix("eval_") not in _METRICS:
            raise ConfigError(f"metric_for_best_model is '{self.metric_for_best_model}'; give {', '.join(_METRICS)}.")


def _mapping(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name} is {text!r}, which is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {text!r}; expected a JSON object.")
    return value
