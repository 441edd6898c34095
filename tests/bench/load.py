"""The load generator: clients on plain asyncio protocols, which check each answer and count.

A client that gets anything but a whole 200 ends the measurement with `BadAnswerError`: errors are not a benchmark.

Three loads: `closed_loop` (the next request after the answer, as fast as it goes), `open_loop` (requests fall due at a
fixed rate, whatever the answers do; one that has to wait for a free connection waits at the proxy's expense) and
`streams` (in streaming.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self, cast


class BadAnswerError(Exception):
    """The bytes that came were not the answer that the backend gave."""


@dataclass(slots=True)
class Tally:
    """The counts of one load's clients so far, and the first thing that went wrong.

    latencies   seconds from when a request was due to its whole answer, or to a stream's first event
    """

    answers: int = 0
    events: int = 0
    started: int = 0
    finished: int = 0
    latencies: list[float] = field(default_factory=list)
    failed: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, why: str) -> None:
        """Remember the first failure only."""
        if not self.failed.done():
            self.failed.set_exception(BadAnswerError(why))


Mark = Callable[[Tally], None]


class ShortClient(asyncio.Protocol):
    """A keep-alive connection that sends one request at a time; `answered` says what comes after an answer."""

    def __init__(self, tally: Tally, requests: Iterator[bytes]) -> None:
        self.tally = tally
        self._requests = requests
        self._buffer = b""
        self._closing = False

    @classmethod
    async def connect(cls, port: int, *arguments: object) -> Self:
        """A connected client of 127.0.0.1. Raises BadAnswerError where nothing listens."""
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_connection(lambda: cls(*arguments), "127.0.0.1", port)  # type: ignore[arg-type]
        except OSError as error:
            raise BadAnswerError(f"no connection: {error}") from error
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """Send the next request."""
        if not self._closing:
            self._transport.write(next(self._requests))

    def answered(self) -> None:
        """Called after each whole answer: closed loop, so the next request goes out at once."""
        self.tally.answers += 1
        self.send()

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = data[:head_end].lower()
        at = head.find(b"content-length:")
        if at < 0 or not head.startswith(b"http/1.1 200"):
            self.tally.fail(f"expected a 200 with a length, got {data[:200]!r}")
            return
        stop = head.find(b"\r\n", at)
        missing = head_end + 4 + int(head[at + 15 : stop if stop >= 0 else head_end]) - len(data)
        if missing > 0:
            return
        if missing < 0:
            self.tally.fail("more bytes than the answer has")
            return
        self._buffer = b""
        self.answered()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self.tally.fail("the connection was closed")

    def close(self) -> None:
        """Leave, without that counting as a failure."""
        self._closing = True
        self._transport.abort()


class PooledClient(ShortClient):
    """A connection of an open loop: timed, and back in the pool after each answer."""

    def __init__(self, tally: Tally, requests: Iterator[bytes], pool: Pool) -> None:
        super().__init__(tally, requests)
        self._pool = pool
        self._due = 0.0

    def send_due(self, due: float) -> None:
        """Send a request that was due at `due`."""
        self._due = due
        self.send()

    def answered(self) -> None:
        self.tally.answers += 1
        self.tally.latencies.append(time.perf_counter() - self._due)
        self._pool.give_back(self)


class Pool:
    """Free connections, or else requests that wait for one; never both."""

    def __init__(self) -> None:
        self._free: deque[PooledClient] = deque()
        self._waiting: deque[float] = deque()

    def request_due(self) -> None:
        """Send a request now, or as soon as a connection is free; its time counts from now in both cases."""
        now = time.perf_counter()
        if self._free:
            self._free.popleft().send_due(now)
        else:
            self._waiting.append(now)

    def give_back(self, client: PooledClient) -> None:
        """A connection is free."""
        if self._waiting:
            client.send_due(self._waiting.popleft())
        else:
            self._free.append(client)


async def closed_loop(
    port: int, requests: Iterator[bytes], mark: Mark, *, connections: int, warm_up: float, seconds: float
) -> Tally:
    """`connections` requests at any time; `mark` is called at the start and at the end of the measured part.

    Raises BadAnswerError.
    """
    tally = Tally()
    clients = []
    try:
        for _ in range(connections):
            clients.append(await ShortClient.connect(port, tally, requests))
        for client in clients:
            client.send()
        await sleep(warm_up, tally)
        mark(tally)
        await sleep(seconds, tally)
        mark(tally)
    finally:
        for client in clients:
            client.close()
    return tally


async def open_loop(
    port: int,
    requests: Iterator[bytes],
    mark: Mark,
    *,
    connections: int,
    per_second: float,
    warm_up: float,
    seconds: float,
) -> Tally:
    """`per_second` requests, evenly spaced, over at most `connections`; the latencies are those of the measured part.

    Raises BadAnswerError.
    """
    tally, pool = Tally(), Pool()
    clients: list[PooledClient] = []
    try:
        for _ in range(connections):
            clients.append(await PooledClient.connect(port, tally, requests, pool))
        for client in clients:
            pool.give_back(client)
        await _send_evenly(pool, tally, per_second, warm_up)
        tally.latencies.clear()
        mark(tally)
        await _send_evenly(pool, tally, per_second, seconds)
        mark(tally)
    finally:
        for client in clients:
            client.close()
    return tally


async def _send_evenly(pool: Pool, tally: Tally, per_second: float, seconds: float) -> None:
    """A timer that is late sends what has fallen due meanwhile: the rate holds."""
    began = asyncio.get_running_loop().time()
    for number in range(int(seconds * per_second)):
        await sleep(began + number / per_second - asyncio.get_running_loop().time(), tally)
        pool.request_due()


async def sleep(seconds: float, tally: Tally) -> None:
    """Wait, but not beyond a failure."""
    if tally.failed.done():
        await tally.failed
    if seconds <= 0:
        return
    loop = asyncio.get_running_loop()
    timer = loop.create_future()
    handle = loop.call_later(seconds, _wake, timer)
    try:
        await asyncio.wait([tally.failed, timer], return_when=asyncio.FIRST_COMPLETED)
    finally:
        handle.cancel()
    if tally.failed.done():
        await tally.failed


def _wake(timer: asyncio.Future[None]) -> None:
    if not timer.done():
        timer.set_result(None)
