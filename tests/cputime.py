"""How the CPU time of something grows with its size. Only ratios: they hold on a slow and on a busy machine."""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time

ROUNDS = 3


def cpu_time(work: Callable[[], object]) -> float:
    """The seconds of CPU that `work` takes in this thread: the least of ROUNDS runs."""
    return min(_once(work) for _ in range(ROUNDS))


def _once(work: Callable[[], object]) -> float:
    before = thread_time()
    work()
    return thread_time() - before
