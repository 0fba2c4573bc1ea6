"""Settings of a training run: ``TrainingArguments`` with the defaults of detection, and what qskd adds."""

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from qskd.errors import ConfigError
from qskd.models.compiling import Compiling
from qskd.trainer import refusing

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


@dataclass
class DistillationConfig(TrainingArguments):
    """``transformers.TrainingArguments`` for detectors; every flag keeps its own name.

    What detection always needs (all columns kept, no concatenated predictions) is set here and never asked.
    """

    # Defaults of the field where they differ from those of TrainingArguments.
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (DETR's own: 1e-4)."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay of matrices; never of norms, biases."})
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
    distillation_schedule: refusing.Fading = field(
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
        refusing.refuse_what_cannot_work(self)
        self.compiling = self._take_compiling()
        refusing.check_loggers(self)
        super().__post_init__()
        self.lr_scheduler_kwargs = refusing.settled_schedule(self)
        refusing.check_schedule(self)
        refusing.check_processes(self)
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


def _mapping(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name} is {text!r}, which is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {text!r}; expected a JSON object.")
    return value
