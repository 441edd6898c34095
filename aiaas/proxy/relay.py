"""Bytes back to the client: one attempt's answer, written as it comes, with a tap for usage.

Theory. A relay is a `Sink`: the upstream connection calls it from inside the event loop's read callback, and it writes
to the client's transport in the same call. No task wakes up between the two; the handler's task sleeps on `done` and
wakes once. Most CPU of a gateway goes to this loop (design.md section 3), so it looks for substrings and parses only
where one is found.

    held       nothing has gone to the client: the attempt can still be replaced by another one
    committed  the status is spent; a failure can only be said in the stream, or by breaking off

Rules
- A stream's status is held until its first event (or first comment): vLLM says 200 before it schedules (capture 130).
- Only whole events are written, so that a comment or an error event never lands inside one. An unfinished event waits;
  a clean end flushes it as it is.
- The usage event that the client did not ask for is taken out; every other byte goes through as it came.
- A status of 400 or more is held whole (up to HELD_LIMIT), for `forward.py` decides whether it is tried again.
- A slow client stops the reading from upstream; one that takes nothing for `silence` seconds is dropped.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import Enum

from aiaas.errors import UpstreamError
from aiaas.openai.errors import error_event, is_error_event
from aiaas.openai.usage import Usage, is_usage_only_event, usage_of
from aiaas.proxy.connection import Connection
from aiaas.proxy.record import Record
from aiaas.proxy.respond import HeaderList, relayed_head
from aiaas.proxy.upstream import Failure, FailureKind, UpstreamConnection

# An error answer that is larger than this is no vLLM error; it goes through without a chance of a retry.
HELD_LIMIT = 1024 * 1024
# One event: an event of vLLM is some hundred bytes; with logprobs and long stop strings some ten thousand.
MAX_EVENT = 8 * 1024 * 1024
# A whole answer is kept for its usage up to here; of a longer one the end, where vLLM writes usage.
USAGE_WINDOW = 1024 * 1024

PING = b": ping\n\n"


@dataclass(frozen=True, slots=True)
class Shape:
    """How the answer to one request has to look, whichever attempt gives it. Durations in seconds.

    extra        complete header lines of ours: request id, limits
    close        the connection ends with this answer
    chunked      the client speaks HTTP/1.1; else an answer without a length ends with the connection
    strip_usage  the usage event was asked for by us, not by the client
    silence      longest silence of the backend
    heartbeat    silence on a stream after which a comment is written; 0 is off
    deadline     monotonic time at which the whole request ends, or None
    """

    path: str
    extra: bytes
    close: bool
    chunked: bool
    strip_usage: bool
    silence: float
    heartbeat: float
    deadline: float | None


class End(Enum):
    """How an attempt ended."""

    SENT = "sent"  # the client has a whole answer
    REFUSED = "refused"  # the backend answered with an error, which is held
    FAILED = "failed"  # nothing usable came, nothing was sent
    BROKEN = "broken"  # something was sent, and the rest will not come


@dataclass(frozen=True, slots=True)
class Outcome:
    """An attempt's end. `status`, `headers` and `body` are the held answer's where `end` is REFUSED."""

    end: End
    status: int = 0
    headers: HeaderList | None = None
    body: bytes = b""
    failure: Failure | None = None


class Relay:
    """One attempt: a `Sink` of the upstream connection and the `WriteListener` of the client's."""

    def __init__(self, client: Connection, upstream: UpstreamConnection, record: Record, shape: Shape) -> None:
        self._client = client
        self._upstream = upstream
        self._record = record
        self._shape = shape
        self._loop = asyncio.get_running_loop()
        self._take = self._hold
        self._status = 0
        self._headers: HeaderList = []
        self._held: list[bytes] = []
        self._held_size = 0
        self._tail = b""
        self._committed = False
        self._chunked = False
        self._usage_block: bytes | None = None
        self._seen: list[bytes] = []
        self._seen_size = 0
        self._last_read = self._last_write = self._loop.time()
        self._paused_at: float | None = None
        self._paused_size = 0
        self._timer: asyncio.TimerHandle | None = None
        self.done: asyncio.Future[Outcome] = self._loop.create_future()

    def begin(self, request: bytes) -> None:
        """Send the request and take the answer."""
        self._client.listener = self
        self._upstream.exchange(request, self)
        self._arm()

    def abort(self) -> None:
        """Whoever waited has gone: end the upstream request now."""
        if not self.done.done():
            self._upstream.abort()
            self.done.cancel()
        self._stop()

    def end_with_error(self, error: UpstreamError) -> None:
        """The gateway ends a committed answer (drain deadline): an error event in a stream, else a break."""
        if not self.done.done():
            self._upstream.abort()
            self._break(Failure(FailureKind.TIMEOUT, error.message), error)

    @property
    def committed(self) -> bool:
        """Whether bytes have gone to the client."""
        return self._committed

    # -- Sink -----------------------------------------------------------------------------------------------------

    def head(self, status: int, headers: HeaderList) -> None:
        """The backend's status and headers; decides how the body is taken."""
        self._status = status
        self._headers = headers
        if 300 <= status < 400:
            self._upstream.abort()
            self._fail(Failure(FailureKind.MALFORMED, f"a redirect ({status}), which is not followed"))
        elif status < 300:
            content_type = _header(headers, b"content-type")
            self._take = self._events if content_type.startswith(b"text/event-stream") else self._bytes

    def body(self, data: bytes) -> None:
        """What one read brought."""
        self._last_read = self._loop.time()
        self._take(data)

    def end(self) -> None:
        """The backend's answer is whole."""
        if self.done.done():
            return
        if self._status >= 400 and not self._committed:
            self._finish(Outcome(End.REFUSED, self._status, self._headers, b"".join(self._held)))
            return
        last, self._tail = self._tail, b""
        if not self._committed:
            self._commit(last, whole=True)
        elif last:
            self._write(last)
        if self._chunked:
            self._client_write(b"0\r\n\r\n")
        self._finish(Outcome(End.SENT))

    def failed(self, failure: Failure) -> None:
        """The backend's answer will not become whole."""
        if self.done.done():
            return
        if self._committed:
            self._break(failure, None)
        else:
            self._fail(failure)

    # -- the three ways to take a body ----------------------------------------------------------------------------

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > HELD_LIMIT:
            held, self._held = b"".join(self._held), []
            self._take = self._bytes
            self._bytes(held)

    def _bytes(self, data: bytes) -> None:
        self._remember(data)
        if self._committed:
            self._write(data)
        else:
            self._commit(data, whole=False)

    def _events(self, data: bytes) -> None:
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if not data.endswith(b"\n\n"):
            cut = _after_last_event(data)
            self._tail = data[cut:]
            data = data[:cut]
            if len(self._tail) > MAX_EVENT:
                self._upstream.abort()
                self.failed(Failure(FailureKind.MALFORMED, f"an event of more than {MAX_EVENT} bytes"))
                return
            if not data:
                return
        record = self._record
        record.events += data.count(b"\n\n")
        if b'"usage"' in data or b'"error"' in data:
            data = self._inspect(data)
            if not data:
                return
        if self._committed:
            self._write(data)
            if record.ttft is None and not data.startswith(b":"):
                record.ttft = time.monotonic() - record.started
        else:
            if not data.startswith(b":"):
                record.ttft = time.monotonic() - record.started
            self._commit(data, whole=False)

    def _inspect(self, data: bytes) -> bytes:
        """Events among which one may speak of usage or of an error: remember, take out, notice; what is left."""
        kept: list[bytes] = []
        parts = data.split(b"\n\n")
        rest = parts.pop()  # empty, unless the last event ends with CRs
        for part in parts:
            event = part + b"\n\n"
            if b'"usage"' in part:
                self._usage_block = event
                if self._shape.strip_usage and is_usage_only_event(event):
                    self._note_usage()
                    self._record.events -= 1
                    continue
            if b'"error"' in part:
                code = is_error_event(event)
                if code is not None and code >= 500:
                    self._record.error_code = "upstream_error"
                    if not self._committed and not kept:
                        self._upstream.abort()
                        self._fail(Failure(FailureKind.ENGINE, "the engine died before the first token"))
                        return b""
            kept.append(event)
        return b"".join(kept) + rest

    # -- to the client --------------------------------------------------------------------------------------------

    def _commit(self, data: bytes, *, whole: bool) -> None:
        """Spend the status: head and first bytes in one write."""
        self._committed = True
        shape = self._shape
        record = self._record
        record.status = self._status
        record.phase = "streaming"
        length = _header(self._headers, b"content-length")
        close = shape.close
        if length and self._take != self._events:
            framing = b"content-length: %b\r\n" % length
        elif whole:
            framing = b"content-length: %d\r\n" % len(data)
        elif shape.chunked:
            framing = b"transfer-encoding: chunked\r\n"
            self._chunked = True
        else:
            framing = b""
            close = True
        if self._take == self._events:
            # For proxies in between: nginx buffers a stream unless told not to.
            framing += b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
        head = relayed_head(self._status, self._headers, framing=framing, extra=shape.extra, close=close)
        self._last_write = self._loop.time()
        record.sent += len(data)
        self._client_write(head + (b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data))

    def _write(self, data: bytes) -> None:
        self._record.sent += len(data)
        self._last_write = self._last_read
        self._client_write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _client_write(self, data: bytes) -> None:
        transport = self._client.transport
        if transport is not None:  # None: the client has just left, and the handler is about to be told
            transport.write(data)

    def client_paused(self) -> None:
        """The client reads too slowly: let the backend wait, in the kernel's buffers and not in our memory."""
        self._upstream.pause_reading()
        self._paused_at = self._loop.time()
        self._paused_size = self._pending()

    def client_resumed(self) -> None:
        """The client caught up."""
        self._paused_at = None
        self._last_read = self._loop.time()
        self._upstream.resume_reading()

    def _pending(self) -> int:
        transport = self._client.transport
        return transport.get_write_buffer_size() if transport is not None else 0

    # -- silence --------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        shape = self._shape
        now = self._loop.time()
        due = (self._last_read if self._paused_at is None else self._paused_at) + shape.silence
        if shape.heartbeat and self._take == self._events and self._paused_at is None:
            due = min(due, self._last_write + shape.heartbeat)
        elif shape.heartbeat:
            due = min(due, now + shape.heartbeat)  # it may turn out to be a stream
        if shape.deadline is not None:
            due = min(due, shape.deadline)
        self._timer = self._loop.call_at(max(due, now + 0.001), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        shape = self._shape
        if shape.deadline is not None and now >= shape.deadline:
            self._time_out("the request took longer than total_timeout allows")
        elif self._paused_at is not None:
            pending = self._pending()
            if pending < self._paused_size:
                self._paused_at, self._paused_size = now, pending
            elif now - self._paused_at >= shape.silence:
                self._drop_client()
        elif now - self._last_read >= shape.silence:
            self._time_out(f"the backend was silent for {shape.silence:g} s")
        elif shape.heartbeat and self._take == self._events and now - self._last_write >= shape.heartbeat:
            self._ping(now)
        if not self.done.done():
            self._arm()

    def _ping(self, now: float) -> None:
        if self._committed:
            self._client_write(b"%x\r\n%b\r\n" % (len(PING), PING) if self._chunked else PING)
            self._last_write = now
        else:
            self._commit(PING, whole=False)

    def _time_out(self, detail: str) -> None:
        self._upstream.abort()
        self.failed(Failure(FailureKind.TIMEOUT, detail))

    def _drop_client(self) -> None:
        self._upstream.abort()
        self._record.ended_by = "client"
        self._record.error_code = "client_too_slow"
        if self._client.transport is not None:
            self._client.transport.abort()
        self._finish(Outcome(End.BROKEN, failure=Failure(FailureKind.TIMEOUT, "the client took no byte")))

    # -- ends -----------------------------------------------------------------------------------------------------

    def _fail(self, failure: Failure) -> None:
        self._finish(Outcome(End.FAILED, failure=failure))

    def _break(self, failure: Failure, error: UpstreamError | None) -> None:
        if self._take == self._events:
            timed_out = failure.kind is FailureKind.TIMEOUT
            error = error or UpstreamError(
                504 if timed_out else 502,
                "upstream_timeout" if timed_out else "upstream_error",
                "The model server fell silent." if timed_out else "The model server broke off this answer.",
            )
            event = error_event(error, self._shape.path)
            self._client_write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event) if self._chunked else event)
        self._finish(Outcome(End.BROKEN, failure=failure))

    def _finish(self, outcome: Outcome) -> None:
        self._note_usage()
        self._stop()
        if not self.done.done():
            self.done.set_result(outcome)

    def _stop(self) -> None:
        if self._client.listener is self:
            self._client.listener = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- usage ----------------------------------------------------------------------------------------------------

    def _remember(self, data: bytes) -> None:
        self._seen.append(data)
        self._seen_size += len(data)
        if self._seen_size > USAGE_WINDOW:
            tail = b"".join(self._seen)[-USAGE_WINDOW // 2 :]
            self._seen, self._seen_size = [tail], len(tail)

    def _note_usage(self) -> None:
        """Write down what the backend reported; called when it is known to be the last word so far."""
        usage: Usage | None = None
        if self._usage_block is not None:
            usage = usage_of(self._usage_block)
            self._usage_block = None
        elif self._seen:
            usage = usage_of(self._seen[0] if len(self._seen) == 1 else b"".join(self._seen))
            self._seen = []
        if usage is not None:
            self._record.input_tokens = usage.input_tokens
            self._record.output_tokens = usage.output_tokens


def _header(headers: HeaderList, wanted: bytes) -> bytes:
    for name, value in headers:
        if name == wanted:
            return value
    return b""


def _after_last_event(data: bytes) -> int:
    """The index behind the last whole event: behind a blank line, in any of the line ends that SSE allows (WHATWG)."""
    return max(
        data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0,
        data.rfind(b"\n\r\n") + 3 if b"\n\r\n" in data else 0,
        data.rfind(b"\r\r") + 2 if b"\r\r" in data else 0,
    )
