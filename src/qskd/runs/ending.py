"""How a run ends early outside of its training: while it checks, or measures what came out."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from qskd.errors import Interrupted, OutOfMemory, QskdError
from qskd.runs.folder import RunFolder
from qskd.trainer import checkpoints
from qskd.trainer.failures import is_no_memory
from qskd.trainer.interruptions import name_of


@contextmanager
def ending(folder: RunFolder) -> Iterator[None]:
    """Whatever ends the run within says how to go on.

    Raises:
        Interrupted: Ctrl-C was pressed.
        OutOfMemory: the preflight, or the measuring, takes more memory than there is.
    """
    try:
        yield
    except QskdError:
        raise
    except KeyboardInterrupt as error:
        number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
        back = _way_back(folder)
        if back in str(error):  # the trainer has said it
            raise
        said = str(error) or f"ended by {name_of(number)}"
        raise Interrupted(f"{said}. {back}", number) from error
    except (RuntimeError, MemoryError) as error:
        if not is_no_memory(error):
            raise
        raise OutOfMemory(
            "There is not enough memory for the models with a batch. Give a smaller --per_device_train_batch_size "
            "with more --gradient_accumulation_steps, a smaller --per_device_eval_batch_size, a smaller --image_size, "
            f"or --bf16. {_way_back(folder)}"
        ) from error


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
