"""An HTTP client for measurements: keep-alive connections that read the clock before they parse anything.

The time of an event is when the socket delivered its bytes, so `data_received` reads the clock first. Parsing may delay
the next read but never distorts the time of this one. `reader.py` does the framing, `Answer` parses the content.

    connecting -> idle -> exchanging -> idle | closed

Rules
- A connection carries one exchange at a time; unexpected extra bytes close the connection.
- Idle connections are reused for up to REUSE_LIMIT, since vLLM closes its own after 5 s. If a reused connection dies
  before the first byte of an answer, the server's idle timer closed it; the request is then sent again on a new
  connection, as any client does. Its time still counts from when the request was due.
- Leaving on purpose aborts the connection, as a client does that disconnects.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections import deque
from typing import Final, cast

from aiaas.httpclient.answer import Answer
from aiaas.httpclient.mismatch import tls_fault
from aiaas.httpclient.reader import NOT_HTTP, AnswerReader
from aiaas.httpclient.target import HttpTarget

REUSE_LIMIT: Final = 4.0
CONNECT_TIMEOUT: Final = 10.0
EARLY: Final = 0.05  # seconds; long enough for the request to be sent and queued, shorter than most first events
MAX_ANSWER_HEAD: Final = 64 * 1024
_OUR_OWN_LACK: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class BrokenError(Exception):
    """The exchange failed before it began: `kind` as in `aiaas.httpclient.answer`, the message for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Exchange:
    """One request in flight: its answer, when its bytes were written, and a future for its end.

    stale         the connection was reused and died before the first byte of an answer
    leave_after   number of output events after which the client leaves on purpose (0: leave EARLY after sending);
                  None: stay to the end
    """

    __slots__ = ("answer", "done", "ended", "leave_after", "left", "sent", "stale")

    def __init__(self, answer: Answer, done: asyncio.Future[None], leave_after: int | None) -> None:
        self.answer = answer
        self.done = done
        self.leave_after = leave_after
        self.sent = self.ended = 0.0
        self.left = self.stale = False

    def finish(self, now: float) -> None:
        """End the exchange at `now`."""
        if not self.done.done():
            self.ended = now
            self.done.set_result(None)


