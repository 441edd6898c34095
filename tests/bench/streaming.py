"""Streams: many at a fixed pace with short ones among them for the time to the first event; and many that stay open."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import cast

from tests.bench import wire
from tests.bench.load import BadAnswerError, Mark, Tally, sleep

PATIENCE_SECONDS = 60.0  # for all to begin, and for all to end


class StreamClient(asyncio.Protocol):
    """One stream: counts events as they come; `done` when the last chunk has."""

    def __init__(self, tally: Tally, request: bytes, expected: int) -> None:
        self._tally = tally
        self._request = request
        self._expected = expected
        self._events = 0
        self._tail = b""
        self._head_seen = False
        self._begun = False
        self._closing = False
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            self._look_at_beginning(data)
        # An event's end, and the last chunk, may be cut by a read.
        joined = self._tail + data
        new = joined.count(b"\n\n") - self._tail.count(b"\n\n")
        self._tail = joined[-len(wire.END_OF_CHUNKS) :]
        self._events += new
        self._tally.events += new
        if self._tail == wire.END_OF_CHUNKS and not self.done.done():
            if self._events != self._expected:
                self._tally.fail(f"{self._events} events instead of {self._expected}")
            self._tally.finished += 1
            self.done.set_result(None)
            self._transport.close()

    def _look_at_beginning(self, data: bytes) -> None:
        if not self._head_seen:
            self._head_seen = True
            if not data.startswith(b"HTTP/1.1 200"):
                self._tally.fail(f"expected a stream, got {data[:200]!r}")
        if b"data: " in data:
            self._begun = True
            self._tally.started += 1
            self._tally.latencies.append(time.perf_counter() - self._sent_at)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            if not self._closing:
                self._tally.fail(f"the connection was closed after {self._events} events")
            self.done.set_result(None)

    def close(self) -> None:
        """Leave, without that counting as a failure."""
        self._closing = True
        self._transport.abort()


@dataclass(frozen=True, slots=True)
class Shape:
    """Many streams at once: `count` of them, opened evenly over `ramp` seconds, each `stream`.

    extra_events   what the proxy adds to each stream of its own
    """

    count: int
    ramp: float
    stream: wire.Stream
    extra_events: int = 0

    @property
    def expected(self) -> int:
        """Events that a client has to receive: with [DONE], without the usage that it did not ask for."""
        return self.stream.events + 1 + self.extra_events


async def streams_and_probes(
    port: int, key: str, shape: Shape, mark: Mark, *, warm_up: float, seconds: float, probes: float, probe_rate: float
) -> list[float]:
    """`mark` at the start and at the end of `seconds` in which all streams run; then short streams among them.

    Those are opened at `probe_rate` for `probes` seconds, and the seconds to the first event of each come back. Every
    stream is read to its end and its events are counted. Raises BadAnswerError.
    """
    tally, probed = Tally(), Tally()
    clients = await _open(port, key, shape, tally)
    try:
        await sleep(warm_up, tally)
        mark(tally)
        await sleep(seconds, tally)
        mark(tally)
        probe = Shape(int(probes * probe_rate), probes, wire.Stream(1, 1.0), shape.extra_events)
        clients += await _open(port, key, probe, probed)
        if tally.finished:
            raise BadAnswerError(f"{tally.finished} streams ended before the measurement did")
        await asyncio.wait([client.done for client in clients], timeout=PATIENCE_SECONDS)
        _check(tally, shape.count, tally.finished, "ended")
        _check(probed, probe.count, probed.finished, "ended")
    finally:
        for client in clients:
            client.close()
    return probed.latencies


async def held_streams(port: int, key: str, shape: Shape, mark: Mark, *, settle: float) -> None:
    """Open all streams, and call `mark` when every one has had an event and all are open. Raises BadAnswerError."""
    tally = Tally()
    clients = await _open(port, key, shape, tally)
    try:
        await sleep(settle, tally)
        if tally.finished:
            raise BadAnswerError(f"{tally.finished} streams ended before the measurement did")
        mark(tally)
    finally:
        for client in clients:
            client.close()


async def _open(port: int, key: str, shape: Shape, tally: Tally) -> list[StreamClient]:
    """Open the streams, and wait until each has had an event."""
    loop = asyncio.get_running_loop()
    request = wire.request(key, shape.stream)
    clients: list[StreamClient] = []
    began = loop.time()
    try:
        for index in range(shape.count):
            await sleep(began + shape.ramp * index / shape.count - loop.time(), tally)
            _, client = await loop.create_connection(
                lambda: StreamClient(tally, request, shape.expected), "127.0.0.1", port
            )
            clients.append(client)
        until = loop.time() + PATIENCE_SECONDS
        while tally.started < shape.count and loop.time() < until:
            await sleep(0.01, tally)
        _check(tally, shape.count, tally.started, "had begun")
    except (OSError, BadAnswerError) as error:
        for client in clients:
            client.close()
        raise BadAnswerError(f"{len(clients)} streams were open: {error}") from error
    return clients


def _check(tally: Tally, expected: int, found: int, what: str) -> None:
    if tally.failed.done():
        tally.failed.result()
    if found != expected:
        raise BadAnswerError(f"only {found} of {expected} streams {what} within {PATIENCE_SECONDS:.0f} s")
