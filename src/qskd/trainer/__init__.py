"""Training and distillation on ``transformers.Trainer``."""

from qskd.trainer.config import DistillationConfig
from qskd.trainer.trainer import DistillationTrainer
from qskd.trainer.unlabeled import UnlabeledImages

__all__ = ["DistillationConfig", "DistillationTrainer", "UnlabeledImages"]
