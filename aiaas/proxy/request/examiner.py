"""Large bodies are read in a thread, so that the event loop goes on meanwhile.

To peek at 10 MiB takes 15 to 50 ms, and the streams of all other clients would stand still. With a thread the loop gets
its turn between two steps of the work (CPython hands the GIL over only there, msgspec keeps it while it decodes), so
the loop waits for the longest step and not for the sum. Use one thread only: several would take turns with the loop,
and it would wait for a step of each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Bodies up to this are read on the loop, where the way to the thread and back takes 0.1 ms. The worst that was found of
# this size takes 5 ms (many images; `python -m tests.bench.bodies`), the usual one 0.05 ms.
ON_LOOP: Final = 64 * 1024


class Examiner:
    """The thread. It begins with the first large body."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="examiner")

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return or raise the result of `work`, which is pure; on cancellation the result is thrown away."""
        return await self._loop.run_in_executor(self._thread, lambda: work(*args, **kwargs))

    def close(self) -> None:
        """End the thread after its present work."""
        self._thread.shutdown(wait=False, cancel_futures=True)
