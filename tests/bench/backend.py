"""The backend of the benchmark: answers as vLLM does on the wire, at a cost that leaves the core to the load generator.

    python -m tests.bench.backend PORT [EVENTS PER_SECOND]

A request is known by what it begins with and where it ends; nothing is parsed further. A stream sends as many token
events as its prompt asks for, at the pace that it asks for (or as the command line says), each in a write of its own,
on a schedule that does not drift.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from tests.bench import wire


class Backend(asyncio.Protocol):
    """One connection from a proxy, or from the load generator where there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, otherwise: wire.Stream = wire.ONE_EVENT) -> None:
        self._loop = loop
        self._otherwise = otherwise
        self._buffer = b""
        self._stream = otherwise
        self._sent = 0
        self._began = 0.0
        self._wants_usage = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            return
        if data.startswith(b"GET "):
            self._buffer = b""
            self._transport.write(wire.MODELS if data.startswith(b"GET /v1/models") else wire.HEALTHY)
            return
        if not data.startswith(b"POST "):  # smg asks in HTTP/2 whether this is gRPC
            self._transport.write(wire.NO_HTTP)
            self._transport.close()
            return
        head = data[:head_end].lower()
        at = head.find(b"content-length:") + 15
        stop = head.find(b"\r\n", at)
        if len(data) < head_end + 4 + int(head[at : stop if stop >= 0 else head_end]):
            return
        self._buffer = b""
        if b'"stream": true' not in data and b'"stream":true' not in data:
            self._transport.write(wire.ANSWER)
            return
        self._begin_stream(data[head_end:])

    def _begin_stream(self, body: bytes) -> None:
        self._stream = wire.asked_for(body, self._otherwise)
        self._wants_usage = b"include_usage" in body
        self._sent = 0
        self._began = self._loop.time()
        self._transport.write(wire.STREAM_HEAD)
        self._tick()

    def _tick(self) -> None:
        self._transport.write(wire.TOKEN_EVENT)
        self._sent += 1
        if self._sent < self._stream.events:
            self._timer = self._loop.call_at(self._began + self._sent / self._stream.per_second, self._tick)
        else:
            self._timer = None
            usage = wire.usage_event(self._sent) if self._wants_usage else b""
            self._transport.write(usage + wire.DONE_EVENT + wire.END_OF_CHUNKS)


async def run(port: int, otherwise: wire.Stream) -> None:
    """Answer on 127.0.0.1 until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Backend(loop, otherwise), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    events, per_second = sys.argv[2:] or ("1", "1")
    uvloop.run(run(int(sys.argv[1]), wire.Stream(int(events), float(per_second))))
