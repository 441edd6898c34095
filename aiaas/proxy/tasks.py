"""Tasks that live as long as the server: ended together, and never dead without a word."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from aiaas.proxy.log import JsonLog


def report_crash(log: JsonLog) -> Callable[[asyncio.Task[Any]], None]:
    """A done callback that logs the exception that a task ended with: a fault of ours."""

    def done(task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            shown = "".join(traceback.format_exception(error))
            log.event("error", "internal_error", task=task.get_name(), error=repr(error), traceback=shown)

    return done


def keep_running(work: Coroutine[Any, Any, None], name: str, log: JsonLog, stack: AsyncExitStack) -> None:
    """Run `work` as a task until it ends or `stack` does."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(report_crash(log))
    stack.push_async_callback(end_tasks, [task])


async def end_tasks(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel them, and wait until they have ended. What one ended with is told by `report_crash`."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def first_of(*waits: Coroutine[Any, Any, Any], timeout: float | None = None) -> None:
    """Wait until one of the coroutines is done, or `timeout` seconds."""
    tasks = [asyncio.create_task(wait, name="wait") for wait in waits]
    try:
        with suppress(TimeoutError):
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(tasks)
