"""A relay whose stream may go on at another endpoint: it keeps what the client has, and outlives its endpoint.

    relaying --(its endpoint dies)--> in the gap --(go_on_with)--> joining --> ended
                                          |
                                          +--(give_up)--> ended, as a Relay would have

Rules
- Where the endpoint dies nothing is written: the attempt ends as End.CUT, and `resume.py` decides. An engine's own
  error event or `abort`, and everything behind it, is held back until then. `give_up` writes byte for byte what a
  Relay writes.
- In the gap the client gets its heartbeat, and it may leave.
- Behind the gap each event passes the `Joiner`; there is no second gap.
- A stream goes on once at the most, and only one that has had SAFE_EVENTS and SAFE_SECONDS: what kills engines does so
  in the prefill or in the first steps, and must not be carried from one to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from aiaas.errors import UpstreamError
from aiaas.httpclient.reader import SHORT_CHUNK
from aiaas.openai import paths
from aiaas.openai.errors import is_error_event
from aiaas.openai.joint import DiffersError
from aiaas.openai.streams import aborts
from aiaas.plan.model import BackendPlan
from aiaas.proxy.client.answers import HeaderList
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.request.admission import Ticket
from aiaas.proxy.telemetry.histogram import Tallies
from aiaas.proxy.upstream.attempt import EVENTS, WHOLE, End, Outcome
from aiaas.proxy.upstream.connection import Failure, FailureKind, UpstreamConnection
from aiaas.proxy.upstream.kept import JOINED_AT, KeptMemory, KeptStream
from aiaas.proxy.upstream.relay import Relay
from aiaas.proxy.upstream.usage_tap import split_events

SAFE_EVENTS: Final = 8
SAFE_SECONDS: Final = 1.0  # since the first text
LAST_EVENT: Final = b"data: [DONE]\n\n"
# A failure that says nothing about the endpoint, or that comes too late for another one.
_NEVER: Final = (FailureKind.TIMEOUT, FailureKind.NO_RESOURCES, FailureKind.INTERNAL)


class Joiner(Protocol):
    """Fits the second endpoint's events to what the client has."""

    def event(self, event: bytes) -> bytes:
        """The bytes for the client. Raises DiffersError."""


