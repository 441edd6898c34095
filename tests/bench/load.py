"""The load generator: clients on plain asyncio protocols, which check each answer and count.

A client that gets anything but a whole 200 ends the measurement with `BadAnswerError`: a benchmark of errors is none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from tests.bench import wire


class BadAnswerError(Exception):
    """What came was not the answer that the backend gave."""


@dataclass(slots=True)
class Tally:
    """What the clients of one load have counted so far, and the first thing that went wrong."""

    answers: int = 0
    events: int = 0
    started: int = 0
    latencies: list[float] = field(default_factory=list)
    failed: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, why: str) -> None:
        """Remember the first failure only."""
        if not self.failed.done():
            self.failed.set_exception(BadAnswerError(why))


class ShortClient(asyncio.Protocol):
    """A keep-alive connection in a closed loop: the next request goes out `pause` seconds after the answer."""

    def __init__(self, tally: Tally, request: bytes, pause: float = 0.0, *, timed: bool = False) -> None:
        self._tally = tally
        self._request = request
        self._pause = pause
        self._timed = timed
        self._buffer = b""
        self._began = 0.0
        self.stopping = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        if not self.stopping and not self._transport.is_closing():
            self._began = time.perf_counter()
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = data[:head_end].lower()
        at = head.find(b"content-length:")
        if at < 0 or not head.startswith(b"http/1.1 200"):
            self._tally.fail(f"expected a 200 with a length, got {data[:200]!r}")
            return
        stop = head.find(b"\r\n", at)
        missing = head_end + 4 + int(head[at + 15 : stop if stop >= 0 else head_end]) - len(data)
        if missing > 0:
            return
        if missing < 0:
            self._tally.fail("more bytes than the answer has")
            return
        self._buffer = b""
        self._tally.answers += 1
        if self._timed:
            self._tally.latencies.append(time.perf_counter() - self._began)
        if self._pause:
            asyncio.get_running_loop().call_later(self._pause, self._send)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.stopping:
            self._tally.fail("the connection was closed")

    def close(self) -> None:
        """Leave, without that counting as a failure."""
        self.stopping = True
        self._transport.abort()


class StreamClient(asyncio.Protocol):
    """One stream: counts events as they come; `done` when the last chunk has."""

    def __init__(self, tally: Tally, request: bytes, expected: int) -> None:
        self._tally = tally
        self._request = request
        self._expected = expected
        self._events = 0
        self._last = b""
        self._head_seen = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._head_seen:
            self._head_seen = True
            self._tally.started += 1
            if not data.startswith(b"HTTP/1.1 200"):
                self._tally.fail(f"expected a stream, got {data[:200]!r}")
                return
        # An event's end may be cut by a read; `_last` is what may be its first half.
        new = (self._last + data).count(b"\n\n")
        self._last = b"\n" if data.endswith(b"\n") and not data.endswith(b"\n\n") else b""
        self._events += new
        self._tally.events += new
        if data.endswith(wire.END_OF_CHUNKS) and not self.done.done():
            if self._events != self._expected:
                self._tally.fail(f"{self._events} events instead of {self._expected}")
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._tally.fail(f"the connection was closed after {self._events} events")
            self.done.set_result(None)


async def short_load(
    port: int,
    request: bytes,
    window: Callable[[Tally], Sequence[object]] | None,
    *,
    connections: int,
    pause: float,
    warm_up: float,
    seconds: float,
    timed: bool = False,
) -> Tally:
    """Short requests for `warm_up` + `seconds`; `window` is called at the start and at the end of the measured part.

    The latencies that come back are those of the measured part. Raises BadAnswerError.
    """
    loop = asyncio.get_running_loop()
    tally = Tally()
    clients = []
    try:
        for _ in range(connections):
            _, client = await loop.create_connection(
                lambda: ShortClient(tally, request, pause, timed=timed), "127.0.0.1", port
            )
            clients.append(client)
        await _sleep(warm_up, tally)
        tally.latencies.clear()
        if window is not None:
            window(tally)
        await _sleep(seconds, tally)
        if window is not None:
            window(tally)
    finally:
        for client in clients:
            client.close()
    return tally


async def stream_load(
    port: int,
    request: bytes,
    window: Callable[[Tally], Sequence[object]],
    *,
    streams: int,
    events: int,
    warm_up: float,
    seconds: float,
) -> Tally:
    """`streams` at once, spread evenly over the first half second, each of `events` events; the window lies inside.

    Every stream is read to its end and its events counted (with [DONE], without the usage event). Raises
    BadAnswerError.
    """
    loop = asyncio.get_running_loop()
    tally = Tally()
    clients = []
    began = loop.time()
    for index in range(streams):
        delay = began + 0.5 * index / streams - loop.time()
        if delay > 0:
            await asyncio.sleep(delay)
        _, client = await loop.create_connection(lambda: StreamClient(tally, request, events + 1), "127.0.0.1", port)
        clients.append(client)
    await _sleep(warm_up, tally)
    if tally.started != streams:
        raise BadAnswerError(f"only {tally.started} of {streams} streams had begun")
    window(tally)
    await _sleep(seconds, tally)
    window(tally)
    await asyncio.wait_for(asyncio.gather(*(client.done for client in clients)), 30)
    if tally.failed.done():
        await tally.failed
    return tally


async def _sleep(seconds: float, tally: Tally) -> None:
    """Wait, but not beyond a failure."""
    await asyncio.wait([tally.failed], timeout=seconds)
    if tally.failed.done():
        await tally.failed
