"""The upstream leg: one exchange at a time over a pooled HTTP/1.1 connection to one endpoint.

Theory. A general client costs three times as much; this one only talks to configured backends. `httpclient/reader.py`
reads the answers, and all bytes of one read from the socket go to the `Sink` in one call, so that one read upstream is
one write downstream, without a task switch in between.

    connecting -> idle -> exchanging -> idle | closed

Rules
- A connection carries one exchange at a time; bytes that come while none is under way, or after its end, close it.
- An answer without a length ends with the connection; any other early end is a failure.
- The backend's FIN is the end, even while a part of the request is still unsent: nothing more can come.
- A connection is used again only when the answer ended cleanly, the request was written out whole and the backend
  keeps it open; never after IDLE_LIMIT, as vLLM closes its own idle ones after 5 s.
- Never after a 5xx: behind the 500 of an unhandled exception vLLM closes without a word (docs/vllm.md).
- A used connection that closes within STALE_AT_ONCE of a request, before a byte of the answer, is stale: the backend
  had closed it, however short it was idle. Close the other idle ones too: the cause may have closed them as well.
"""

from __future__ import annotations

import asyncio
import errno
import math
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol, cast

from aiaas.httpclient.reader import NOT_HTTP, SHORT_CHUNK, SIZE_LINES, AnswerReader
from aiaas.plan.model import EndpointPlan
from aiaas.proxy.client.answers import HeaderList
from aiaas.proxy.client.liveness import watch_upstream
from aiaas.proxy.upstream.dial import ClientTls, Dialer, why_distrusted, why_unresolved
from aiaas.proxy.upstream.usual import usual_answer

IDLE_LIMIT = 4.0  # vLLM closes a connection 5.0 s after its last answer
# Seconds. A vLLM that is killed later than this was running the request, which may be why.
STALE_AT_ONCE = 1.0
_OUR_OWN_LACK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
TIMER_STEP = 0.001  # seconds: uvloop's timers count whole milliseconds, and may be early by a part of one
# Bytes of an answer's head, trailers or chunk extensions. vLLM sends about 200; more did not come from vLLM.
MAX_HEAD = 64 * 1024


class FailureKind(Enum):
    """How an exchange broke."""

    CONNECT = "connect"  # no connection was made: refused, unreachable, timed out, TLS
    STALE = "stale"  # a used connection closed before any byte of this answer: the backend had closed it before
    RESET = "reset"  # the connection died before the answer was whole
    MALFORMED = "malformed"  # not HTTP
    TRUNCATED = "truncated"  # a stream with a clean end that lacks its last event
    MOVED = "moved"  # we have left it: the endpoint drains
    ENGINE = "engine"  # the engine said in a 200 stream, or by a 500 of its own, that it is dying
    NO_RESOURCES = "no resources"  # this process has no descriptors, ports or buffers left; the backend is not to blame
    TIMEOUT = "timeout"  # silent for longer than allowed
    INTERNAL = "internal"  # an exception of ours while the answer was read; the backend is not to blame


@dataclass(frozen=True, slots=True)
class Failure:
    """A broken exchange: how, and one clause for the log. `detail` never holds what the client sent.

    refused  the address answers, and nothing listens there (a CONNECT only): its process has gone, or is about to
    """

    kind: FailureKind
    detail: str
    refused: bool = False


