"""The event loop of a gateway or of one of its workers, from its start to the end of the process."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from aiaas.proxy.telemetry.log import FdWriter, JsonLog
from aiaas.proxy.workers.malloc import fix_threshold

# Seconds to wait at the end for a reader of stdout that has stopped reading; then the last lines are dropped.
LAST_LINES_WAIT = 1.0
# Seconds to wait at the end for threads that cannot be interrupted: resolving a name while DNS does not answer takes a
# minute, and the loop would wait for it (seen: a pod killed after its grace period).
LAST_THREADS = 1.0


def run_loop(life: Callable[[], Coroutine[Any, Any, None]], writer: FdWriter, log: JsonLog) -> None:
    """Run a server on uvloop. After a normal end, wait at most LAST_LINES_WAIT for the log's reader and LAST_THREADS
    for threads, then exit with code 0."""
    fix_threshold()
    # Drop what libraries log after the end (a name that still did not resolve when the loop was closed).
    logging.getLogger().addHandler(logging.NullHandler())

    async def run() -> None:
        try:
            await life()
        finally:
            writer.hurry(LAST_LINES_WAIT)

    def leave() -> None:
        log.flush()
        os._exit(0)

    leaving = threading.Timer(LAST_THREADS, leave)
    leaving.daemon = True
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
            leaving.start()
    finally:
        leaving.cancel()
