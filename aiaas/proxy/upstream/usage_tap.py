"""Read an answer as it passes: how many LLM tokens it took, where its text begins, whether it is whole, and whether the
engine died while giving it.

One tap for each attempt that is answered: a BodyTap or, for a stream, a StreamTap. The relay itself counts a stream's
reads that hold only output events, and passes all others to the tap; so ordinary events cost nothing here.
"""

from __future__ import annotations

from typing import Protocol

from aiaas.openai import paths
from aiaas.openai.errors import is_error_event
from aiaas.openai.sse import EventSplitter, count_events
from aiaas.openai.streams import aborts, ends_stream, finished_choices, form_of, text_size
from aiaas.openai.usage import (
    TokenUsage,
    fingerprint_of,
    is_usage_only_event,
    seconds_of_answer,
    usage_of,
    usage_of_answer,
    with_fingerprint,
)
from aiaas.openai.usagescan import BilledScan, UsageScan
from aiaas.proxy.request.price import tokens_of_sound
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.upstream.connection import Failure, FailureKind

# An answer up to this size (bytes) is kept and decoded at its end; a longer one is scanned as it passes.
KEPT_MOST = 64 * 1024
# Not the end of an event.
_NO_TAIL = b"\0"


class Tap(Protocol):
    """The common part of both taps."""

    def end(self) -> None:
        """The answer ends here, or breaks off: record the usage, if any was reported."""


class BodyTap:
    """Looks for the usage of an answer that is not a stream."""

    __slots__ = ("_kept", "_record", "_scan", "_seconds", "_size")

    def __init__(self, record: Record) -> None:
        self._record = record
        self._kept: list[bytes] = []
        self._size = 0
        self._scan: UsageScan | None = BilledScan() if record.path == paths.V2_EMBED else None
        self._seconds: float | None = None  # of the sound, where that is all that the answer tells

    def keep(self, data: bytes) -> None:
        """A part of the answer."""
        if self._scan is not None:
            self._scan.feed(data)
            return
        self._kept.append(data)
        self._size += len(data)
        if self._size > KEPT_MOST:
            self._begin_scan()

    def _begin_scan(self) -> UsageScan:
        scan = self._scan = UsageScan()
        if self._record.path in paths.UPLOADS:
            self._seconds = seconds_of_answer(b"".join(self._kept))
        for part in self._kept:
            scan.feed(part)
        self._kept = []
        return scan

    def end(self) -> None:
        """As in Tap. Usage that has passed counts, whether the rest of the answer came or not."""
        if self._scan is None and read_usage(self._record, b"".join(self._kept)):
            return
        usage = (self._scan or self._begin_scan()).usage
        if usage is not None:
            _note(self._record, usage)
        elif self._record.path in paths.UPLOADS:
            self._record.input_tokens = None if self._seconds is None else tokens_of_sound(self._seconds)


def read_whole(record: Record, body: bytes) -> None:
    """As a BodyTap reads an answer that came as a whole."""
    if len(body) > KEPT_MOST or record.path == paths.V2_EMBED or not read_usage(record, body):
        tap = BodyTap(record)
        tap.keep(body)
        tap.end()


def read_usage(record: Record, body: bytes) -> bool:
    """Record the usage in a whole answer; return whether it has one."""
    usage = usage_of_answer(body)
    if usage is not None:
        _note(record, usage)
    return usage is not None


def _note(record: Record, usage: TokenUsage) -> None:
    record.input_tokens, record.output_tokens = usage.input_tokens, usage.output_tokens
    record.cached_tokens = usage.cached_tokens


