"""Waiting in a test for what another task, thread, process or socket has to cause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], object], within: float = 10.0) -> None:
    """Let the loop turn until `holds()`. Fails after `within` seconds: generous, since the machines are shared."""
    async with asyncio.timeout(within):
        while not holds():
            await asyncio.sleep(0.001)
