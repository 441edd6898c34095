"""Bytes back to the client: one attempt's answer, written as it comes, with a tap for usage.

Theory. A relay is a `Sink`: the upstream connection calls it from inside the event loop's read callback, and it writes
to the client's transport in the same call, without a task in between. It is also the Pause that the request's handler
waits for, which runs on inside of the last of these calls. Most CPU of a gateway goes to this loop (docs/bench.md), so
it looks for substrings and parses only where one is found.

    held       nothing has gone to the client: the attempt can still be replaced by another one
    committed  the status is sent; a failure can only be reported in the stream, or by breaking off

Rules
- A stream's status is held until its first event or comment: vLLM sends 200 before it schedules.
- Only whole events are written, so that a comment or an error event never lands inside one. An unfinished event waits;
  a clean end flushes it as it is.
- The usage event that the client did not ask for is taken out; every other byte goes through as it came.
- A status of 400 or more is held whole (up to HELD_LIMIT), for `forward.py` decides whether it is tried again.
- A slow client stops the reading from upstream; one that takes nothing for `silence` seconds is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Generator

from aiaas.errors import UpstreamError
from aiaas.openai.errors import error_event
from aiaas.openai.sse import MAX_EVENT, EventTail
from aiaas.openai.streams import next_number
from aiaas.plan.model import BackendPlan
from aiaas.proxy.client.answers import UNBUFFERED, VARY, HeaderList, framing_of, header_of, relayed_head, whole_answer
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.handler import Pause
from aiaas.proxy.request.admission import Ticket
from aiaas.proxy.telemetry.histogram import Tallies, Tally
from aiaas.proxy.upstream.attempt import EVENTS, WHOLE, End, Outcome, error_of_break, not_an_answer
from aiaas.proxy.upstream.connection import Failure, FailureKind, UpstreamConnection
from aiaas.proxy.upstream.usage_tap import BodyTap, StreamTap, read_whole

# An error answer that is larger than this (bytes) did not come from vLLM; it is relayed without a retry.
HELD_LIMIT = 1024 * 1024

_LF = 10
PING = b": ping\n\n"


class Relay(Pause):
    """One attempt: a `Sink` of the upstream connection and the `WriteListener` of the client's."""

    # Most attempts end with these, so that only others set them; but those that are read often, each attempt has: to
    # read them from the class costs ten times as much. The taps are there once the head has come.
    _stream_tap: StreamTap
    _tap: BodyTap
    _gaps: Tally
    _status = 0
    _headers: HeaderList  # there once the head has come
    _streaming: bool | None  # None: not decided yet, so the body is held
    _held: bytes | bytearray = b""
    _tail: bytes | EventTail = b""  # an unfinished event
    _flowing = False  # a stream's first text has gone to the client
    committed = False  # bytes have gone to the client
    _chunked = False
    _paused_at: float | None
    _paused_size = 0
    _outcome: Outcome | None

    def __init__(
        self,
        client: ClientConnection,
        upstream: UpstreamConnection,
        ticket: Ticket,
        backend: BackendPlan,
        gaps: Tallies,
        fingerprints: dict[str | None, bytes],
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._ticket = ticket
        self._record = ticket.record
        self._backend = backend
        self._gaps_by_model = gaps
        self._fingerprints = fingerprints
        self._loop = client.loop
        self._last_read = self._last_write = self._loop.time()
        self._streaming = self._paused_at = self._outcome = None

    def __await__(self) -> Generator[Pause, None, Outcome]:
        """Wait for the attempt's end."""
        if self._outcome is None:
            yield self
        assert self._outcome is not None
        return self._outcome

    def begin(self, request: bytes, rest: bytes = b"") -> None:
        """Send the request, in one part or two, and take the answer."""
        self._client.listener = self
        self._upstream.exchange(request, self, rest)
        record = self._record
        if not record.own_lines.endswith(VARY):  # else there may be two lines of that name
            self._upstream.take_answer = self._take_answer
        if record.overhead is None:
            record.overhead = max(0.0, time.monotonic() - record.started - record.body_seconds - record.queue_seconds)
        self._arm()

    def abort(self) -> None:
        """The handler has ended or was cancelled: end the upstream request now, if it is still under way."""
        if self._outcome is None:
            self._upstream.abort(self)
            self._stop()

    def end_with_error(self, error: UpstreamError) -> None:
        """End a committed answer (drain deadline): an error event in a stream, else a break."""
        if self.committed and self._outcome is None:
            self._upstream.abort(self)
            self._break(Failure(FailureKind.TIMEOUT, error.message), error)

    def end_if_silent(self, since: float, why: str) -> None:
        """End a stream on which nothing has come after `since` (the loop's time), since its server must be gone."""
        # Where the client is slow, nothing is read, and nothing is known about the server.
        if self._record.stream and self._last_read <= since and self._paused_at is None and self._outcome is None:
            self._give_up(FailureKind.RESET, why)

    def last_byte(self) -> float | None:
        """When a stream that has begun was last read; None: none began, it is over, or its slow client is not read."""
        return self._last_read if self._flowing and self._paused_at is None else None

    # -- Sink -----------------------------------------------------------------------------------------------------

    def head(self, status: int, headers: HeaderList) -> None:
        """The backend's status and headers; decides how the body is taken."""
        self._status = status
        self._headers = headers
        fields = dict(headers)
        content_type = fields.get(b"content-type", b"").lower()
        if (odd := not_an_answer(status, content_type)) is not None:
            self._give_up(FailureKind.MALFORMED, odd)
        elif status < 300:
            # If the backend compresses without being asked, its events cannot be read.
            record = self._record
            self._streaming = record.streamed = content_type.startswith(EVENTS) and b"content-encoding" not in fields
            if self._streaming:
                ticket = self._ticket
                self._gaps = self._gaps_by_model.labels(ticket.route.model)
                choices = ticket.peek.choices * ticket.peek.prompts
                strip_usage = ticket.strip_usage and self._backend.ask_for_usage
                self._stream_tap = StreamTap(record, choices, self._fingerprints, strip_usage=strip_usage)
            else:
                self._tap = BodyTap(record)

    def body(self, data: bytes) -> None:
        """The body bytes of one read."""
        now = self._loop.time()
        if self._flowing:
            self._gaps.observe(now - self._last_read)
        self._last_read = now
        if self._streaming:
            self._events(data)
        elif self._streaming is None:
            self._hold(data)
        else:
            self._bytes(data)

    def _take_chunk(self, data: bytes, start: int) -> bool:
        """As in UpstreamConnection. Nearly all of a gateway's work: one event with output in the middle of a stream."""
        tap = self._stream_tap
        event = data[start:-4]
        if not (
            (data.endswith(tap.tail) and _LF not in event)  # nearly always
            or (data.find(b"\n\n", start) == len(data) - 4 and data[-2:] == b"\r\n" and event.count(tap.mark) == 1)
        ):
            return False
        gaps, now = self._gaps, self._loop.time()
        gap = now - self._last_read
        if not gaps.low < gap <= gaps.high:
            gaps.find(gap)
        gaps.counts[gaps.at] += 1
        gaps.total += gap
        self._last_read = self._last_write = now
        tap.latest, record = event, self._record
        record.events += 1
        record.sent += len(event) + 2
        transport = self._client.transport
        if transport is not None:
            transport.write(data)
        return True

    def _take_answer(self, lines: tuple[bytes, ...], body: bytes) -> None:
        """As in UpstreamConnection: nearly every answer that is not a stream."""
        record, ticket = self._record, self._ticket
        self.committed = True
        record.status, record.phase, record.streamed = 200, "streaming", False
        record.sent += len(body)
        self._client_write(whole_answer(lines, ticket.extra, body, close=ticket.close))
        read_whole(record, body)
        self._client.listener = None
        self._client.alarm.clear()
        self._outcome = WHOLE
        self.go_on()

    def end(self) -> None:
        """The backend's answer is whole."""
        if self._outcome is not None:
            return
        if self._status >= 400 and not self.committed:
            self._finish(Outcome(End.REFUSED, self._status, self._headers, bytes(self._held)))
            return
        last, failure = b"", None
        if self._streaming:
            tap = self._stream_tap
            last = tap.read(bytes(self._tail)) if self._tail else b""
            failure = tap.engine_failure
            if failure is None and not tap.whole:
                # A proxy in between ended its body cleanly in the middle of the stream, which SDKs do not notice.
                self.failed(Failure(FailureKind.TRUNCATED, "the stream ended without its last event"))
                return
            last += tap.rest()
        if not self.committed:
            self._commit(last, whole=True)
        elif last:
            self._write(last)
        if self._chunked:
            self._client_write(b"0\r\n\r\n")
        self._finish(WHOLE if failure is None else Outcome(End.SENT, failure=failure))

    def failed(self, failure: Failure) -> None:
        """The backend's answer will not become whole."""
        if self._outcome is not None:
            return
        if self.committed:
            self._break(failure, None)
        else:
            self._finish(Outcome(End.FAILED, failure=failure))

    # -- the three ways to take a body ----------------------------------------------------------------------------

    def _hold(self, data: bytes) -> None:
        held = self._held = self._held or bytearray()
        held += data
        if len(held) > HELD_LIMIT:
            self._held = b""
            self._streaming = False
            self._tap = BodyTap(self._record)
            self._bytes(bytes(held))

    def _bytes(self, data: bytes) -> None:
        self._tap.keep(data)
        if self.committed:
            self._write(data)
        else:
            self._commit(data, whole=False)

    def _events(self, data: bytes) -> None:
        if self._tail or not data.endswith(b"\n\n"):
            data = self._whole_events(data)
            if not data:
                return
        self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        tap = self._stream_tap
        data = tap.read(data)
        if tap.failed_first and not self.committed:
            self._upstream.abort(self)
            self._finish(Outcome(End.FAILED, failure=tap.engine_failure))
            return
        if not data:
            return
        if tap.begun and not self._flowing:
            self._flowing = True
            self._record.text_begins(time.monotonic())
        if self.committed:
            self._write(data)
        else:
            self._commit(data, whole=False)
        self._upstream.take_chunk = self._take_chunk if self._flowing and self._chunked and not self._tail else None

    def _whole_events(self, data: bytes) -> bytes:
        """Append `data` to the unfinished event; return the whole events."""
        self._upstream.take_chunk = None
        tail = self._tail = EventTail() if isinstance(self._tail, bytes) else self._tail
        data = tail.whole_events(data)
        if len(tail) > MAX_EVENT:
            tail.clear()
            self._give_up(FailureKind.MALFORMED, f"an event of more than {MAX_EVENT} bytes")
            return b""
        return data

    def _commit(self, data: bytes, *, whole: bool) -> None:
        """Send the status: head and first bytes in one write."""
        self.committed = True
        ticket, record = self._ticket, self._record
        record.status, record.phase = self._status, "streaming"
        length = b"" if self._streaming else header_of(self._headers, b"content-length")
        framing, self._chunked, close = framing_of(
            self._status, length, len(data) if whole else None, chunks=ticket.chunked
        )
        framing += UNBUFFERED if self._streaming else b""
        close = close or ticket.close
        head = relayed_head(self._status, self._headers, framing=framing, extra=ticket.extra, close=close)
        if self._streaming:  # free what a stream no longer needs, for it lasts
            self._headers.clear()
        self._last_write = self._loop.time()
        record.sent += len(data)
        self._client_write(head + (b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data))

    def _write(self, data: bytes) -> None:
        self._record.sent += len(data)
        self._last_write = self._last_read
        self._client_write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _client_write(self, data: bytes) -> None:
        if (transport := self._client.transport) is not None:  # None: the client has left; a cancel follows
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
        return 0 if (transport := self._client.transport) is None else transport.get_write_buffer_size()

    # -- silence --------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        now = self._loop.time()
        due = (self._last_read if self._paused_at is None else self._paused_at) + self._backend.timeout
        heartbeat, deadline = self._ticket.heartbeat, self._ticket.deadline
        if heartbeat:  # without a head yet: it may turn out to be a stream
            due = min(due, (self._last_write if self._streaming and self._paused_at is None else now) + heartbeat)
        if deadline is not None and deadline < due:
            due = deadline
        self._client.alarm.set(due if due > now + 0.001 else now + 0.001, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        silence, heartbeat, deadline = self._backend.timeout, self._ticket.heartbeat, self._ticket.deadline
        if deadline is not None and now >= deadline:
            self._give_up(FailureKind.TIMEOUT, "the request took longer than total_timeout allows")
        elif self._paused_at is not None:
            pending = self._pending()
            if pending < self._paused_size:
                self._paused_at, self._paused_size = now, pending
            elif now - self._paused_at >= silence:
                self._drop_client()
        elif now - self._last_read >= silence:
            self._give_up(FailureKind.TIMEOUT, f"the backend was silent for {silence:g} s")
        elif heartbeat and self._streaming and now - self._last_write >= heartbeat:
            self._ping(now)
        if self._outcome is None:
            self._arm()

    def _ping(self, now: float) -> None:
        if self.committed:
            self._client_write(b"%x\r\n%b\r\n" % (len(PING), PING) if self._chunked else PING)
            self._last_write = now
        else:
            self._commit(PING, whole=False)

    def _give_up(self, kind: FailureKind, detail: str) -> None:
        self._upstream.abort(self)
        self.failed(Failure(kind, detail))

    def _drop_client(self) -> None:
        self._upstream.abort(self)
        self._record.ended_by, self._record.error_code = "client", "client_too_slow"
        if self._client.transport is not None:
            self._client.transport.abort()
        self._finish(Outcome(End.BROKEN, failure=Failure(FailureKind.TIMEOUT, "the client stopped reading")))

    # -- ends -----------------------------------------------------------------------------------------------------

    def _break(self, failure: Failure, error: UpstreamError | None) -> None:
        if self._streaming:
            if rest := self._stream_tap.rest():
                self._write(rest)
            error = error or error_of_break(failure)
            event = error_event(error, self._record.path, next_number(self._stream_tap.latest))
            self._client_write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event) if self._chunked else event)
        self._finish(Outcome(End.BROKEN, failure=failure))

    def _finish(self, outcome: Outcome) -> None:
        self._stop()
        self._outcome = outcome
        self.go_on()

    def _stop(self) -> None:
        if self.committed:
            (self._stream_tap if self._streaming else self._tap).end()
        if self._client.listener is self:
            self._client.listener = None
            self._client.alarm.clear()
        self._flowing = False
