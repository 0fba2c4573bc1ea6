"""Ctrl-C and a scheduler's SIGTERM while a run trains: the step is finished, a checkpoint written, the run left."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType, TracebackType
from typing import Any, NoReturn

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qskd.errors import Interrupted

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Signals:
    """Notes the first SIGINT or SIGTERM within a block; a second Ctrl-C ends the run at once.

    A scheduler repeats its SIGTERM, and sends SIGKILL when it has waited long enough: more of them change nothing.
    Outside of the main thread, where Python handles no signals, all stay as they are.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Signals":
        self.received = None
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _NAMES}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self.received = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that loads images: the terminal told all of them
            return
        if self.received is not None and number == signal.SIGINT:
            raise Interrupted("left at once, as a second Ctrl-C asks for", number)
        if self.received is None:
            self.received = number
            said = f"\n{name_of(number)}: finishing the step and writing a checkpoint; Ctrl-C leaves at once\n"
            os.write(2, said.encode())  # print could be interrupted in itself


def name_of(number: int) -> str:
    """A signal as people call it."""
    return _NAMES.get(signal.Signals(number), signal.Signals(number).name)


def shield(loader: Any) -> Any:
    """A loader whose processes go on at a signal, which torchrun and schedulers send to every process of a job.

    They end with the process that they load for: it tells them to, and they look whether it is still there. That
    process alone can end them by SIGTERM, as torch does with those of a loader that an error left, and Python at its
    end.
    """
    inner = getattr(loader, "base_dataloader", loader)  # accelerate's has it inside
    inner.worker_init_fn = partial(_go_on, inner.worker_init_fn)
    return loader


def _go_on(begin: Callable[[int], Any] | None, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # else, as on macOS and Windows, SIGTERM ends them
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_as_told_by, args=(os.getppid(),), daemon=True).start()
    if begin is not None:
        begin(worker)


def _end_as_told_by(parent: int) -> None:
    """End at a SIGTERM from the parent; others send it to say that the parent is to end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class EvaluationCut(Exception):
    """An evaluation was left since the run is to end."""


def until(asked: Callable[[], bool], batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, until somebody asks to end.

    Raises:
        EvaluationCut: somebody did.
    """
    for batch in batches:
        if asked():
            raise EvaluationCut
        yield batch


class EndAfterStep(TrainerCallback):
    """Ends the run after a step that was logged and saved, when that was asked for; the last of all callbacks.

    Args:
        in_step: whether to end; asked once a step in every process.
        asked: the same as it is by now; asked at the end of an epoch, and so at the end of training.
        owe: takes whether an evaluation after this step is left out.
        end: raises what ends the run.
    """

    def __init__(
        self,
        in_step: Callable[[], bool],
        asked: Callable[[], bool],
        owe: Callable[[bool], None],
        end: Callable[[], NoReturn],
    ) -> None:
        self.in_step = in_step
        self.asked = asked
        self.owe = owe
        self.end = end
        self._is_ending = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask; the end of an epoch or run is left to ``on_epoch_end``, where its evaluation is known to be due."""
        is_over = is_whole(state.epoch) or state.global_step >= state.max_steps
        if not is_over and self.in_step():
            self._leave(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask, as after every step."""
        if self.asked():
            self._leave(control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint is there."""
        if self._is_ending:
            self.end()

    def _leave(self, control: TrainerControl) -> None:
        self._is_ending = True
        self.owe(control.should_evaluate)
        control.should_evaluate, control.should_save = False, True


def is_whole(epoch: float | None) -> bool:
    """Whether an epoch has just ended; its number is whole but for rounding."""
    return epoch is not None and abs(epoch - round(epoch)) < 1e-6
