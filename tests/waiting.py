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


async def closed(server: asyncio.Server) -> None:
    """Stop listening, after every connection that the server has accepted has got its protocol.

    asyncio loses one that it accepts in the turn of the loop in which its server closes: nobody closes that socket, and
    the collector complains of it in whatever test runs by then.
    """
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())  # uvloop, which loses none, has no reader there
    for _ in range(4):
        await asyncio.sleep(0)
    server.close()


async def opened(fifo: Path) -> int:
    """A descriptor to write to it, once somebody reads it."""
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            await asyncio.sleep(0.005)