class KeptRelay(Relay):
    """As a Relay. In the gap its outcome is End.CUT, and `resume.py` calls `go_on_with` or `give_up`, or `abort`.

    in_gap   its endpoint has died, and none has gone on yet
    may_move  tells whether another endpoint can continue it as it is now
    differs  what the second endpoint wrote otherwise; empty where it did not
    gap      seconds without an event while the stream changed its endpoint; None where it did not
    """

    # Of the class until they are set, which they are for few streams.
    in_gap = False
    differs = ""
    gap: float | None = None
    _withheld = b""
    _joiner: Joiner | None = None
    _died: Failure | None = None  # None: the answer ended, with the engine's error event
    _cut_at = _text_at = 0.0  # the loop's time

    def __init__(
        self,
        client: ClientConnection,
        upstream: UpstreamConnection,
        ticket: Ticket,
        backend: BackendPlan,
        gaps: Tallies,
        fingerprints: dict[str | None, bytes],
        memory: KeptMemory,
    ) -> None:
        super().__init__(client, upstream, ticket, backend, gaps, fingerprints)
        self.may_move: Callable[[KeptRelay], bool] | None = None
        self._kept: KeptStream | None = KeptStream(memory)

    # -- relaying ---------------------------------------------------------------------------------------------------

    def _take_chunk(self, data: bytes, start: int) -> bool:
        if not Relay._take_chunk(self, data, start):  # super() costs as much again
            return False
        if (kept := self._kept) is not None:
            fresh = kept.fresh
            fresh.append(data[start:-2])
            if len(fresh) >= JOINED_AT and not kept.join():
                self._kept = None
        return True

    def _pass_on(self, data: bytes) -> None:
        if self._joiner is not None:
            self._join(data, self._joiner)
        elif self._withheld:
            self._withheld += data
        elif self._kept is None or not self._dies(data):
            super()._pass_on(data)
        if self._flowing and not self._text_at:
            self._text_at = self._last_read

    def _dies(self, data: bytes) -> bool:
        """Whether the engine says among these that it dies: what comes before is passed on, the rest withheld."""
        if b'"error"' not in data and not aborts(data):
            return False
        events = split_events(data)
        for number, event in enumerate(events):
            if _death_in(event) and (number or self.committed):
                if number:
                    super()._pass_on(b"".join(events[:number]))
                self._withheld = b"".join(events[number:])
                return True
        return False

    def _write(self, data: bytes) -> None:
        super()._write(data)
        self._keep(data)

    def _commit(self, data: bytes, *, whole: bool) -> None:
        super()._commit(data, whole=whole)
        self._keep(data)

    def _keep(self, data: bytes) -> None:
        kept = self._kept
        if kept is None or not self._streaming:
            return
        kept.fresh.append(data)
        if (len(kept.fresh) >= JOINED_AT or len(data) > SHORT_CHUNK) and not kept.join():
            self._kept = None

    def _stop(self) -> None:
        super()._stop()
        self._forget()

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept.forget()
            self._kept = None

    # -- the endpoint dies -------------------------------------------------------------------------------------------

    def end(self) -> None:
        """As in Relay, but for an answer that the engine ended with its error event."""
        if self._outcome is None and self._withheld and self._joiner is None:
            self._cut(None)
        else:
            super().end()

    def failed(self, failure: Failure) -> None:
        """As in Relay, but for a stream that another endpoint may go on with."""
        can = self._kept is not None and self._streaming and self.committed
        if self._outcome is None and can and (self._withheld or failure.kind not in _NEVER):
            self._cut(failure)
        else:
            super().failed(failure)

    def move(self) -> bool:
        """The endpoint is about to go: leave it, if another one can continue. Returns whether it has left."""
        flows = self._outcome is None and self._kept is not None and self.committed
        if not flows or self.may_move is None or not self.may_move(self):
            return False
        self._upstream.abort(self)
        self._cut(Failure(FailureKind.MOVED, "its endpoint drains"))
        return True

    def _cut(self, died: Failure | None) -> None:
        self._died, self.in_gap, self._cut_at = died, True, self._last_read
        said = died or Failure(FailureKind.ENGINE, _death_in(split_events(self._withheld)[0]))
        self._outcome = Outcome(End.CUT, failure=said)
        self._beat()
        self.go_on()

    # -- in the gap --------------------------------------------------------------------------------------------------

    def end_with_error(self, error: UpstreamError) -> None:
        """As in Relay, also in the gap: then `in_gap` is False at once."""
        if self.in_gap:
            self.in_gap, self._outcome, self._withheld = False, None, b""
            super()._break(Failure(FailureKind.TIMEOUT, error.message), error)
        else:
            super().end_with_error(error)

    @property
    def is_safe(self) -> bool:
        """Whether it has run for so long that it is not what killed its engine."""
        return self._record.events >= SAFE_EVENTS and 0 < self._text_at <= self._last_read - SAFE_SECONDS

    @property
    def is_finished(self) -> bool:
        """Whether nothing but its usage and its last event is missing."""
        return self._stream_tap.whole

    @property
    def decoding(self) -> float:
        """Seconds from the first text to the last event."""
        return self._cut_at - self._text_at if self._text_at else 0.0

    @property
    def outcome(self) -> Outcome:
        """As it is now."""
        assert self._outcome is not None
        return self._outcome

    def relayed(self) -> bytes:
        """Every event that the client has."""
        return b"" if self._kept is None else self._kept.whole()

    def _beat(self) -> None:
        heartbeat, now = self._ticket.heartbeat, self._loop.time()
        if not heartbeat:
            self._client.alarm.clear()
            return
        if now - self._last_write >= heartbeat and self._paused_at is None:
            self._ping(now)
        self._client.alarm.set(max(now, self._last_write) + heartbeat, self._tick)

    def _tick(self) -> None:
        if self.in_gap:
            self._beat()
        else:
            super()._tick()

    def client_paused(self) -> None:
        """As in Relay; in the gap there is no backend to slow down (and its old connection may serve another)."""
        if self.in_gap:
            self._paused_at, self._paused_size = self._loop.time(), self._pending()
        else:
            super().client_paused()

    def client_resumed(self) -> None:
        """As in Relay."""
        if self.in_gap:
            self._paused_at = None
        else:
            super().client_resumed()

    def go_on_with(self, upstream: UpstreamConnection, request: bytes, rest: bytes, joiner: Joiner) -> None:
        """Send the request to another endpoint, and take its answer as the rest of this one. Wait for it as before."""
        self._forget()
        self._joiner, self._upstream = joiner, upstream
        self._outcome, self.in_gap, self._tail = None, False, b""
        self._last_read = self._loop.time()
        upstream.exchange(request, self, rest)
        if self._paused_at is not None:
            upstream.pause_reading()
        self._arm()

    def give_up(self) -> None:
        """Nobody goes on: end as a Relay would have."""
        self._forget()
        self.in_gap, self._outcome, self._joiner = False, None, None
        withheld, self._withheld = self._withheld, b""
        if withheld and (data := self._stream_tap.read(withheld)):
            self._write(data)
        if self._died is None:
            super().end()
        else:
            super().failed(self._died)

    def finish(self) -> None:
        """End an answer that lacks nothing but its end."""
        last = self._stream_tap.rest()
        if self._record.path in paths.USAGE_ON_REQUEST and not self.relayed().endswith(LAST_EVENT):
            last += LAST_EVENT
        self.in_gap = False
        if last:
            self._write(last)
        if self._chunked:
            self._client_write(b"0\r\n\r\n")
        self._finish(WHOLE)

    def leave(self) -> None:
        """The handler ends in the gap: its client has left, or the process ends."""
        if self.in_gap:
            self.in_gap = False
            self._stop()

    def last_byte(self) -> float | None:
        """As in Relay; None also while the rest has not begun, since the second engine has to read the prompt first."""
        return None if self._joiner is not None and self.gap is None else super().last_byte()

    # -- joining -----------------------------------------------------------------------------------------------------

    def head(self, status: int, headers: HeaderList) -> None:
        """As in Relay; an answer that cannot be the rest leads back to the gap."""
        if self._joiner is None:
            super().head(status, headers)
        elif status != 200 or not dict(headers).get(b"content-type", b"").lower().startswith(EVENTS):
            self._upstream.abort(self)
            self.in_gap = True
            self._outcome = Outcome(End.REFUSED, status)
            self._beat()
            self.go_on()

    def _join(self, data: bytes, joiner: Joiner) -> None:
        joined: list[bytes] = []
        failure: Failure | None = None
        for event in split_events(data):
            if is_error_event(event) is not None or aborts(event):
                failure = Failure(FailureKind.ENGINE, _death_in(event) or "an error event")
                break
            try:
                joined.append(joiner.event(event))
            except DiffersError as error:
                self.differs = str(error)
                failure = Failure(FailureKind.TRUNCATED, f"the rest does not fit: {error}")
                break
        if rest := b"".join(joined):
            if self.gap is None:
                self.gap = self._last_read - self._cut_at
            super()._pass_on(rest)
            self._upstream.take_chunk = None
        if failure is not None:
            self._upstream.abort(self)
            super().failed(failure)


def _death_in(event: bytes) -> str:
    """How an event says that the engine dies; empty if it does not."""
    if aborts(event):
        return "a finish_reason of abort"
    code = is_error_event(event)
    return f"an error event with code {code}" if code is not None and code >= 500 else ""
