"""What a checkpoint says of the run that goes on from it: whether it is over, and whether it still has to measure."""

from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState
from transformers.trainer_utils import IntervalStrategy

from qskd.trainer import checkpoints
from qskd.trainer.config import DistillationConfig


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a training begins."""

    is_over: bool = False  # at the last step, or stopped early: no step is added
    owes_evaluation: bool = False  # the one after the checkpoint's step was left out, or cut off

    @classmethod
    def at(cls, checkpoint: Path, args: DistillationConfig, images: int) -> "Beginning":
        """At a checkpoint, of a run on so many training images; of several processes, one looks."""
        if not (checkpoint / checkpoints.STATE).is_file():
            return cls()
        state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE))
        owes = args.eval_strategy != IntervalStrategy.NO and (checkpoint / checkpoints.EVALUATION_DUE).is_file()
        stopped = 0 < args.early_stopping_patience <= evaluations_without_gain(state) and not owes
        return cls(state.global_step >= args.steps_for(images) or stopped, owes)


def evaluations_without_gain(state: TrainerState) -> int:
    """How many evaluations in a row brought no better AP, as the callback of early stopping has counted them."""
    saved = state.stateful_callbacks.get("EarlyStopping")
    return int(saved["attributes"]["early_stopping_patience_counter"]) if isinstance(saved, dict) else 0


class RunIsOver(Exception):
    """The evaluation that a resumed run owed says that no step follows."""
