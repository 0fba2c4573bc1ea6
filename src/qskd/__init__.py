"""qskd: make a big detection transformer small, by Knowledge Distillation via Query Selection."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qskd.errors import QskdError as QskdError
    from qskd.models.loading import load_model as load_model
    from qskd.runs.api import cache_teacher as cache_teacher
    from qskd.runs.api import distill as distill
    from qskd.runs.api import evaluate as evaluate
    from qskd.runs.api import inspect as inspect
    from qskd.runs.api import predict as predict
    from qskd.runs.api import train as train
    from qskd.runs.comparing import compare as compare
    from qskd.trainer import DistillationConfig as DistillationConfig
    from qskd.trainer import DistillationTrainer as DistillationTrainer

_PUBLIC = {
    "DistillationConfig": "qskd.trainer",
    "DistillationTrainer": "qskd.trainer",
    "QskdError": "qskd.errors",
    "cache_teacher": "qskd.runs.api",
    "compare": "qskd.runs.comparing",
    "distill": "qskd.runs.api",
    "evaluate": "qskd.runs.api",
    "load_model": "qskd.models.loading",
    "inspect": "qskd.runs.api",
    "predict": "qskd.runs.api",
    "train": "qskd.runs.api",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that importing qskd does not import torch."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'qskd' has no attribute '{name}'")
