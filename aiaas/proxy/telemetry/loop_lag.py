"""How late the event loop is: what holds it up holds up every client at once, and shows in no other metric."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

# Seconds between two looks. Four a second cost nothing, and see a stall of a quarter second for certain.
LAG_INTERVAL = 0.25


async def watch_lag(
    observe: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Sleep again and again, until cancelled; `observe` gets the seconds by which each sleep was too long."""
    while True:
        due = clock() + LAG_INTERVAL
        await sleep(LAG_INTERVAL)
        observe(max(0.0, clock() - due))
