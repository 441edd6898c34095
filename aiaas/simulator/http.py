"""HTTP/1.1 like uvicorn with httptools: the bytes, the connection's life, and noticing that a client disconnects.

Rules, each observed on a real vLLM (transcripts 80 to 88):
- a connection serves one request at a time; pipelined requests wait their turn
- the server closes an idle connection `keep_alive` seconds after its last response, but never before the first request
- FIN, RST and half-close all mean that the client has left: the exchange is notified at once, and sending stops
- reading never pauses during an answer, so a disconnect is always noticed
- a slow reader does not slow down the server: unread bytes wait in the transport's buffer
- each event is one chunk

An Exchange is one request and its answer. The handler gets the complete request and answers through the exchange, now
or later. The handler runs in the loop's thread and must not block.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

import httptools

SERVER = b"aiaas-simulator"
MAX_PIPELINED = 100  # requests; a client that pipelines more is disconnected
# s; without it, a RST would discard bytes that the client has not read yet, and garbage could arrive in the same read
# as the bytes before it and spoil them
BREAK_DELAY = 0.01

ReplyHeaders = Iterable[tuple[str, str]]

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
_LINGER_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class WireRequest:
    """One request as received. Header names are lower case; of repeated headers the last one counts."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "target")

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.path = unquote(target.partition("?")[0])
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive


