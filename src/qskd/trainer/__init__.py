"""Training and distillation on ``transformers.Trainer``."""

from qskd.trainer.config import DistillationConfig
from qskd.trainer.trainer import DistillationTrainer, UnlabeledImages

__all__ = ["DistillationConfig", "DistillationTrainer", "UnlabeledImages"]
