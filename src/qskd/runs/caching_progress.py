"""What `qskd cache` says of its pass: how far it is, how much it keeps, and how to go on when it ends early."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from qskd.reporting.tables import duration
from qskd.runs.ending import says_how_to_go_on

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


def continuable(folder: Path) -> AbstractContextManager[None]:
    """A pass within, which says how to go on when it ends early; errors as of ``says_how_to_go_on``."""
    return says_how_to_go_on(
        lambda: f"What is finished is kept in {folder}: the same command goes on from there.",
        "There is not enough memory for the teacher with a batch. Give a smaller --batch_size, a smaller --image_size, "
        "or --bf16.",
    )
