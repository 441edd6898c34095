"""Measure how late the event loop is: blocking it delays every client at once, and other metrics do not show that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

# Seconds between two looks. Four looks a second cost almost nothing, and see every stall longer than LAG_INTERVAL.
LAG_INTERVAL = 0.25


async def watch_lag(
    observe: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Sleep again and again until cancelled, and call `observe` with the seconds by which each sleep was too long."""
    while True:
        due = clock() + LAG_INTERVAL
        await sleep(LAG_INTERVAL)
        observe(max(0.0, clock() - due))
