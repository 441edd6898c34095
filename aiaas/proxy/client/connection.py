"""One connection of a client: aiohttp's request handler, and the cases that aiohttp leaves open.

aiohttp parses, frames and keeps alive. This module adds the rest, each case seen in an experiment:

- aiohttp bounds neither the time nor the size of a head: `header_timeout` and `max_header_size`;
- aiohttp does not notice when a pipelining client leaves, since it pauses reading for the queue. One request may wait
  behind the one that is being answered; the next is refused in its turn (400: the client would only do it again, so
  neither 429 nor 503), and later bytes are read and thrown away;
- so are bytes behind `Connection: close` or an offered upgrade (RFC 9112 section 9.6), for which the parser raises;
- parser errors are answered in text/plain with the client's bytes in them and a traceback in the log, never with 431:
  `handle_error` answers in the OpenAI shape and logs one line;
- a body that breaks off in the middle (an invalid chunk size) leaves its reader waiting: `body_broken`;
- a close while the client still sends is a reset, which may destroy the answer that it has not read yet: `linger`;
- incomplete heads and the buffers of TLS count in the process' memory budget: `guest`, its place;
- a handler that writes to the transport itself must know when the client reads too slowly: `listener`;
- aiohttp does not watch the last bytes of an answer, and `transport.close()` waits for them forever: a client that
  reads none of them for `closing_silence` is dropped (once, a socket leaked for each client that had stopped reading).
  Under TLS those bytes lie below the transport that we see; there `liveness.py` asks the kernel.

Every refusal of a head is queued like a request, so that it is answered in its turn, behind what came before it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server

from aiaas.errors import ApiError
from aiaas.proxy.client.alarm import Alarm
from aiaas.proxy.client.answers import Answered, date_header, error_answer
from aiaas.proxy.client.forwarded import plain_address
from aiaas.proxy.client.hooks import Hooks, WriteListener
from aiaas.proxy.client.incoming import Incoming
from aiaas.proxy.client.places import TLS_READ_FACTOR, Guest
from aiaas.proxy.client.refusal import MAX_HEADERS, ConnectionLimits, HeadTooSlow, TooFarAhead, internal_error, refusal
from aiaas.proxy.client.request_target import path_of

# Close idle connections after this: longer than the usual ingress keeps its own idle ones (60 s in nginx and haproxy),
# so that the ingress closes first and never writes into a closing connection.
KEEPALIVE_TIMEOUT = 75.0
# Read and throw away a refused client's bytes for this long, so that the client can read the refusal.
LINGERING_TIME = 2.0
# Bytes that may wait in a client's socket buffer before the reading from upstream stops. Two large events.
WRITE_HIGH_WATER = 64 * 1024
# Requests that may wait behind the one that is being answered.
MAX_QUEUED = 1
# Under TLS the bytes of a read stay in lower buffers until the connection ends; each TLS connection's fixed cost
# includes this many.
TLS_READ = 16 * 1024


class ClientConnection(RequestHandler):
    """A client's connection.

    alarm        of the writer of its answer: silence, heartbeat, deadline
    listener     called when writing has to pause; at most one at a time
    begun        whether something of the present request's answer may be on the wire, so that no other can be given
    extra        complete header lines for an answer that the connection itself gives to the present request
    guest        its place among all connections; None where those are not counted
    wire, sock   the transport and its socket until they are closed; aiohttp forgets `transport` when it begins to
    tls          whether it is one under TLS
    """

    __slots__ = (
        "_drain_timer",
        "_head_timer",
        "_hooks",
        "_incoming",
        "_largest_read",
        "_limits",
        "_linger_timer",
        "_lingering",
        "_origin",
        "_refused",
        "alarm",
        "begun",
        "extra",
        "guest",
        "listener",
        "peer",
        "sock",
        "tls",
        "wire",
    )

    def __init__(
        self,
        manager: Server,
        limits: ConnectionLimits,
        hooks: Hooks,
        *,
        loop: asyncio.AbstractEventLoop,
        guest: Guest | None = None,
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=KEEPALIVE_TIMEOUT,
            access_log=None,  # type: ignore[arg-type]  # documented as "no access log"
            max_field_size=limits.max_header_size,
            max_line_size=limits.max_header_size,
            max_headers=MAX_HEADERS,
            lingering_time=LINGERING_TIME,
            auto_decompress=False,
        )
        self._incoming = Incoming(self, loop, self._read_bufsize, limits.max_header_size)
        self._parser = self._incoming.parser
        self._limits = limits
        self._hooks = hooks
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False  # later bytes are not parsed
        self._origin: str | None = None  # of the head that was refused
        self._largest_read = sys.maxsize  # without TLS nothing remains of a read
        self._lingering: asyncio.Transport | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._drain_timer: asyncio.TimerHandle | None = None
        self.listener: WriteListener | None = None
        self.begun = False
        self.extra = b""
        self.guest = guest
        self.peer = "local"
        self.wire: asyncio.Transport | None = None
        self.sock: Any = None
        self.tls = False
        self.alarm = Alarm(loop)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound the bytes in the socket buffer, and read the client's address."""
        super().connection_made(transport)
        peername = transport.get_extra_info("peername")
        if isinstance(peername, tuple):
            self.peer = plain_address(peername[0]) or peername[0]
        self.wire = cast(asyncio.Transport, transport)
        self.wire.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self.sock = transport.get_extra_info("socket")
        self.tls = transport.get_extra_info("sslcontext") is not None
        if self.guest is not None:
            self.guest.occupant, self.guest.end = self, self.wire.abort
            if self.tls:
                self._largest_read = TLS_READ

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the timers and the listener; aiohttp cancels the handler."""
        self._stop_head_timer()
        self._end_lingering()
        self.listener = self.wire = self.sock = None
        self.alarm.close()
        if self.guest is not None:
            self.guest.leave()
            self.guest = None
        self._incoming.let_go()
        super().connection_lost(exc)
        self._stop_drain_timer()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Do nothing unless paused: aiohttp calls this after every part of a body, and would parse b"" each time."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    @property
    def body_broken(self) -> bool:
        """Whether a parser error cut off the last body."""
        return self._incoming.body_broken

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, or for the rest of a head."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def is_ending(self) -> bool:
        """Whether its last answer is written."""
        return self._force_close

    @property
    def last_used(self) -> float:
        """When its last answer ended, on a clock of its own."""
        return self._next_keepalive_close_time

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The connection's loop; cheaper than asyncio.get_running_loop (in CPython 3.11 a system call)."""
        return self._loop

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Let the handler end within `timeout` seconds, then close."""
        await super().shutdown(timeout)
        self._end_lingering()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        if self.listener is not None:
            self.listener.client_paused()

    def resume_writing(self) -> None:
        """The client caught up."""
        super().resume_writing()
        self._watch_drain(self.transport)
        if self.listener is not None:
            self.listener.client_resumed()

    # -- heads ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse one message after the other, and count the last bytes if they are an incomplete head."""
        if self._refused or self._force_close or self._close:
            return
        if len(data) > self._largest_read:
            self._count_read(len(data))
        read = data
        while (got := self._incoming.next(data, read)) is not None:
            if isinstance(got, Exception):
                # Refuse all later bytes, too: we cannot know where this body ends.
                self._refuse_head(got, self._incoming.head.origin(read))
                return
            self._stop_head_timer()
            if len(self._messages) >= MAX_QUEUED + (not self._request_in_progress):
                self._refuse_head(TooFarAhead(), got[0].headers.get("origin"))
                return
            self._enqueue(*got)
            data = b""
        if size := self._incoming.head.size:
            self._partial_head(size)

    def _count_read(self, size: int) -> None:
        """Count the memory that a read leaves behind. If the budget is spent, refuse the body that was read."""
        if self.guest is not None and self.guest.hold((size - self._largest_read) * TLS_READ_FACTOR):
            self._largest_read = size

    def _partial_head(self, size: int) -> None:
        """Count an incomplete head of which `size` bytes have arrived."""
        if self.guest is not None and not self.guest.hold_head(size):
            self.drop("there was no memory left for its headers")
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(self._limits.header_timeout, self._head_too_slow)

    def _enqueue(self, message: RawRequestMessage | _ErrInfo, body: StreamReader) -> None:
        self._messages.append((message, body))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _head_too_slow(self) -> None:
        self._head_timer = None
        self._refuse_head(HeadTooSlow(), self._incoming.head.origin())

    def _refuse_head(self, reason: Exception, origin: str | None) -> None:
        """Queue a refusal where the request would have been queued. `origin`: the web page that it is for."""
        self._refused, self._origin = True, origin
        self._stop_head_timer()
        self._enqueue(_ErrInfo(400, reason, ""), EMPTY_PAYLOAD)

    def _stop_head_timer(self) -> None:
        self._incoming.head.clear()
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
            if self.guest is not None:
                self.guest.drop_head()

    # -- ends -----------------------------------------------------------------------------------------------------

    def handle_error(  # type: ignore[override]  # an Answered is what aiohttp uses of a response
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> Answered:
        """Answer a refused head (4xx), or an exception that escaped our own handler (500)."""
        if status >= 500:
            self._hooks.internal_error(exc)
            error: ApiError = internal_error()
            path = path_of(request.raw_path) or ""
        else:
            path = ""  # it never became a request
            error = refusal(exc, self._limits)
            self.begun, self.extra = False, self._hooks.refused_head(self.peer, error, self._origin)
        if self.transport is None:
            raise ConnectionResetError("the client has left")
        if self.begun:
            self.force_close()
        else:
            self.transport.write(error_answer(error, path, extra=date_header(time.time()) + self.extra, close=True))
            self.linger()
        return Answered(keep_alive=False)

    def linger(self) -> None:
        """End the connection in a way that lets the client read the last answer, although it may still be sending.

        Close our side at once, and throw later bytes away until the client closes, for LINGERING_TIME at most.
        """
        transport = self.transport
        if transport is None:
            return
        self._watch_drain(transport)
        self.transport = None  # as in aiohttp's `force_close`: nothing is written any more
        self._force_close = True
        self._incoming.let_go()
        self._parser = None
        self._lingering = transport
        self._linger_timer = self._loop.call_later(LINGERING_TIME, self._end_lingering)
        if not transport.is_reading():
            transport.resume_reading()
        if transport.can_write_eof():
            with suppress(OSError):  # it has just been reset
                transport.write_eof()

    def _end_lingering(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        if self._lingering is not None:
            self._lingering.close()
            self._lingering = None

    async def finish_response(self, request: BaseRequest, resp: Any, start_time: float | None) -> tuple[Any, bool]:
        """The answer is written; see that the client takes it."""
        finished = await super().finish_response(request, resp, start_time)
        self._watch_drain(self.transport)
        if self._incoming.surplus:
            self.linger()
        return finished

    def force_close(self) -> None:
        """Close as soon as the client has read all written bytes."""
        self._watch_drain(self.transport)
        super().force_close()

    def _watch_drain(self, transport: asyncio.Transport | None) -> None:
        """Drop the client if it reads none of the bytes that wait for it now. Costs nothing if none wait."""
        waiting = transport.get_write_buffer_size() if transport is not None else 0
        if transport is None or not waiting:
            return
        if self._drain_timer is not None:
            if self._paused:  # further requests from a client that never reads do not extend its time
                return
            self._drain_timer.cancel()
        self._drain_timer = self._loop.call_later(self._limits.closing_silence, self._look, transport, waiting)

    def _look(self, transport: asyncio.Transport, before: int) -> None:
        self._drain_timer = None
        if self.listener is not None:
            return  # the next answer is being written; its writer looks after the client
        if transport.get_write_buffer_size() >= before:
            self._hooks.dropped(self.peer, "it did not read the end of its answer")
            transport.abort()
        else:
            self._watch_drain(transport)

    def _stop_drain_timer(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    def drop(self, reason: str) -> None:
        """Close the connection at once, without an answer; `reason` is for the log."""
        self._hooks.dropped(self.peer, reason)
        wire = self.wire
        self.force_close()
        if wire is not None:
            wire.abort()


class OpenSide(Server):
    """aiohttp's low-level server, making our connections. The handler is cancelled when its client leaves."""

    def __init__(
        self,
        handler: Callable[[BaseRequest], Awaitable[Any]],
        limits: ConnectionLimits,
        hooks: Hooks,
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._connection_limits = limits
        self._hooks = hooks

    def __call__(self, guest: Guest | None = None) -> ClientConnection:
        """Make the protocol of one new connection, which has the place `guest`."""
        return ClientConnection(self, self._connection_limits, self._hooks, loop=self._loop, guest=guest)
