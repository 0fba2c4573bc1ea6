"""A ``Trainer`` whose runs survive: checkpoints whole or not at all, signals heeded, failures that say how to go on."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, TrainOutput

from qskd.errors import CheckpointError, DataError, Interrupted, OutOfMemory, SavingError
from qskd.files import mend, put
from qskd.trainer import checkpoints, failures
from qskd.trainer.agreement import decided
from qskd.trainer.interruptions import EndAfterStep, EvaluationCut, Signals, is_whole, name_of
from qskd.trainer.links import refuse_links
from qskd.trainer.resuming import Beginning, RunIsOver

KEPT = ("best", "last")  # models of a run folder


def recover(run_folder: Path) -> None:
    """Finish or undo what a killed run was writing.

    Raises:
        ConfigError: the folder holds links under names that a run writes to.
    """
    refuse_links(run_folder)
    mend(run_folder, [*KEPT, "*.json", "*.jsonl", "*.pt", "*.yaml"])
    mend(run_folder / "eval", ["*.json", "*.npz"])
    checkpoints.clear(run_folder / "checkpoints")


class SafeTrainer(Trainer):
    """``transformers.Trainer`` with checkpoints that are moved to their place when they are complete.

    Subclasses set ``run_folder`` and install ``ending`` after all other callbacks.
    """

    run_folder: Path
    control: Any  # the base class sets it
    batch_shape: tuple[int, ...] | None = None  # [images, 3, H, W] of the newest micro-batch
    step_is_last = False  # whether a signal had come, to any process, when the step began

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.signals = Signals()
        self.beginning = Beginning()
        self._owes_evaluation = False
        self._evaluated_step = -1
        self._is_measuring = False
        self._destination: Path | None = None  # of checkpoints, while one is written

    # ---- the way out -------------------------------------------------------------------------------------

    def ending(self) -> TrainerCallback:
        """The callback that heeds signals."""
        return EndAfterStep(self._asked_before_step, self.asked_to_end, self._owe, self._end)

    def _asked_before_step(self) -> bool:
        """As ``asked_to_end``, but of several processes what they told each other when the step began."""
        return self.step_is_last if self.accelerator.num_processes > 1 else self.asked_to_end()

    def asked_to_end(self) -> bool:
        """Whether a signal came, in any process; asked equally often in all of them, which costs a reduction."""
        if self.accelerator.num_processes == 1:
            return self.signals.received is not None
        if self.signals.received is not None:
            self.accelerator.set_trigger()
        return bool(self.accelerator.check_trigger())

    def _owe(self, is_due: bool) -> None:
        self._owes_evaluation = is_due

    def _end(self) -> NoReturn:
        number = self.signals.received or 15  # another process's
        raise Interrupted(f"ended by {name_of(number)} after step {self.state.global_step}. {self.way_back()}", number)

    def way_back(self) -> str:
        """How to go on with this run."""
        return checkpoints.way_back(self.run_folder / "checkpoints")

    @contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong within, said with what to do about it.

        Raises:
            SavingError: something could not be written.
            OutOfMemory: the device's memory, or the machine's, is too small.
            DataError: an image has gone, or turned unreadable.
            CheckpointError: a checkpoint holds other things than tensors and numbers, which are never loaded.
        """
        try:
            yield
        except (SavingError, OutOfMemory):  # told already
            raise
        except DataError as error:
            raise DataError(f"{failures.first_hand(error)} {self.way_back()}") from error
        except UnpicklingError as error:
            raise CheckpointError(
                "A file of the checkpoint holds more than tensors and numbers, or is damaged, and was not loaded: "
                f"{' '.join(str(error).split())[:300]} Resume from a checkpoint of your own."
            ) from error
        except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
            if (reason := failures.why_not_written(error)) is not None:
                raise SavingError(self._not_written(reason, error)) from error
            if failures.is_no_memory(error):
                raise OutOfMemory(self._no_memory()) from error
            raise

    def _not_written(self, reason: str, error: BaseException) -> str:
        place = getattr(error, "filename", None) or self.run_folder
        needed = failures.room(self.run_folder, self._checkpoint_size())
        return f"{place}: {reason}. {needed} Mend that. {self.way_back()}"

    def _checkpoint_size(self) -> int:
        states = [self.model.state_dict(), *(self.optimizer.state.values() if self.optimizer is not None else ())]
        average = getattr(self, "average", None)
        states += [average.model.state_dict()] if average is not None else []
        return sum(one.nbytes for state in states for one in state.values() if isinstance(one, torch.Tensor))

    def _no_memory(self) -> str:
        args, shape = self.args, self.batch_shape
        where = "the machine's memory" if args.device.type == "cpu" else "the device's memory"
        where += failures.memory_in_words(args.device)
        if self._is_measuring:
            advice = failures.advice_for_evaluation(args.per_device_eval_batch_size)
            what = f"The evaluation after step {self.state.global_step}"
            return f"{what} does not fit into {where}: {advice} {self.way_back()}"
        load = failures.Load(
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            None if shape is None else (shape[-2], shape[-1]),
            args.bf16 or args.fp16,
            args.device.type != "cpu",
        )
        what = f"Step {self.state.global_step + 1} does not fit into {where}: {load.in_words()}."
        return f"{what} {load.advice()} {self.way_back()}"

    # ---- training ----------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> TrainOutput:
        """As the base class; a signal ends it with a checkpoint, and a run that is over gains no step.

        Raises:
            Interrupted: a signal came.
            SavingError, OutOfMemory, DataError: see ``told``.
        """
        if self.args.should_save:
            recover(self.run_folder)
        self._is_measuring = False
        with self.signals, self.told():
            self.beginning = self._beginning(resume_from_checkpoint)
            if self.args.should_save and resume_from_checkpoint:
                checkpoints.set_aside(self.run_folder / "checkpoints", Path(str(resume_from_checkpoint)))
            try:
                if self.beginning.is_over:
                    self._restore(str(resume_from_checkpoint))
                    outcome = self._leave()
                else:
                    outcome = super().train(resume_from_checkpoint=resume_from_checkpoint, **options)
            except RunIsOver:
                outcome = self._leave()
            except RuntimeError as error:
                if self.signals.received is None or "DataLoader worker" not in str(error):
                    raise
                # The signal went to the processes that load images, too: no further step, this one is complete.
                if self.accelerator.num_processes == 1:
                    self._save_checkpoint(self.model, None)
                self._end()
            if self.asked_to_end():  # too late for a callback to hear of it, in the last checkpoint for example
                self._keep_end()
                self._end()
        return outcome

    def _beginning(self, checkpoint: str | bool | None) -> Beginning:
        if not checkpoint:
            return Beginning()
        return decided(lambda: Beginning.at(Path(str(checkpoint)), self.args, len(self.train_dataset)))

    def _restore(self, checkpoint: str) -> None:
        """A run that is over as it was, but for the evaluation that it owes."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / checkpoints.STATE))
        self.state.is_local_process_zero = self.is_local_process_zero()  # the first process wrote the file
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self._settle()

    def _leave(self) -> TrainOutput:
        self.is_in_train = False
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(self.state.global_step, math.nan, {})

    def _keep_end(self) -> None:
        """A checkpoint of the end, if there is none and this is no run that was over when it began."""
        there = self.run_folder / "checkpoints" / f"checkpoint-{self.state.global_step}"
        if not self.beginning.is_over and not decided(there.is_dir):
            self._save_checkpoint(self.model, None)

    def _evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """As the base class; when a signal comes, the checkpoint says that the evaluation is due."""
        random_state = torch.get_rng_state()
        self._is_measuring = True
        try:
            metrics: dict[str, float] = super()._evaluate(*args, **options)
        except EvaluationCut:
            torch.set_rng_state(random_state)  # a DataLoader has drawn its seed
            if self.state.global_step > 0 and not self.beginning.is_over:  # else the checkpoint says so already
                self._owe(True)
                self._save_checkpoint(self.model, None)
            self._end()
        self._is_measuring = False  # an error leaves it set, for what is said about it
        self._evaluated_step = self.state.global_step
        return metrics

    def _settle(self) -> None:
        """The evaluation that the run was to make when it was cut off."""
        if self.beginning.owes_evaluation:
            metrics = self._evaluate(None, None)
            self._determine_best_metric(metrics, None)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As the base class, and then what is due: the evaluation sees the random state that it would have seen.

        Raises:
            RunIsOver: that evaluation was the last.
        """
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self._settle()
            if self.control.should_training_stop:  # it is looked at after a step, which would be one too many
                raise RunIsOver

    # ---- checkpoints -------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        """Checkpoints live in their own folder of the run; one that is being written, in a hidden one of that."""
        return str(self._destination or self.run_folder / "checkpoints")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the base class, complete or not at all; every process writes its random state."""
        place = self.run_folder / "checkpoints"
        name = f"checkpoint-{self.state.global_step}"
        fresh = place / checkpoints.UNFINISHED
        self._destination = fresh
        try:
            super()._save_checkpoint(model, trial)
            self._destination = None
            if self.args.should_save:
                self._complete(fresh / name, place)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                put(fresh / name, place / name)
                fresh.rmdir()
                checkpoints.forget_abandoned(place)
                checkpoints.rotate(place, self.args.save_total_limit, place / name, self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()  # none leaves, or names the last checkpoint, before it is there
        except BaseException:
            if self.args.should_save:
                checkpoints.clear(place)
            raise
        finally:
            self._destination = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place / name))

    def _complete(self, fresh: Path, place: Path) -> None:
        """Write what the base class could not know: where the best checkpoint will be, what is due."""
        best = place / f"checkpoint-{self.state.best_global_step}"
        is_there = best.is_dir() or self.state.best_global_step == self.state.global_step
        if self.state.best_global_step and is_there:
            self.state.best_model_checkpoint = str(best)
        self.state.save_to_json(str(fresh / checkpoints.STATE))
        if self._evaluated_step != self.state.global_step and (self._owes_evaluation or self._is_to_evaluate()):
            (fresh / checkpoints.EVALUATION_DUE).touch()

    def _is_to_evaluate(self) -> bool:
        """Whether an evaluation follows this step, once the epoch or the run is over."""
        is_over = is_whole(self.state.epoch) or self.state.global_step >= self.state.max_steps
        is_late = self.state.epoch is not None and self.state.epoch >= self.args.eval_delay
        return self.args.eval_strategy == IntervalStrategy.EPOCH and is_over and is_late

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As the base class, once the checkpoint is where it stays."""
        if self._destination is None:
            super()._push_from_checkpoint(checkpoint_folder)


class BestBelongs(TrainerCallback):
    """Begins anew with the best AP where ``best/`` is not there: in another folder than the run was started in.

    Args:
        best: the folder of the best weights; the first process looks.
    """

    def __init__(self, best: Path) -> None:
        self.best = best

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look whether what the checkpoint calls best is there."""
        if state.best_metric is None:
            return
        if not decided(self.best.is_dir):
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
