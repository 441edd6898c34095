"""Tasks that live as long as the server: ended together, and never dead.

An exception that no code expected ends one run of a task's work, and not the task: it is logged, counted, and the work
begins anew after a pause that doubles from FIRST_PAUSE to LONGEST_RESTART_PAUSE while it fails again and again.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from aiaas.proxy.telemetry.log import JsonLog

FIRST_PAUSE: Final = 0.1  # seconds
LONGEST_RESTART_PAUSE: Final = 30.0
STEADY: Final = 60.0  # seconds of work after which the next failure counts as the first

Work = Callable[[], Coroutine[Any, Any, None]]


class Keeper(Collector):
    """Keeps tasks running, and counts their failures by name. One for each process."""

    def __init__(self, log: JsonLog, first_pause: float = FIRST_PAUSE) -> None:
        self._log = log
        self._first_pause = first_pause
        self._failures: Counter[str] = Counter()

    def keep(self, work: Work, name: str, stack: AsyncExitStack) -> None:
        """Run `work` as a task until it ends or `stack` does."""
        stack.push_async_callback(end_tasks, [self.start(work, name)])

    def start(self, work: Work, name: str) -> asyncio.Task[None]:
        """The same as a task that the caller ends."""
        return asyncio.create_task(self._survive(work, name), name=name)

    async def _survive(self, work: Work, name: str) -> None:
        loop = asyncio.get_running_loop()
        pause = self._first_pause
        while True:
            began = loop.time()
            run = asyncio.create_task(work(), name=f"{name}: a run")
            (error,) = await asyncio.gather(run, return_exceptions=True)
            if not isinstance(error, Exception):
                return
            if loop.time() - began > STEADY:
                pause = self._first_pause
            self.failed(name, error, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_RESTART_PAUSE)

    def failed(self, name: str, error: Exception, again_in: float) -> None:
        """Log and count the failure of a task, which begins anew in so many seconds."""
        self._failures[name] += 1
        self._log.event("error", "task_failed", task=name, error=repr(error), at=place_of(error), again_in=again_in)

    def collect(self) -> Iterator[Metric]:
        """`aiaas_task_failures_total`, read at each scrape."""
        family = CounterMetricFamily(
            "aiaas_task_failures", "Restarts of background tasks after an unexpected exception", labels=["task"]
        )
        for name, number in self._failures.items():
            family.add_metric([name], number)
        yield family


def place_of(error: BaseException) -> str:
    """Where it was raised, as `file.py:12 function`: a line of a log, where a traceback would be thirty."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{Path(frames[0].filename).name}:{frames[0].lineno} {frames[0].name}" if frames else "unknown"


def report_crash(log: JsonLog) -> Callable[[asyncio.Task[Any]], None]:
    """A done callback that logs the exception that a task ended with: a fault of ours."""

    def done(task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            shown = "".join(traceback.format_exception(error))
            log.event("error", "internal_error", task=task.get_name(), error=repr(error), traceback=shown)

    return done


async def end_tasks(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel them, and wait until they have ended. What one ended with is told by `report_crash`."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
