"""One connection of a client: aiohttp's parser and its streams, and the life of the connection around them.

aiohttp's own connection class is not used: its two tasks are a quarter of a short request's cost (`handler.py`), and
it leaves these cases open, each seen in an experiment:

- it bounds neither the time nor the size of a head: `header_timeout` and `max_header_size`;
- it does not notice when a pipelining client leaves, since it pauses reading for the queue. One request may wait
  behind the one that is being answered; the next is refused in its turn (400: the client would only do it again, so
  neither 429 nor 503), and later bytes are read and thrown away;
- so are bytes behind `Connection: close` or an offered upgrade (RFC 9112 section 9.6), for which the parser raises;
- it answers parser errors in text/plain with the client's bytes in them and a traceback in the log, never with 431;
- a body that breaks off in the middle (an invalid chunk size) leaves its reader waiting: `body_broken`;
- a close while the client still sends is a reset, which may destroy the answer that it has not read yet: `linger`;
- incomplete heads and the buffers of TLS count in the process' memory budget: `guest`, its place;
- a handler that writes to the transport itself must know when the client reads too slowly: `listener`. Until the
  client has caught up, its next request waits, so that the memory does not fill with answers;
- nobody watches whether the client takes the last bytes of an answer: `drain_watch.py`.

Every refusal of a head is queued like a request, so that it is answered in its turn, behind what came before it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD
from typing import TYPE_CHECKING, Any, cast

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from aiaas.errors import ApiError
from aiaas.proxy.client.alarm import Alarm
from aiaas.proxy.client.answers import date_header, error_answer
from aiaas.proxy.client.drain_watch import DrainWatch
from aiaas.proxy.client.forwarded import peer_address
from aiaas.proxy.client.handler import HandlerRun
from aiaas.proxy.client.hooks import WriteListener
from aiaas.proxy.client.incoming import HttpRequest, Incoming, request_of
from aiaas.proxy.client.places import TLS_READ_FACTOR, Guest
from aiaas.proxy.client.refusal import HeadTooSlow, TooFarAhead, internal_error, refusal
from aiaas.proxy.client.request_target import path_of

if TYPE_CHECKING:
    from aiaas.proxy.client.open_side import OpenSide

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


class ClientConnection(BaseProtocol):
    """A client's connection.

    alarm        of the writer of its answer: silence, heartbeat, deadline; without a request, of the connection itself
    loop         cheaper than asyncio.get_running_loop (in CPython 3.11 a system call)
    listener     called when writing has to pause; at most one at a time
    handler      of the present request; None while there is none
    begun        whether something of the present request's answer may be on the wire, so that no other can be given
    extra        complete header lines for an answer that the connection itself gives to the present request
    guest        its place among all connections; None where those are not counted
    wire, sock   the transport and its socket until they are closed; aiohttp's `transport` is None once nothing more is
                 to be written
    tls          whether it is one under TLS
    last_used    when its last answer ended, by the loop's clock
    """

    __slots__ = (
        "_closed", "_closing", "_drain", "_head_timer", "_incoming", "_largest_read", "_linger_timer",
        "_lingering", "_origin", "_queue", "_quiet", "_refused", "_request", "_side", "alarm", "begun", "extra",
        "guest", "handler", "last_used", "listener", "loop", "peer", "sock", "tls", "wire",
    )  # fmt: skip

    def __init__(self, side: OpenSide, loop: asyncio.AbstractEventLoop, guest: Guest | None = None) -> None:
        super().__init__(loop)
        self.loop = loop
        self._side = side
        self._incoming = Incoming(self, loop, side.limits.max_header_size, side.prefix)
        self._parser = self._incoming.parser
        self._queue: list[tuple[RawRequestMessage, StreamReader] | Exception] = []  # short: a deque takes 700 bytes
        self._request: HttpRequest | None = None
        self._closing = False  # closes behind the present answer
        self._closed = False  # nothing more is read or answered
        self._quiet: asyncio.Future[None] | None = None  # of `shutdown`, which waits for the present answer
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False  # later bytes are not parsed
        self._origin: str | None = None  # of the head that was refused
        self._largest_read = sys.maxsize  # without TLS nothing remains of a read
        self._lingering: asyncio.Transport | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._drain = DrainWatch(side.limits.closing_silence)
        self.handler: HandlerRun[bool] | None = None
        self.listener: WriteListener | None = None
        self.begun = False
        self.extra = b""
        self.guest = guest
        self.last_used = 0.0
        self.peer = "local"
        self.wire: asyncio.Transport | None = None
        self.sock: Any = None
        self.tls = False
        self.alarm = Alarm(loop)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound the bytes in the socket buffer, and read the client's address."""
        self.transport = self.wire = cast(asyncio.Transport, transport)
        self._side.opened(self)
        peername = transport.get_extra_info("peername")
        if isinstance(peername, tuple):
            self.peer = peer_address(peername)
        self.wire.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self.sock = transport.get_extra_info("socket")
        self.tls = transport.get_extra_info("sslcontext") is not None
        if self.guest is not None:
            self.guest.occupant, self.guest.end = self, self.wire.abort
            if self.tls:
                self._largest_read = TLS_READ
        self._begin_idle()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the handler; forget the timers and the listener."""
        self._stop_head_timer()
        self._end_lingering()
        self.listener = self.wire = self.sock = None
        self.alarm.close()
        if self.guest is not None:
            self.guest.leave()
            self.guest = None
        self._incoming.let_go()
        self._queue.clear()  # its bodies refer to this connection
        self._closed = True
        super().connection_lost(exc)
        self._parser = None
        self._drain.stop()
        self.cancel()
        self._side.closed(self)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Do nothing unless paused: aiohttp calls this after every part of a body, and would parse b"" each time."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    @property
    def body_broken(self) -> bool:
        """Whether a parser error cut off the last body."""
        return self._incoming.body_broken

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, or for the rest of a head."""
        return self.handler is None and not self._queue and not self._closed

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is read or answered."""
        return self._closed

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        if self.listener is not None:
            self.listener.client_paused()

    def resume_writing(self) -> None:
        """The client caught up."""
        super().resume_writing()
        self._drain.watch(self, self.transport)
        if self.listener is not None:
            self.listener.client_resumed()
        elif self.handler is None:
            self._serve_next()

    # -- heads ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse one message after the other, and count the last bytes if they are an incomplete head."""
        if self._refused or self._closed or self._closing:
            return
        if len(data) > self._largest_read:
            self._count_read(len(data))
        if self.handler is None and not self._queue and not self._paused:
            request = self._incoming.plain(data)
            if request is not None:
                self._serve(request)
                return
        read = data
        messages = 0
        while (got := self._incoming.next(data, read)) is not None:
            if isinstance(got, Exception):
                # Refuse all later bytes, too: we cannot know where this body ends.
                self._refuse_head(got, self._incoming.head.origin(read))
                return
            self._stop_head_timer()
            messages += 1
            if len(self._queue) >= MAX_QUEUED or messages > 1 + MAX_QUEUED:
                self._refuse_head(TooFarAhead(), got[0].headers.get("origin"))
                return
            self._take(got)
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
            self._head_timer = self._loop.call_later(self._side.limits.header_timeout, self._head_too_slow)

    def _head_too_slow(self) -> None:
        self._head_timer = None
        self._refuse_head(HeadTooSlow(), self._incoming.head.origin())

    def _refuse_head(self, reason: Exception, origin: str | None) -> None:
        """Queue a refusal where the request would have been queued. `origin`: the web page that it is for."""
        self._refused, self._origin = True, origin
        self._stop_head_timer()
        self._take(reason)

    def _stop_head_timer(self) -> None:
        self._incoming.head.clear()
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
            if self.guest is not None:
                self.guest.drop_head()

    # -- requests, one after the other ----------------------------------------------------------------------------

    def _take(self, got: tuple[RawRequestMessage, StreamReader] | Exception) -> None:
        """Serve a message or a refusal now, or behind what is being answered or not yet read."""
        self._queue.append(got)
        if self.handler is None:
            self._serve_next()

    def _serve_next(self) -> None:
        if not self._queue or self._paused or self._closed:
            return
        got = self._queue.pop(0)
        if isinstance(got, Exception):
            error = refusal(got, self._side.limits)
            self.begun = False
            self._answer_error(error, "", self._side.hooks.refused_head(self.peer, error, self._origin))
            return
        if self._parser is not None:
            self._parser.message_consumed()
        self._serve(request_of(got[0], got[1], self._incoming.prefix))

    def _serve(self, request: HttpRequest) -> None:
        self.begun, self.extra = False, b""
        self._request = request
        self.handler = HandlerRun(self._side.handle(request, self), self._loop, self._served)
        self.handler.step()

    def _served(self, keep_alive: bool | None, error: BaseException | None) -> None:
        """The handler has ended, and its answer is written."""
        request, self._request, self.handler = self._request, None, None
        if self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
        ends = not keep_alive or self._closing
        if error is not None:
            self._failed(error, request)
        elif (request is not None and request.content is not EMPTY_PAYLOAD and not request.content.is_eof()) or (
            ends and self._more_came
        ):
            self.linger()
        elif ends:
            self.force_close()
        if self._closed:
            return
        self._drain.watch(self, self.transport)
        self._begin_idle()
        if self._queue:
            self._serve_next()

    @property
    def _more_came(self) -> bool:
        """Whether the client has sent bytes behind the present request, or is sending them: all are thrown away."""
        if self._queue or self._incoming.surplus or not self._incoming.body.is_eof():
            return True
        try:  # or the kernel has some that were not read yet
            return self.sock is not None and any(ioctl(self.sock.fileno(), FIONREAD, bytes(4)))
        except (OSError, ValueError):  # the socket is closed already
            return False

    def _failed(self, error: BaseException, request: HttpRequest | None) -> None:
        if isinstance(error, asyncio.CancelledError):  # the client has left, or the server ends
            self.force_close()
            return
        self._side.hooks.internal_error(error)
        if self.begun or request is None:
            self.force_close()
        else:
            self._answer_error(internal_error(), path_of(request.raw_path) or "", self.extra)

    def _answer_error(self, error: ApiError, path: str, extra: bytes) -> None:
        """Give the last answer of this connection; `path` decides its shape."""
        if self.transport is not None:
            self.transport.write(error_answer(error, path, extra=date_header(time.time()) + extra, close=True))
        self.linger()

    def _begin_idle(self) -> None:
        self.last_used = self._loop.time()
        self.alarm.set(self.last_used + KEEPALIVE_TIMEOUT, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.is_idle:
            self.force_close()

    def cancel(self) -> None:
        """Raise CancelledError where the present request's handler waits."""
        if self.handler is not None:
            self.handler.cancel()

    # -- ends -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close behind the present answer."""
        self._closing = True
        if self.handler is None:
            self.force_close()

    def force_close(self) -> None:
        """Close as soon as the client has read all written bytes."""
        self._closed = True
        transport, self.transport = self.transport, None
        if transport is not None:
            self._drain.watch(self, transport)
            transport.close()

    async def shutdown(self, timeout: float) -> None:
        """Let the present answer end within `timeout` seconds, then close."""
        self._closing = True
        if self.handler is not None:
            self._quiet = self._loop.create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._quiet
        self.cancel()
        self._end_lingering()
        self.force_close()

    def linger(self) -> None:
        """End the connection in a way that lets the client read the last answer, although it may still be sending.

        Close our side at once, and throw later bytes away until the client closes, for LINGERING_TIME at most.
        """
        transport = self.transport
        if transport is None:
            return
        self._drain.watch(self, transport)
        self.transport = None  # nothing is written any more
        self._closed = True
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

    def drop(self, reason: str) -> None:
        """Close the connection at once, without an answer; `reason` is for the log."""
        self._side.hooks.dropped(self.peer, reason)
        wire = self.wire
        self.force_close()
        if wire is not None:
            wire.abort()