class StreamTap:
    """Reads along, and writes into the request's Record.

    Where we asked for the usage event and the client did not, the client gets what it would have got without us. So
    that event is taken out, and its `system_fingerprint` goes into the event that finishes a choice, which waits here
    for the event behind it. A choice that ends before others gets the fingerprint of the server's last stream.

    choices         how many answers the request asked for
    strip_usage     the gateway asked for the usage event, not the client
    fingerprints    by model, of the server that answers
    mark            as in StreamForm; counted by the relay once `begun`
    tail            an ordinary event's last bytes from its mark on, with the line end of its chunk; no event ends so
                    while an event waits
    begun           text has come
    latest          whole events with output, as the last read that had any brought them; one by itself may lack its
                    blank line
    engine_failure  an event said that the engine is dying, or None
    failed_first    and it was the first event of the read that it came in
    """

    __slots__ = (
        "_choices",
        "_ended",
        "_fingerprints",
        "_finished",
        "_form",
        "_frame",
        "_held",
        "_other",
        "_record",
        "_strip_usage",
        "_tail",
        "_usage_after",
        "_usage_event",
        "begun",
        "engine_failure",
        "failed_first",
        "latest",
        "mark",
        "tail",
    )

    def __init__(
        self, record: Record, choices: int, fingerprints: dict[str | None, bytes], *, strip_usage: bool
    ) -> None:
        self._record = record
        self._choices = choices
        self._strip_usage = strip_usage
        self._fingerprints = fingerprints
        self._form = form_of(record.path)
        self._usage_event: bytes | None = None
        self._usage_after = 0  # output events before it
        self._ended = record.path not in paths.OUTPUT  # of another path's streams nothing is known
        self._finished = 0  # choices
        self._other = 0  # bytes of events without output
        self._frame = 0  # bytes of an output event around its text
        self._held: list[bytes] = []  # finish their choices, and wait for the event behind them
        self.mark = self._form.mark
        self.tail = self._tail = _NO_TAIL
        self.begun = False
        self.latest = b""
        self.engine_failure: Failure | None = None
        self.failed_first = False

    def read(self, data: bytes) -> bytes:
        """Read whole events; return the bytes for the client."""
        record = self._record
        if self.begun and (events := count_events(data)) and events == data.count(self.mark):
            record.events += events
            self.latest = data
            return data
        kept: list[bytes] = []
        output: list[bytes] = []
        for event in split_events(data):
            outputs = len(self._form.output.findall(event))
            if outputs:
                output.append(event)
                self._count(event, outputs)
                if self._strip_usage and finished_choices(event):
                    self._held.append(event)
                    continue
            elif self._is_for_us(event, first=not (kept or self._held)):
                self._fingerprints[record.model] = fingerprint_of(event)
                kept += self._released()
                continue
            else:
                self._other += len(event)
            kept += self._released()
            kept.append(event)
        if output:
            self.latest = b"".join(output)
        # While an event waits, every read comes here, as that event goes first: the count of b"" never matches.
        self.mark, self.tail = (b"", _NO_TAIL) if self._held else (self._form.mark, self._tail)
        return b"".join(kept)

    def _count(self, event: bytes, outputs: int) -> None:
        self._finished += finished_choices(event)
        if aborts(event):
            self.engine_failure = Failure(FailureKind.ENGINE, "a finish_reason of abort")
        if not self.begun:
            size = text_size(event)
            if not size and b'"role"' in event:  # a chat's first event only says who speaks
                self._other += len(event)
                return
            if size:
                self.begun = True
                self._frame = len(event) - size
                if (at := event.rfind(self._form.mark)) > 0:
                    self._tail = event[at:] + b"\r\n"
        self._record.events += outputs

    def _is_for_us(self, event: bytes, *, first: bool) -> bool:
        """Read an event without output; return whether it is the usage event that only the gateway asked for."""
        if b'"usage"' in event:
            self._usage_event, self._usage_after = event, self._record.events
            # A vLLM with --enable-force-include-usage sends usage to every client, in the events before this one, too.
            forced = bool(self._held) and usage_of(self._held[-1]) is not None
            if self._strip_usage and not forced and is_usage_only_event(event):
                return True
        code = is_error_event(event)
        if code is not None and code >= 500:
            self.engine_failure = Failure(FailureKind.ENGINE, f"an error event with code {code}")
            self.failed_first = first
        self._ended = self._ended or code is not None or ends_stream(event, self._form)
        self._finished += finished_choices(event)
        return False

    def _released(self) -> list[bytes]:
        """The events that waited, as they are without `include_usage`."""
        if not (held := self._held):
            return held
        self._held = []
        fingerprint = self._fingerprints.get(self._record.model, b"")
        events = [with_fingerprint(event, fingerprint) for event in held]
        self._other += sum(map(len, events)) - sum(map(len, held))
        return events

    def rest(self) -> bytes:
        """The events that still wait where the stream has ended or broken off."""
        return b"".join(self._released())

    @property
    def whole(self) -> bool:
        """Whether the stream may end here (the table in `openai/streams.py`)."""
        if self._ended or self._form.end is not None:
            return self._ended
        return self._finished >= self._choices

    def end(self) -> None:
        """As in Tap. Only usage behind the last output is the last word: a message tells its input and 0 for its output
        at first, and a chat whose client asked for it tells usage on every event."""
        record, latest = self._record, self.latest
        if latest and not latest.endswith(b"\n"):
            latest += b"\n\n"
        if record.events > 1 and latest:
            # Without the last one: a chat's has more around its text.
            size = record.sent - self._other - len(split_events(latest)[-1])
            record.event_text = max(0.0, size / (record.events - 1) - self._frame)
        event, is_last = self._usage_event, self._usage_after == record.events
        if not is_last and latest.find(b'"usage"') >= 0:
            event, is_last = split_events(latest)[-1], True
        self.latest = b""
        usage = None if event is None else usage_of(event)
        if usage is not None:
            record.cached_tokens = usage.cached_tokens
            record.input_tokens = usage.input_tokens
            record.output_tokens = usage.output_tokens if is_last else None


def split_events(data: bytes) -> list[bytes]:
    """Whole events, one by one."""
    if b"\r" not in data:
        *events, rest = data.split(b"\n\n")
        return [event + b"\n\n" for event in events] + ([rest] if rest else [])
    splitter = EventSplitter(limit=len(data))
    events = splitter.feed(data)
    return [*events, splitter.rest] if splitter.rest else events
