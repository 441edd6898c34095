"""Waiting for several coroutines ends with the first, or in time."""

import asyncio

from aiaas.waiting import first_of


async def test_the_first_that_is_done_ends_the_waiting_for_all() -> None:
    """Or the timeout does."""
    event = asyncio.Event()
    event.set()
    async with asyncio.timeout(1):
        await first_of(event.wait(), asyncio.sleep(60), timeout=60)
        await first_of(asyncio.sleep(60), timeout=0.01)
    assert len(asyncio.all_tasks()) == 1
