"""How a run ends early outside of its training: while it checks, or measures what came out."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from qskd.errors import Interrupted, OutOfMemory, QskdError
from qskd.runs.folder import RunFolder
from qskd.trainer import checkpoints
from qskd.trainer.failures import is_no_memory
from qskd.trainer.interruptions import name_of


def ending(folder: RunFolder) -> AbstractContextManager[None]:
    """Whatever ends the run within says how to go on; errors as of ``says_how_to_go_on``."""
    return says_how_to_go_on(
        lambda: _way_back(folder),
        "There is not enough memory for the models with a batch. Give a smaller --per_device_train_batch_size "
        "with more --gradient_accumulation_steps, a smaller --per_device_eval_batch_size, a smaller --image_size, "
        "or --bf16.",
    )


@contextmanager
def says_how_to_go_on(way_back: Callable[[], str], memory_advice: str) -> Iterator[None]:
    """Work within, whose early end by a signal or for lack of memory is followed by the way back.

    Args:
        way_back: how to go on, as a sentence; asked when the end has come.
        memory_advice: what takes less memory.

    Raises:
        Interrupted: Ctrl-C was pressed, or SIGTERM came.
        OutOfMemory: there was too little memory.
    """
    try:
        yield
    except QskdError:
        raise
    except KeyboardInterrupt as error:
        number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
        back = way_back()
        if back in str(error):  # the trainer has said it
            raise
        said = str(error) or f"ended by {name_of(number)}"
        raise Interrupted(f"{said}. {back}", number) from error
    except (RuntimeError, MemoryError) as error:
        if not is_no_memory(error):
            raise
        raise OutOfMemory(f"{memory_advice} {way_back()}") from error


def _way_back(folder: RunFolder) -> str:
    return checkpoints.way_back(folder.path / "checkpoints")


@contextmanager
def terminated() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that nothing is left half done; only in the main thread.

    Raises:
        Interrupted: the signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"ended by {name_of(number)}", number)
