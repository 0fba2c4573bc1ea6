"""Comparing how long two things take on a machine that does other things too."""

import time
from collections.abc import Callable
from statistics import median

Clock = Callable[[], float]


def seconds(run: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """How long one call takes."""
    start = clock()
    run()
    return clock() - start


def interleaved(runs: list[Callable[[], object]], repeats: int, clock: Clock = time.perf_counter) -> list[float]:
    """Median seconds of each, after one untimed call; in turns, so that all meet the same disturbances."""
    for run in runs:
        run()
    times = [[seconds(run, clock) for run in runs] for _ in range(repeats)]
    return [median(column) for column in zip(*times, strict=True)]


def ratio(slow: Callable[[], object], fast: Callable[[], object], repeats: int) -> float:
    """How many times more of the processor ``slow`` takes."""
    first, second = interleaved([slow, fast], repeats, time.process_time)
    return first / second
