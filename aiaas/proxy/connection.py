"""One connection of a client: aiohttp's request handler, and what it leaves open.

aiohttp parses, frames and keeps alive. What it does not do by itself is here, each case seen in an experiment:

- a head that comes too slowly or grows too large has no bound: `header_timeout` and `max_header_size`;
- a client that pipelines is not noticed when it leaves, since reading is paused for the queue: more than one further
  request in the queue drops the connection;
- parser errors are answered in text/plain with the client's bytes in them and a traceback in the log, never with 431:
  `handle_error` answers in the OpenAI shape and logs one line;
- a handler that writes to the transport itself has to be told when the client reads too slowly: `listener`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from aiohttp.http_exceptions import BadStatusLine, LineTooLong
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server

from aiaas.errors import ApiError, ClientError, UpstreamError
from aiaas.proxy.respond import Answered, error_answer

# A connection on which nothing comes is closed after this: longer than the usual ingress keeps its own idle ones (60 s
# in nginx and haproxy), so that the ingress closes first and never writes into a closing connection.
KEEPALIVE_TIMEOUT = 75.0
# How long what a refused client still sends is read and thrown away, so that it can read the refusal.
LINGERING_TIME = 2.0
# Bytes that may wait in a client's socket buffer before the reading from upstream stops. Two large events.
WRITE_HIGH_WATER = 64 * 1024


class WriteListener(Protocol):
    """Who writes to the connection right now."""

    def client_paused(self) -> None:
        """The client's buffer is full: stop."""

    def client_resumed(self) -> None:
        """It has room again: go on."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds and bytes that hold for every head."""

    header_timeout: float
    max_header_size: int


# Called with the exception that escaped a handler: a fault of ours, logged there with its traceback.
InternalErrorHook = Callable[[BaseException | None], None]
# Called with (status, code) for every head that was refused before it became a request.
RefusedHeadHook = Callable[[int, str], None]


class Connection(RequestHandler):
    """A client's connection. `listener` is told when writing has to pause; at most one at a time."""

    __slots__ = ("_body", "_head_bytes", "_head_timer", "_limits", "_on_internal_error", "_on_refused_head", "listener")

    def __init__(
        self,
        manager: Server,
        limits: ConnectionLimits,
        on_internal_error: InternalErrorHook,
        on_refused_head: RefusedHeadHook,
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=KEEPALIVE_TIMEOUT,
            access_log=None,  # type: ignore[arg-type]  # documented as "no access log"
            max_field_size=limits.max_header_size,
            max_line_size=limits.max_header_size,
            lingering_time=LINGERING_TIME,
            auto_decompress=False,
        )
        self._limits = limits
        self._on_internal_error = on_internal_error
        self._on_refused_head = on_refused_head
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._body: Any = None
        self.listener: WriteListener | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what may wait in the socket buffer."""
        super().connection_made(transport)
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the timer and the listener; aiohttp cancels the handler."""
        self._stop_head_timer()
        self.listener = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        if self.listener is not None:
            self.listener.client_paused()

    def resume_writing(self) -> None:
        """The client caught up."""
        super().resume_writing()
        if self.listener is not None:
            self.listener.client_resumed()

    def data_received(self, data: bytes) -> None:
        """Parse, then see whether what came was a head in part, and whether the client runs ahead."""
        before = self._request_count
        in_body = self._body is not None and not self._body.is_eof()
        super().data_received(data)
        if self._request_count != before:
            self._stop_head_timer()
            if self._messages:
                self._body = self._messages[-1][1]
            if len(data) > self._limits.max_header_size and not in_body:
                self._refuse_if_head_too_large(data)
            if len(self._messages) > 1 + (not self._request_in_progress):
                self._drop()
        elif data and not in_body and not self._force_close and not self._close:
            self._partial_head(len(data))

    def _partial_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.max_header_size:
            self._refuse_head(_headers_too_large(self._limits.max_header_size))
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(self._limits.header_timeout, self._head_too_slow)

    def _refuse_if_head_too_large(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        if end > self._limits.max_header_size:
            self._messages.clear()
            self._refuse_head(_headers_too_large(self._limits.max_header_size))

    def _head_too_slow(self) -> None:
        self._head_timer = None
        seconds = self._limits.header_timeout
        self._refuse_head(
            ClientError(408, "request_timeout", f"The request's headers did not arrive within {seconds:g} s.")
        )

    def _refuse_head(self, error: ApiError) -> None:
        self._stop_head_timer()
        # While an earlier request is being answered, an answer to the next one cannot be put on the wire.
        if not self._request_in_progress and self.transport is not None:
            self._on_refused_head(error.status, error.code)
            self.transport.write(error_answer(error, extra=b"", close=True))
        self.force_close()

    def _drop(self) -> None:
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def _stop_head_timer(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def handle_error(  # type: ignore[override]  # an Answered is what aiohttp uses of a response
        self,
        request: BaseRequest,  # noqa: ARG002
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> Answered:
        """Answer what the HTTP parser refused (4xx), or what escaped our own handler (500)."""
        error = _parser_error(exc, self._limits.max_header_size) if status < 500 else _internal_error()
        if status >= 500:
            self._on_internal_error(exc)
        else:
            self._on_refused_head(error.status, error.code)
        if self.transport is None:
            raise ConnectionResetError("the client has left")
        if self.listener is None:
            self.transport.write(error_answer(error, extra=b"", close=True))
        self.close()
        return Answered(keep_alive=False)


class OpenSide(Server):
    """aiohttp's low-level server, making our connections. The handler is cancelled when its client leaves."""

    def __init__(
        self,
        handler: Callable[[BaseRequest], Awaitable[Any]],
        limits: ConnectionLimits,
        on_internal_error: InternalErrorHook,
        on_refused_head: RefusedHeadHook,
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._connection_limits = limits
        self._on_internal_error = on_internal_error
        self._on_refused_head = on_refused_head

    def __call__(self) -> Connection:
        """Make the protocol of one new connection."""
        return Connection(
            self, self._connection_limits, self._on_internal_error, self._on_refused_head, loop=self._loop
        )


def _headers_too_large(limit: int) -> ClientError:
    return ClientError(431, "headers_too_large", f"The request's headers are larger than {limit} bytes.")


def _parser_error(exc: BaseException | None, limit: int) -> ClientError:
    if isinstance(exc, LineTooLong):
        return _headers_too_large(limit)
    if isinstance(exc, BadStatusLine):
        return ClientError(400, "invalid_request", "The request line is not valid HTTP/1.1.")
    return ClientError(400, "invalid_request", "The request is not valid HTTP/1.1.")


def _internal_error() -> UpstreamError:
    return UpstreamError(500, "internal_error", "The gateway failed on this request; its log says why.")
