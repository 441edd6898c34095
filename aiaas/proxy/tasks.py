"""Background tasks that run as long as the server, and are restarted if they fail.

An unexpected exception ends one run of a task's work, but not the task: the Keeper logs and counts the exception, and
restarts the work after a pause, which doubles from FIRST_PAUSE to LONGEST_RESTART_PAUSE while the work keeps failing.
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
STEADY: Final = 60.0  # seconds of work after which the pause begins again at FIRST_PAUSE

Work = Callable[[], Coroutine[Any, Any, None]]


class Keeper(Collector):
    """Keeps tasks running, and counts their failures by name. Each process has one Keeper."""

    def __init__(self, log: JsonLog, first_pause: float = FIRST_PAUSE) -> None:
        self._log = log
        self._first_pause = first_pause
        self._failures: Counter[str] = Counter()

    def keep(self, work: Work, name: str, stack: AsyncExitStack) -> None:
        """Run `work` as a task until it ends or `stack` does."""
        stack.push_async_callback(end_tasks, [self.start(work, name)])

    def start(self, work: Work, name: str) -> asyncio.Task[None]:
        """Run `work` as a task that the caller ends."""
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
        """Log and count the failure of a task, which restarts in `again_in` seconds."""
        self._failures[name] += 1
        self._log.event("error", "task_failed", task=name, error=repr(error), at=place_of(error), again_in=again_in)

    def collect(self) -> Iterator[Metric]:
        """Yield `aiaas_task_failures_total`; called at each scrape."""
        family = CounterMetricFamily(
            "aiaas_task_failures", "Restarts of background tasks after an unexpected exception", labels=["task"]
        )
        for name, number in self._failures.items():
            family.add_metric([name], number)
        yield family


def place_of(error: BaseException) -> str:
    """Return the place that raised an exception, as `file.py:12 function`: short enough for a log line."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{Path(frames[0].filename).name}:{frames[0].lineno} {frames[0].name}" if frames else "unknown"


def report_crash(log: JsonLog) -> Callable[[asyncio.Task[Any]], None]:
    """Return a done callback that logs the exception that a task ended with, which is a bug in aiaas."""

    def done(task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            shown = "".join(traceback.format_exception(error))
            log.event("error", "internal_error", task=task.get_name(), error=repr(error), traceback=shown)

    return done


async def end_tasks(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, and wait until they have ended. Ignore their exceptions, which `report_crash` logs."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
