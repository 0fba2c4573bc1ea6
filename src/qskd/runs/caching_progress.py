"""What `qskd cache` says of its pass: how far it is, how much it keeps, and how to go on when it ends early."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qskd.errors import Interrupted, OutOfMemory, QskdError
from qskd.reporting.tables import duration
from qskd.trainer.failures import is_no_memory
from qskd.trainer.interruptions import name_of

_PATIENCE = 5.0  # seconds between two lines of progress


class Progress:
    """A line now and then: how many images, how fast, how long still.

    Args:
        total: images.
        tell: is given each line.
    """

    def __init__(self, total: int, tell: Callable[[str], None]) -> None:
        self.total, self.tell = total, tell
        self.done = 0
        self.began = self.told = time.perf_counter()

    def add(self, images: int) -> None:
        """So many more images are done."""
        self.done += images
        now = time.perf_counter()
        if now - self.told < _PATIENCE and self.done < self.total:
            return
        self.told = now
        speed = self.done / max(now - self.began, 1e-9)
        self.tell(
            f"{self.done}/{self.total} images, {speed:.1f} images/s, {duration((self.total - self.done) / speed)} left"
        )


def in_bytes(size: float) -> str:
    """Bytes in the unit that people would use."""
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size / 1024:.0f} KiB"


@contextmanager
def continuable(folder: Path) -> Iterator[None]:
    """A pass within, which says how to go on when a signal or too little memory ends it.

    Raises:
        Interrupted: Ctrl-C was pressed, or SIGTERM came.
        OutOfMemory: the teacher takes more memory than there is.
    """
    try:
        yield
    except QskdError:
        raise
    except KeyboardInterrupt as error:
        number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
        said = str(error) or f"ended by {name_of(number)}"
        raise Interrupted(
            f"{said}. What is finished is kept in {folder}: the same command goes on from there.", number
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_no_memory(error):
            raise
        raise OutOfMemory(
            "There is not enough memory for the teacher with a batch. Give a smaller --batch_size, a smaller "
            "--image_size, or --bf16; what is finished is kept."
        ) from error
