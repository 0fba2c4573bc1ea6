"""Settings of a training run: ``TrainingArguments`` with the defaults of detection, and what qskd adds."""

from dataclasses import dataclass, field

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from qskd.errors import ConfigError


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
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after this many evaluations without a better AP; 0 never stops."}
    )

    def __post_init__(self) -> None:
        # `Batch` carries everything at once; nothing of it matches a forward signature.
        self.remove_unused_columns = False
        self.label_names: list[str] | None = []
        self.metric_for_best_model: str | None = getattr(self, "metric_for_best_model", None) or "eval_AP"
        self.greater_is_better = True
        # A NaN must stop the run (NonFiniteLoss), not vanish from the log.
        self.logging_nan_inf_filter = False
        self._refuse_what_cannot_work()
        super().__post_init__()
        if self.device.type != "cuda":
            self.dataloader_pin_memory = False

    def _refuse_what_cannot_work(self) -> None:
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1), 0 switches the average off.")
        if self.load_best_model_at_end:
            raise ConfigError(
                "load_best_model_at_end is not needed: the best weights are always in <output_dir>/best. Leave it out."
            )
        if self.auto_find_batch_size:
            raise ConfigError("auto_find_batch_size changes the run behind your back; set per_device_train_batch_size.")
