"""HTTP/1.1 as uvicorn with httptools speaks it: the bytes, the connection's life, and who notices that a client left.

Rules, each seen on a real vLLM (transcripts 80 to 88):
- one request at a time on a connection; pipelined ones wait their turn
- an idle connection is closed `keep_alive` seconds after its last response, one that never sent anything is not
- FIN, RST and half-close all mean that the client has left: the exchange is told at once, and nothing more is sent
- reading never pauses while an answer is under way, so leaving is always seen
- a slow reader slows nothing: what it does not take waits in the transport's buffer
- each event is one chunk

An Exchange is one request and its answer. The handler gets it complete with its body and answers through it, now or
later; it is called in the loop's thread and must not block.
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
MAX_PIPELINED = 100  # a client that queues more is dropped
# s; a RST takes along what the other side's kernel has not handed over yet, and garbage may take what is read with it
BREAK_DELAY = 0.01

ReplyHeaders = Iterable[tuple[str, str]]

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
_LINGER_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class WireRequest:
    """One request as it came. Header names are lower case; of repeated ones the last counts."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "target")

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.path = unquote(target.partition("?")[0])
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive


class SimulatedExchange:
    """One request, and the means to answer it.

    on_gone  called once when the client leaves before the answer is complete
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
        """The whole answer at once. `before` and `after` are headers around content-length and content-type."""
        head = self._head(status, before, len(body), content_type, after)
        self._connection.write(head if self.request.method == "HEAD" else head + body)
        self._complete()

    def respond_partly(self, status: int, body: bytes, content_type: str, sent: int) -> None:
        """Announce the whole body but send only its first bytes; the answer stays incomplete."""
        self._connection.write(self._head(status, (), len(body), content_type, (("vary", "Origin"),)) + body[:sent])

    def start_stream(self) -> None:
        """Status and headers of a stream of events."""
        head = self._head(200, (), None, "text/event-stream; charset=utf-8", (("vary", "Origin"),))
        self._connection.write(head[:-2] + b"transfer-encoding: chunked\r\n\r\n")

    def send(self, events: list[bytes]) -> None:
        """Events, one chunk each."""
        self._connection.write(b"".join([b"%x\r\n%b\r\n" % (len(event), event) for event in events]))

    def end_stream(self) -> None:
        """The last chunk."""
        self._connection.write(b"0\r\n\r\n")
        self._complete()

    def write_raw(self, data: bytes) -> None:
        """Bytes that need not be HTTP."""
        self._connection.write(data)

    def close(self) -> None:
        """FIN, wherever the answer stands."""
        self._done = True
        self._connection.close()

    def hang_up(self) -> None:
        """Close BREAK_DELAY after a whole answer that did not announce it, and read nothing until then.

        A request that comes meanwhile turns the FIN into a RST, as at a uvicorn that logs a traceback.
        """
        self._connection.stop_reading()
        self._break_off(self._connection.close)

    def reset(self) -> None:
        """RST, wherever the answer stands, BREAK_DELAY after what was sent."""
        self._break_off(self._connection.reset)

    def garble(self, data: bytes) -> None:
        """Bytes that are no HTTP, wherever the answer stands, BREAK_DELAY after what was sent; then FIN."""
        connection = self._connection

        def finish() -> None:
            connection.write(data)
            connection.close()

        self._break_off(finish)

    def _break_off(self, finish: Callable[[], None]) -> None:
        self._done = True
        loop = self._connection.server.loop
        # In two steps: in a loop that the client shares (a test's), and that was held up, it reads in between.
        loop.call_later(BREAK_DELAY / 2, loop.call_later, BREAK_DELAY / 2, finish)

    def gone(self) -> None:
        """Told by the connection: the client has left."""
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
    """State that all connections of one server share."""

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
        """The factory that `create_server` wants."""
        return SimulatorConnection(self)

    def date(self) -> bytes:
        """The Date header, made once a second."""
        second = int(self.loop.time())
        if second != self._date_second:
            self._date_second = second
            self._date = formatdate(usegmt=True).encode()
        return self._date

    def stop(self) -> None:
        """Close what is idle; the rest closes after its answer."""
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

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self.server.connections.add(self)
        self.server.accepted += 1

    def data_received(self, data: bytes) -> None:
        """Bytes of one or several requests, or of a part of one."""
        self._stop_idle_timer()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return  # an offered upgrade is not taken; the request itself has been answered as plain HTTP
        except httptools.HttpParserError:
            self._refuse_garbage()

    def eof_received(self) -> None:
        """A half-close counts as leaving, as in uvicorn; returning None closes the transport."""
        self._client_left()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio passes it)
        """FIN or RST, from either side."""
        self.server.connections.discard(self)
        self._stop_idle_timer()
        self._client_left()
        self._transport = None

    # httptools' side

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._target, self._headers, self._body = b"", {}, []
        self._receiving = True

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is complete; the body may be waiting for our consent (82)."""
        if self._headers.get("expect", "").lower() == "100-continue" and self._current is None:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
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

    # the exchange's side

    def write(self, data: bytes) -> None:
        """Bytes to the client, if it is still there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def answered(self, exchange: SimulatedExchange) -> None:
        """The current exchange is complete: the next request, or idle."""
        if self._current is not exchange:
            return  # the client left while it was being answered
        self._current = None
        if not exchange.request.keep_alive or self.server.stopping:
            self.close()
        elif self._pending:
            # In a turn of its own: a thousand pipelined requests must not recurse.
            self.server.loop.call_soon(self._begin_pending)
        else:
            self._idle_timer = self.server.loop.call_later(self.server.keep_alive, self.close_if_idle)

    def close(self) -> None:
        """FIN after what is written."""
        if self._transport is not None:
            self._transport.close()

    def stop_reading(self) -> None:
        """Leave what comes in the kernel's buffers."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def close_if_idle(self) -> None:
        """FIN, unless a request is under way."""
        if self._current is None and not self._pending and not (self._receiving and not self.server.stopping):
            self.close()

    def reset(self) -> None:
        """RST."""
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._transport.abort()

    def abort(self) -> None:
        """Drop the connection with whatever is unsent."""
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
        """Bytes that are no HTTP request (88)."""
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
