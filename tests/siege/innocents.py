"""Well-behaved clients during a flood: their waits and their failures.

Three kinds: chat requests over connections that are kept, chat requests that connect anew each time, and a kubelet's
probe (a new connection, /health, one second of patience).
"""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.e2e.processes import MODEL

KEPT: Final = 20
_BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}).encode()


@dataclass
class Seen:
    """The results of one kind of client: (begun, seconds) of the successes, (begun, why) of the failures."""

    waits: list[tuple[float, float]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)

    def between(self, begun: float, ended: float) -> Seen:
        """Of the requests that were sent in that time."""
        return Seen(
            [wait for wait in self.waits if begun <= wait[0] < ended],
            [failure for failure in self.failures if begun <= failure[0] < ended],
        )

    @property
    def count(self) -> int:
        """Requests that were sent."""
        return len(self.waits) + len(self.failures)

    @property
    def failed(self) -> float:
        """The part of them that failed; 0 without requests."""
        return len(self.failures) / self.count if self.count else 1.0

    @property
    def failed_in_a_row(self) -> int:
        """The most failures without a success between them, by the time at which they began."""
        most = run = 0
        ends = [(begun, True) for begun, _ in self.waits] + [(begun, False) for begun, _ in self.failures]
        for _, well in sorted(ends):
            run = 0 if well else run + 1
            most = max(most, run)
        return most

    def quantile(self, part: float) -> float:
        """Seconds that this part of the requests did not exceed; NaN without requests."""
        waits = sorted(seconds for _, seconds in self.waits)
        return waits[min(len(waits) - 1, math.ceil(part * len(waits)) - 1)] if waits else math.nan


class Innocents:
    """All of them, against one gateway, from `begin` to `end`."""

    def __init__(self, port: int, key: str, tls: ssl.SSLContext | None) -> None:
        self._port = port
        self._tls = tls
        self._chat = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(_BODY)}\r\n\r\n"
        ).encode() + _BODY
        self._health = b"GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n"
        self.kept, self.new, self.probes = Seen(), Seen(), Seen()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Start asking."""
        self._tasks = [asyncio.create_task(self._keep(number / KEPT), name="kept") for number in range(KEPT)]
        self._tasks += [
            asyncio.create_task(self._often(self.new, self._chat, 0.1, 10.0), name="new"),
            asyncio.create_task(self._often(self.probes, self._health, 0.5, 1.0), name="probes"),
        ]

    async def end(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, offset: float) -> None:
        """A request every 200 ms on a connection that is made again only where it was lost."""
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        await asyncio.sleep(offset * 0.2)
        while True:

            async def ask() -> None:
                nonlocal streams
                if streams is None or streams[0].at_eof():
                    streams = await self._connect()
                await _ask(*streams, self._chat)

            if not await self._measured(self.kept, ask, 10.0):
                streams = None
            await asyncio.sleep(0.2)

    async def _often(self, seen: Seen, request: bytes, every: float, patience: float) -> None:
        """A request on a connection of its own every `every` seconds, without waiting for the last one."""

        async def ask() -> None:
            reader, writer = await self._connect()
            try:
                await _ask(reader, writer, request)
            finally:
                writer.transport.abort()

        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._measured(seen, ask, patience))
                await asyncio.sleep(every)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        name = None if self._tls is None else "localhost"
        return await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls, server_hostname=name)

    async def _measured(self, seen: Seen, ask: Callable[[], Awaitable[None]], patience: float) -> bool:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                await ask()
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            seen.failures.append((begun, f"{type(error).__name__}: {error}"[:80]))
            return False
        seen.waits.append((begun, time.monotonic() - begun))
        return True


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """One exchange. Raises ValueError for any answer but 200."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    answer = await reader.readexactly(length)
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"{head[9:12]!r} {answer[:60]!r}")


def worst(kinds: Sequence[Seen]) -> list[str]:
    """Why requests failed, each reason once."""
    return sorted({why for seen in kinds for _, why in seen.failures})
