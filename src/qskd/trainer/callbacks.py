"""What happens beside the steps: the moving average, the log file, the lines on the console."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ProgressCallback

from qskd.data.dataset import DetectionDataset
from qskd.files import write_whole
from qskd.trainer.ema import ModelAverage
from qskd.trainer.resuming import Beginning, evaluations_without_gain

_HIDDEN = {"epoch", "step", "total_flos", "learning_rate"}


class AverageCallback(TrainerCallback):
    """Updates the moving average after every optimiser step."""

    def __init__(self, average: ModelAverage, student: Any) -> None:
        self.average = average
        self.student = student

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the average towards the student."""
        self.average.update(self.student)


class DataEpoch(TrainerCallback):
    """Tells the training data its epoch; accelerate forgets to, in the epoch that a resumed run begins in."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch that begins or is resumed; ``state.epoch`` is a whole number but for rounding."""
        self.dataset.set_epoch(int((state.epoch or 0.0) + 1e-6))


class MetricsFile(TrainerCallback):
    """Appends every log entry to ``metrics.jsonl``; a resumed run first drops what it will log again.

    Args:
        path: of the file.
        beginning: where the training begins, asked when it does.
    """

    def __init__(self, path: Path, beginning: Callable[[], Beginning] = Beginning) -> None:
        self.path = path
        self.beginning = beginning

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep only the entries up to the step that training starts from."""
        if state.is_world_process_zero and self.path.is_file():
            entries = [_entry(line) for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines()]
            begins = self.beginning()
            kept = [entry for entry in entries if entry and not _comes_again(entry, args, state, begins)]
            write_whole(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class Console(ProgressCallback):
    """One clear line per log, below a progress bar where there is a terminal."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A bar, unless it was switched off or would fill a file."""
        if not args.disable_tqdm and sys.stderr.isatty():
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar, where there is one."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar, where there is one."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the entry in words."""
        if state.is_world_process_zero and logs:
            line = _line(state, logs)
            if self.training_bar is not None:
                self.training_bar.write(line)
            else:
                print(line, flush=True)


class EarlyStopping(EarlyStoppingCallback):
    """Stops when AP has not risen for some evaluations; the best weights are kept by the trainer itself."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on counting where a checkpoint says, without the base class's demand to reload the best model."""
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.early_stopping_patience_counter = evaluations_without_gain(state)


def _entry(line: str) -> dict[str, Any]:
    """An entry of the log; empty where a crash cut the line off."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _comes_again(entry: dict[str, Any], args: TrainingArguments, state: TrainerState, beginning: Beginning) -> bool:
    """Whether a run that starts from this state will log the entry itself."""
    step = entry.get("step", 0)
    if step != state.global_step:
        return step > state.global_step or "train_runtime" in entry
    if "eval_AP50" in entry or "eval_runtime" in entry:
        return beginning.owes_evaluation or (args.eval_on_start and not beginning.is_over)
    return "train_runtime" in entry and not beginning.is_over


def _line(state: TrainerState, logs: dict[str, Any]) -> str:
    head = f"step {state.global_step}/{state.max_steps}"
    if "eval_AP" in logs:
        shown = {key.removeprefix("eval_"): logs[key] for key in ("eval_AP", "eval_AP50", "eval_AP75") if key in logs}
        return f"{head}  " + "  ".join(f"{key} {100 * value:.1f}" for key, value in shown.items())
    if any(key.startswith("eval_") for key in logs):
        return f"{head}  no AP: no validation image holds an object"
    if "train_runtime" in logs:
        return f"{head}  trained for {logs['train_runtime']:.0f} s, mean loss {logs.get('train_loss', math.nan):.4g}"
    return f"{head}  " + "  ".join(f"{key} {_short(value)}" for key, value in _grouped(logs).items())


def _grouped(logs: dict[str, Any]) -> dict[str, Any]:
    """The entry without what everybody knows, and the parts of each layer added up: loss_bbox_aux_0 to loss_bbox."""
    shown: dict[str, Any] = {}
    for key, value in logs.items():
        name = re.sub(r"^(loss_[a-z]+)_.*", r"\1", key)
        if name not in _HIDDEN:
            shown[name] = shown.get(name, 0.0) + value
    return shown


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