class SimulatedExchange:
    """One request and the methods to answer it.

    on_gone  called once if the client leaves before the answer is complete
    """

    __slots__ = ("_connection", "_done", "extra_headers", "on_gone", "request", "status")

    def __init__(self, connection: SimulatorConnection, request: WireRequest) -> None:
        self._connection = connection
        self._done = False
        self.request = request
        self.status = 0
        self.extra_headers: tuple[tuple[str, str], ...] = ()
        self.on_gone: Callable[[], None] | None = None

    def respond(
        self, status: int, body: bytes, content_type: str | None, *, before: ReplyHeaders = (), after: ReplyHeaders = ()
    ) -> None:
        """Send the whole answer. `before` and `after` are headers around content-length and content-type."""
        head = self._head(status, before, len(body), content_type, after)
        self._connection.write(head if self.request.method == "HEAD" else head + body)
        self._complete()

    def respond_partly(self, status: int, body: bytes, content_type: str, sent: int) -> None:
        """Announce the whole body but send only its first `sent` bytes; the answer stays incomplete."""
        self._connection.write(self._head(status, (), len(body), content_type, (("vary", "Origin"),)) + body[:sent])

    def start_stream(self) -> None:
        """Send the status and headers of a stream of events."""
        head = self._head(200, (), None, "text/event-stream; charset=utf-8", (("vary", "Origin"),))
        self._connection.write(head[:-2] + b"transfer-encoding: chunked\r\n\r\n")

    def send(self, events: list[bytes]) -> None:
        """Send events, one chunk each."""
        self._connection.write(b"".join([b"%x\r\n%b\r\n" % (len(event), event) for event in events]))

    def end_stream(self) -> None:
        """Send the last chunk."""
        self._connection.write(b"0\r\n\r\n")
        self._complete()

    def write_raw(self, data: bytes) -> None:
        """Send bytes that need not be HTTP."""
        self._connection.write(data)

    def close(self) -> None:
        """Send FIN, even in the middle of the answer."""
        self._done = True
        self._connection.close()

    def hang_up(self) -> None:
        """Close BREAK_DELAY after a complete answer without `connection: close`, and do not read until then.

        A request that arrives in between turns the FIN into a RST, as in a uvicorn that logs a traceback.
        """
        self._connection.stop_reading()
        self._break_off(self._connection.close)

    def reset(self) -> None:
        """Send RST, even in the middle of the answer, BREAK_DELAY after the last bytes."""
        self._break_off(self._connection.reset)

    def garble(self, data: bytes) -> None:
        """Send bytes that are not HTTP, even in the middle of an answer, BREAK_DELAY after its last bytes; then FIN."""
        connection = self._connection

        def finish() -> None:
            connection.write(data)
            connection.close()

        self._break_off(finish)

    def _break_off(self, finish: Callable[[], None]) -> None:
        self._done = True
        loop = self._connection.server.loop
        # Two steps, so that a client in the same loop (in a test) can read in between even if the loop was blocked.
        loop.call_later(BREAK_DELAY / 2, loop.call_later, BREAK_DELAY / 2, finish)

    def gone(self) -> None:
        """Called by the connection when the client has left."""
        if not self._done:
            self._done = True
            if self.on_gone is not None:
                self.on_gone()

    def _complete(self) -> None:
        self._done = True
        self._connection.answered(self)

    def _head(
        self, status: int, before: ReplyHeaders, length: int | None, content_type: str | None, after: ReplyHeaders
    ) -> bytes:
        self.status = status
        lines = [
            b"HTTP/1.1 %d %b" % (status, _PHRASES.get(status, b"")),
            b"date: " + self._connection.server.date(),
            b"server: " + SERVER,
        ]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in before]
        if length is not None:
            lines.append(b"content-length: %d" % length)
        if content_type is not None:
            lines.append(b"content-type: " + content_type.encode())
        lines += [f"{name}: {value}".encode("latin-1") for name, value in (*after, *self.extra_headers)]
        if not self.request.keep_alive:
            lines.append(b"connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"


Handler = Callable[[SimulatedExchange], None]


class HttpServer:
    """The state that all connections of one server share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, keep_alive: float, handler: Handler) -> None:
        self.loop = loop
        self.keep_alive = keep_alive
        self.handler = handler
        self.connections: set[SimulatorConnection] = set()
        self.accepted = 0
        self.stopping = False
        self._date = b""
        self._date_second = -1

    def protocol(self) -> SimulatorConnection:
        """The protocol factory for `create_server`."""
        return SimulatorConnection(self)

    def date(self) -> bytes:
        """Return the Date header, formatted once a second."""
        second = int(self.loop.time())
        if second != self._date_second:
            self._date_second = second
            self._date = formatdate(usegmt=True).encode()
        return self._date

    def stop(self) -> None:
        """Close idle connections now and the others after their answers."""
        self.stopping = True
        for connection in tuple(self.connections):
            connection.close_if_idle()

    def abort(self) -> None:
        """Drop every connection."""
        self.stopping = True
        for connection in tuple(self.connections):
            connection.abort()


class SimulatorConnection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._current: SimulatedExchange | None = None
        self._pending: deque[WireRequest] = deque()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._receiving = False

    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not a subclass
        self.server.connections.add(self)
        self.server.accepted += 1

    def data_received(self, data: bytes) -> None:
        """Take bytes of one or several requests, or of a part of a request."""
        self._stop_idle_timer()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return  # ignore the offered upgrade; the request has been answered as plain HTTP
        except httptools.HttpParserError:
            self._refuse_garbage()

    def eof_received(self) -> None:
        """Treat a half-close as a disconnect, as uvicorn does; returning None closes the transport."""
        self._client_left()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio passes it)
        """Clean up after a FIN or RST from either side."""
        self.server.connections.discard(self)
        self._stop_idle_timer()
        self._client_left()
        self._transport = None

    # called by httptools

    def on_message_begin(self) -> None:
        """A request begins."""
        self._target, self._headers, self._body = b"", {}, []
        self._receiving = True

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The headers are complete; send 100 Continue if the client waits for it (82)."""
        if self._headers.get("expect", "").lower() == "100-continue" and self._current is None:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._receiving = False
        keep_alive = self._parser.should_keep_alive() and self._parser.get_http_version() != "1.0"
        request = WireRequest(
            self._parser.get_method().decode("latin-1"),
            self._target.decode("latin-1"),
            self._headers,
            b"".join(self._body),
            keep_alive,
        )
        self._body = []
        if self._current is None:
            self._begin(request)
        elif len(self._pending) < MAX_PIPELINED:
            self._pending.append(request)
        else:
            self.abort()

    # called by the exchange

    def write(self, data: bytes) -> None:
        """Send bytes to the client, if it is still connected."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def answered(self, exchange: SimulatedExchange) -> None:
        """Complete the current exchange: begin the next request, or become idle."""
        if self._current is not exchange:
            return  # the client left during the answer
        self._current = None
        if not exchange.request.keep_alive or self.server.stopping:
            self.close()
        elif self._pending:
            # Begin in another turn of the loop, so that many pipelined requests do not recurse.
            self.server.loop.call_soon(self._begin_pending)
        else:
            self._idle_timer = self.server.loop.call_later(self.server.keep_alive, self.close_if_idle)

    def close(self) -> None:
        """Send FIN after the buffered bytes."""
        if self._transport is not None:
            self._transport.close()

    def stop_reading(self) -> None:
        """Leave further bytes in the kernel's buffers."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def close_if_idle(self) -> None:
        """Send FIN, unless a request is in progress."""
        if self._current is None and not self._pending and not (self._receiving and not self.server.stopping):
            self.close()

    def reset(self) -> None:
        """Send RST."""
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._transport.abort()

    def abort(self) -> None:
        """Drop the connection and all unsent bytes."""
        if self._transport is not None:
            self._transport.abort()

    def _begin(self, request: WireRequest) -> None:
        self._current = exchange = SimulatedExchange(self, request)
        self.server.handler(exchange)

    def _begin_pending(self) -> None:
        if self._current is None and self._pending and self._transport is not None:
            self._begin(self._pending.popleft())

    def _client_left(self) -> None:
        self._pending.clear()
        current, self._current = self._current, None
        if current is not None:
            current.gone()

    def _refuse_garbage(self) -> None:
        """Answer bytes that are not an HTTP request (88)."""
        body = b"Invalid HTTP request received."
        self.write(
            b"HTTP/1.1 400 Bad Request\r\ndate: %b\r\nserver: %b\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (self.server.date(), SERVER, len(body), body)
        )
        self.close()

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