class TimedConnection(asyncio.Protocol):
    """One connection to the target."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._reader: AnswerReader | None = None
        self._now = 0.0
        self._bytes = 0
        self._served = 0
        self._in_body = False
        self.idle_since = 0.0

    def begin(self, request: bytes, exchange: Exchange) -> None:
        """Send a complete request."""
        transport = self._transport
        if transport is None:
            raise RuntimeError("no exchange can begin on a closed connection")
        self._exchange = exchange
        self._bytes = 0
        self._in_body = False
        if self._reader is None:
            self._reader = AnswerReader()
        else:
            self._reader.begin()
        exchange.sent = time.perf_counter()
        transport.write(request)
        if exchange.leave_after == 0:
            asyncio.get_running_loop().call_later(EARLY, self._leave, exchange)

    def is_open(self) -> bool:
        """Whether a new exchange can begin on this connection."""
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Drop the connection, even in the middle of an exchange."""
        self._exchange = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._client.forget(self)

    # -- called by asyncio ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is open."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: read the clock first, then parse."""
        self._now = time.perf_counter()
        exchange = self._exchange
        reader = self._reader
        if exchange is None or reader is None or reader.parser is None:
            self.abort()
            return
        self._bytes += len(data)
        fault = None
        try:
            reader.feed(data)
        except NOT_HTTP as error:
            fault = error
        self._take(reader, exchange.answer)
        if fault is not None:
            if reader.complete:
                reader.excess = True  # keep the answer, close the connection
            else:
                kind = "cut" if self._in_body else "garbage"
                exchange.answer.fail(kind, f"not valid HTTP: {fault}")
                self._end(exchange, reusable=False)
                return
        if not self._in_body and self._bytes > MAX_ANSWER_HEAD:
            exchange.answer.fail("garbage", f"headers of more than {MAX_ANSWER_HEAD} bytes")
            self._end(exchange, reusable=False)
        elif reader.complete:
            exchange.answer.end()
            self._end(exchange, reusable=reader.reusable and not reader.excess)
        elif exchange.leave_after is not None and len(exchange.answer.moments) >= exchange.leave_after > 0:
            self._leave(exchange)

    def _take(self, reader: AnswerReader, answer: Answer) -> None:
        """Give the new parts of the answer on."""
        if reader.has_head and not self._in_body:
            self._in_body = True
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reader.headers}
            answer.head(reader.status, headers)
        parts, reader.parts = reader.parts, []
        for part in parts:
            answer.body(part, self._now)

    def eof_received(self) -> None:
        """asyncio: the server closed its side."""
        self._now = time.perf_counter()
        self._lost("")

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed."""
        self._now = time.perf_counter()
        self._transport = None
        self._client.forget(self)
        self._lost(f": {exc}" if exc else "")

    def _lost(self, why: str) -> None:
        exchange = self._exchange
        if exchange is None:
            self.abort()
            return
        answer = exchange.answer
        if self._in_body and self._reader is not None and self._reader.by_close:
            answer.end()
        elif self._in_body:
            answer.fail("cut", f"the connection was closed in the middle of the answer{why}")
        elif self._served and not self._bytes:
            exchange.stale = True
        else:
            answer.fail("reset", f"the connection was closed before an answer{why}")
        self._end(exchange, reusable=False)

    def _leave(self, exchange: Exchange) -> None:
        if exchange is self._exchange:
            exchange.left = True
            self._end(exchange, reusable=False)

    def _end(self, exchange: Exchange, *, reusable: bool) -> None:
        self._exchange = None
        self._served += 1
        if reusable and self.is_open():
            self.idle_since = self._now
            self._client.give_back(self)
        else:
            self.abort()
        exchange.finish(self._now)


class HttpClient:
    """The connections to one target."""

    def __init__(self, target: HttpTarget) -> None:
        self.target = target
        self._idle: deque[TimedConnection] = deque()

    async def send(self, request: bytes, answer: Answer, timeout: float, leave_after: int | None = None) -> Exchange:
        """Send a request and wait until its answer is complete or has failed; `answer` then holds the error.

        Raises:
            BrokenError: connecting failed (kinds connect, tls, timeout, reset, generator).
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            connection, reused = self._take_idle(), True
            if connection is None:  # the time to connect counts as part of the request
                connection, reused = await self._connect(min(timeout, CONNECT_TIMEOUT)), False
            exchange = Exchange(answer, loop.create_future(), leave_after)
            connection.begin(request, exchange)
            timer = loop.call_at(deadline, _time_out, exchange, timeout)
            try:
                await exchange.done
            finally:
                timer.cancel()
                if exchange.done.cancelled() or answer.error == "timeout":
                    connection.abort()
            if not (exchange.stale and reused):
                return exchange

    async def _connect(self, timeout: float) -> TimedConnection:
        target = self.target
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_connection(
                    lambda: TimedConnection(self), target.host, target.port, ssl=target.tls
                )
        except TimeoutError as error:
            raise BrokenError("timeout", f"no connection within {timeout:g} s") from error
        except ssl.SSLError as error:
            raise BrokenError("tls", tls_fault(error)) from error
        except ConnectionRefusedError as error:
            raise BrokenError("connect", "connection refused") from error
        except OSError as error:
            if error.errno in _OUR_OWN_LACK:
                raise BrokenError("generator", f"this machine ran out of resources: {error.strerror}") from error
            raise BrokenError("connect", error.strerror or str(error)) from error
        except UnicodeError as error:  # not a valid DNS name
            raise BrokenError("connect", str(error)) from error
        if not connection.is_open():
            raise BrokenError("reset", "the server closed the connection right after accepting it")
        return connection

    def _take_idle(self) -> TimedConnection | None:
        now = time.perf_counter()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open() and now - connection.idle_since < REUSE_LIMIT:
                return connection
            connection.abort()
        return None

    def give_back(self, connection: TimedConnection) -> None:
        """Keep a connection whose exchange ended cleanly."""
        self._idle.append(connection)

    def forget(self, connection: TimedConnection) -> None:
        """Remove a closed connection from the idle ones."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Drop the idle connections."""
        while self._idle:
            self._idle.pop().abort()


def _time_out(exchange: Exchange, timeout: float) -> None:
    exchange.answer.fail("timeout", f"not complete within {timeout:g} s")
    exchange.finish(time.perf_counter())
