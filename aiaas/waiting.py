"""Wait for coroutines of which the first is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_of(*waits: Coroutine[Any, Any, Any], timeout: float | None = None) -> None:
    """Wait until one of the coroutines is done, at most `timeout` seconds, and cancel the others."""
    tasks = [asyncio.create_task(wait, name="wait") for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
