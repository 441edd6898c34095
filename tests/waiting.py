"""Wait in a test for another task, thread, process or socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path


async def until(holds: Callable[[], object], within: float = 10.0) -> None:
    """Let the loop turn until `holds()`. Fails after `within` seconds: generous, since the machines are shared."""
    async with asyncio.timeout(within):
        while not holds():
            await asyncio.sleep(0.001)


async def opened(fifo: Path) -> int:
    """A descriptor to write to it, once somebody reads it."""
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            await asyncio.sleep(0.005)