class Sink(Protocol):
    """Receives an answer. Calls come in order: `head`, then `body` any number of times, then `end`; or `failed`
    at any point, after which nothing comes."""

    def head(self, status: int, headers: HeaderList) -> None:
        """Status and headers (names in lower case)."""

    def body(self, data: bytes) -> None:
        """The body bytes of one read from the socket, without chunk framing; never empty."""

    def end(self) -> None:
        """The answer is whole."""

    def failed(self, failure: Failure) -> None:
        """The answer will not become whole."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to an endpoint. Made by `Pool.connect`, given back by itself when an exchange ends cleanly.

    unsent      a part of the present request is still to come, through `send`
    take_chunk  the sink sets it for the rest of the exchange if it can take a whole chunk as it came: called with a
                read that has the length of a chunk, and where its data begin; False if `body` shall get the data
    take_answer  the sink sets it if it can take a usual answer (`usual.py`) in place of all other calls
    """

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._reader: AnswerReader | None = None
        self._paused = self.unsent = False
        self._served = 0
        self._full: asyncio.Future[None] | None = None  # until the backend takes more of the request
        self.idle_since = self._sent_at = 0.0
        self.take_chunk: Callable[[bytes, int], bool] | None = None
        self.take_answer: Callable[[tuple[bytes, ...], bytes], None] | None = None
        self._bare_bytes = 0  # since the last that brought a part of the body
        self._any_byte = self._head_given = False

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "exchanging" if self._sink else "idle"
        return f"<UpstreamConnection {self._pool.endpoint.url} {state}, {self._served} answers>"

    # -- the owner's side -----------------------------------------------------------------------------------------

    def exchange(self, request: bytes, sink: Sink, rest: bytes = b"") -> None:
        """Send a whole request; the answer goes to `sink`. Only on an open connection without an exchange.

        `rest` follows `request`, and is not copied (uvloop keeps a reference): a large body would else be there twice.
        """
        transport = self._transport
        if transport is None or self._sink is not None:
            raise RuntimeError(f"no exchange can begin on {self!r}")
        if self._reader is None:
            self._reader = AnswerReader()
        elif self._reader.has_head:
            self._reader.begin()
        self.take_chunk = self.take_answer = None
        self._bare_bytes = 0
        self.unsent = self._any_byte = self._head_given = False
        self._sent_at = self._loop.time()
        self._sink = sink
        transport.write(request)
        if rest:
            transport.write(rest)

    async def send(self, data: bytes, sink: Sink) -> None:
        """Send a further part of the request of `sink`; wait until the backend takes more."""
        if self._transport is not None and self._sink is sink:
            self._transport.write(data)
            if self._full is not None:
                await self._full

    def abort(self, sink: Sink | None = None) -> None:
        """End the exchange and the connection at once: vLLM then stops generating within 70 ms."""
        if sink is not None and self._sink is not sink:
            return  # its exchange has just ended, and the connection may already serve another client's
        self._sink = self.take_chunk = self.take_answer = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def pause_reading(self) -> None:
        """Leave new bytes in the kernel's buffers, so that the backend slows down with the client."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take up reading again."""
        if self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def is_open(self) -> bool:
        """Whether an exchange could begin."""
        return self._transport is not None and not self._transport.is_closing()

    # -- asyncio's side -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of another class
        self.idle_since = self._loop.time()

    def pause_writing(self) -> None:
        """asyncio: the backend takes the request more slowly than it comes."""
        self._full = self._loop.create_future()

    def resume_writing(self) -> None:
        """asyncio: the backend has caught up."""
        full, self._full = self._full, None
        if full is not None and not full.done():
            full.set_result(None)

    def data_received(self, data: bytes) -> None:
        """asyncio: parse, then call the sink in order."""
        reader = self._reader
        if self.take_chunk is not None and reader is not None and reader.at_chunk and (size := len(data)) < SHORT_CHUNK:
            line = SIZE_LINES[size]
            if data.startswith(line) and self.take_chunk(data, len(line)):
                self._bare_bytes = 0
                return
        if self._sink is None or reader is None or reader.parser is None:
            # Bytes without a request: they must never be taken for the next client's answer.
            self.abort()
            return
        self._any_byte = True
        if self.take_answer is not None:
            take, self.take_answer = self.take_answer, None
            if not self.unsent and (usual := usual_answer(data)) is not None:
                self._free(self._transport)
                take(*usual)
                return
        try:
            reader.feed(data)
        except NOT_HTTP as error:
            if not reader.complete:
                if self._head_given:  # events that came before the fault are good, however the reads fell
                    self._deliver(reader)
                self._fail(Failure(FailureKind.MALFORMED, f"not valid HTTP: {error}"))
                return
            reader.excess = True  # rubbish behind a whole answer: the answer stands, the connection does not
        parts = reader.parts
        if parts and self._head_given and not reader.complete:  # nearly always: an event in the middle of a stream
            self._bare_bytes = 0
            if len(parts) == 1:
                self._sink.body(parts.pop())
            else:
                reader.parts = []
                self._sink.body(b"".join(parts))
            return
        self._bare_bytes = 0 if parts else self._bare_bytes + len(data)
        if self._bare_bytes > MAX_HEAD and not reader.complete:
            self._fail(Failure(FailureKind.MALFORMED, f"more than {MAX_HEAD} bytes without a part of the body"))
            return
        self._deliver(reader)

    def _deliver(self, reader: AnswerReader) -> None:
        sink = self._sink
        if sink is None:
            return
        if reader.has_head and not self._head_given:
            self._head_given = True
            sink.head(reader.status, reader.headers)
        if reader.parts and self._sink is not None:
            parts, reader.parts = reader.parts, []
            sink.body(parts[0] if len(parts) == 1 else b"".join(parts))
        if reader.complete and self._sink is not None:
            self._finish(reader)

    def _finish(self, reader: AnswerReader) -> None:
        sink, good = self._sink, reader.reusable and reader.status < 500 and not reader.excess and not self.unsent
        self._free(self._transport if good else None)
        if sink is not None:
            sink.end()

    def _free(self, transport: asyncio.Transport | None) -> None:
        """The answer is whole: keep the connection if it is good, which it is not without `transport`."""
        self._sink = self.take_chunk = None
        self._served += 1
        if transport is not None and not transport.is_closing() and transport.get_write_buffer_size() == 0:
            if self._paused:
                self.resume_reading()
            self.idle_since = self._loop.time()
            self._pool.give_back(self)
        else:
            self.abort()  # and not close(), which would wait for a backend that does not read the rest of the request

    def eof_received(self) -> None:
        """asyncio: the backend has closed its side."""
        reader = self._reader
        if self._sink is not None and reader is not None and self._head_given and reader.by_close:
            self._finish(reader)
        else:
            self._lost()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._transport = None
        self._pool.forget(self)
        self._lost(exc)

    def _lost(self, exc: Exception | None = None) -> None:
        if self._sink is None:
            self.abort()
        elif exc is not None and not isinstance(exc, OSError):  # `data_received` raised it; the loop has logged it
            self._fail(Failure(FailureKind.INTERNAL, f"a fault of the gateway ({type(exc).__name__})"))
        elif self._is_stale():
            self._pool.drop_idle()
            self._fail(Failure(FailureKind.STALE, "a used connection had been closed"))
        else:
            self._fail(Failure(FailureKind.RESET, "the connection was closed before the answer was whole"))

    def _is_stale(self) -> bool:
        """Whether the backend had closed a used connection before it saw the request."""
        return self._served > 0 and not self._any_byte and self._loop.time() - self._sent_at < STALE_AT_ONCE

    def _fail(self, failure: Failure) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.failed(failure)


class Pool:
    """The connections to one endpoint: as many as there are exchanges, idle ones kept for IDLE_LIMIT, newest first.

    inflight  exchanges under way, for choosing an endpoint; the owner counts (`forward.py`)
    closed    no connection is kept; False again where the endpoint is back (`backends.py`)
    fingerprints  by model, what this server wrote last into its streams (`usage_tap.py`); dropped where it may change
    """

    def __init__(self, endpoint: EndpointPlan, connect_timeout: float, tls: ClientTls | None = None) -> None:
        self.endpoint = endpoint
        self.dialer = Dialer(endpoint, tls or ClientTls())
        self.connect_timeout = connect_timeout
        self.inflight = 0
        self.fingerprints: dict[str | None, bytes] = {}
        self._idle: deque[UpstreamConnection] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self.closed = False

    def __repr__(self) -> str:
        return f"<Pool {self.endpoint.url}: {self.inflight} in flight, {len(self._idle)} idle>"

    def take_idle(self, now: float) -> UpstreamConnection | None:
        """The most recently used idle connection that is still good, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open() and now - connection.idle_since < IDLE_LIMIT:
                return connection
            connection.abort()
        return None

    async def connect(self, deadline: float = math.inf) -> UpstreamConnection | Failure:
        """Open a connection within `connect_timeout` seconds and by `deadline`, the loop's time, or say how it failed.

        Waits for a Pause.
        """
        loop = asyncio.get_running_loop()
        until = min(loop.time() + self.connect_timeout, deadline)
        try:
            transport, connection = await self.dialer.open(partial(UpstreamConnection, self, loop), until)
            if not connection.is_open():
                return Failure(FailureKind.CONNECT, "closed as soon as it was opened")
            watch_upstream(transport)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS could hold
            if deadline - loop.time() < TIMER_STEP:
                return Failure(FailureKind.TIMEOUT, "the request took longer than total_timeout allows")
            return self._no_connection(error)
        return connection

    def _no_connection(self, error: OSError | UnicodeError) -> Failure:
        if isinstance(error, TimeoutError):
            return Failure(FailureKind.CONNECT, f"no connection within {self.connect_timeout:g} s")
        if isinstance(error, ssl.SSLError):
            return Failure(FailureKind.CONNECT, why_distrusted(error, self.endpoint.trust))
        if isinstance(error, ConnectionRefusedError):
            return Failure(FailureKind.CONNECT, "connection refused", refused=True)
        kind = FailureKind.NO_RESOURCES if getattr(error, "errno", None) in _OUR_OWN_LACK else FailureKind.CONNECT
        return Failure(kind, why_unresolved(error))

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose exchange ended cleanly."""
        if self.closed:
            connection.abort()
            return
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_LIMIT, self._drop_old)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection closed; it is no longer idle."""
        if connection in self._idle:
            self._idle.remove(connection)

    def drop_idle(self) -> None:
        """Close every idle connection, now."""
        self.fingerprints.clear()
        while self._idle:
            self._idle.popleft().abort()

    def _drop_old(self) -> None:
        self._sweep = None
        now = (loop := asyncio.get_running_loop()).time()
        while self._idle and now - self._idle[0].idle_since >= IDLE_LIMIT:
            self._idle.popleft().abort()
        if self._idle:
            self._sweep = loop.call_at(self._idle[0].idle_since + IDLE_LIMIT, self._drop_old)

    def close(self) -> None:
        """Drop the idle connections; those with an exchange end with it."""
        self.closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self.drop_idle()
