"""Split a byte stream of server-sent events (WHATWG HTML, section 9.2.6) into whole events, without parsing them.

    splitter = EventSplitter()
    for chunk in upstream:
        for event in splitter.feed(chunk):   # bytes, each with its closing blank line
            ...
    splitter.rest                            # the unfinished event; the standard drops it at the end of a stream

A line ends with CR LF, LF or CR, and an event ends with an empty line. Rules:

1. The events and the rest, joined, are the input byte for byte, and the events do not depend on the chunks. Hence an
   event that ends with a CR at the end of a chunk waits for the next byte, which may be the LF of that CR. vLLM writes
   LF only, so it is never delayed.
2. Memory is bounded: an event beyond `limit` bytes raises, and the splitter never keeps more than `limit`.
3. The usual chunk is exactly one or a few whole events with LF only, and costs one split.
"""

from __future__ import annotations

import re
from typing import Final

from aiaas.errors import UpstreamError

# Bytes. An event is one token with its logprobs, a few kilobytes; the last event of /v1/responses repeats the answer.
MAX_EVENT: Final = 16 * 1024 * 1024

# The end of a line and an empty line after it. At the end of the bytes a `\r` may still be part of `\r\n`: rule 1.
_END: Final = re.compile(rb"(?:\r\n|\n|\r(?=[^\n]))(?:\r\n|\n|\r(?=[^\n]))")


class EventSplitter:
    """The state of one stream: the bytes of its open event."""

    __slots__ = ("_cr", "_held", "_limit", "_scanned")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._limit = limit
        self._held = bytearray()
        self._scanned = 0  # number of held bytes in which no event ends
        self._cr = False  # a CR was seen: searching for `\n\n` alone is not enough any more

    @property
    def rest(self) -> bytes:
        """The bytes after the last whole event; at the end of a stream, an unfinished event."""
        return bytes(self._held)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes, in order.

        Raises UpstreamError 502 if an event is longer than the limit.
        """
        if not self._cr:
            self._cr = chunk.find(b"\r") >= 0
            if not self._held and not self._cr and len(chunk) <= self._limit:
                end = chunk.find(b"\n\n")
                if end >= 0 and end + 2 == len(chunk):
                    return [chunk]
                *events, rest = chunk.split(b"\n\n")
                self._held += rest
                self._scanned = max(0, len(rest) - _LOOK_BACK)
                return [event + b"\n\n" for event in events]
        self._held += chunk
        return self._cut()

    def _cut(self) -> list[bytes]:
        held = self._held
        events = []
        start = 0
        search = self._scanned
        while (end := self._end(search)) > 0:
            if end - start > self._limit:
                raise _too_long(self._limit)
            events.append(bytes(held[start:end]))
            start = search = end
        if start:
            del held[:start]
        if len(held) > self._limit:
            raise _too_long(self._limit)
        self._scanned = max(0, len(held) - _LOOK_BACK)
        return events

    def _end(self, search: int) -> int:
        if self._cr:
            match = _END.search(self._held, search)
            return match.end() if match else -1
        end = self._held.find(b"\n\n", search)
        return end + 2 if end >= 0 else -1


# Bytes to search again: at most the end of a line and a CR, which may still be part of CR LF.
_LOOK_BACK: Final = 2


def _too_long(limit: int) -> UpstreamError:
    return UpstreamError(502, "upstream_error", f"The backend sent an event of more than {limit} bytes.")


def event_data(event: bytes) -> bytes | None:
    """The data of an event: its `data` lines joined by LF, None if it has none (a comment, for example)."""
    if event.startswith(b"data: ") and event.find(b"\n") + 2 == len(event) and b"\r" not in event:
        return event[6:-2]
    lines = [_value(line) for line in event.splitlines() if line == b"data" or line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _value(line: bytes) -> bytes:
    return line[6:] if line.startswith(b"data: ") else line[5:]


def after_last_event(data: bytearray, start: int) -> int:
    """The index after the last whole event, 0 if no event ends after `start`, where the newest bytes begin.

    An event ends with an empty line, in any of the line ends that SSE allows (WHATWG HTML, section 9.2.6). A part from
    the middle of a large event has no line end at all, which two searches for one byte show in a tenth of the time.
    """
    has_cr = data.find(b"\r", start) >= 0
    if not has_cr and data.find(b"\n", start) < 0:
        return 0
    if data.endswith(b"\n\n"):
        return len(data)
    ends = [(data.rfind(end, start), len(end)) for end in (_LINE_ENDS if has_cr else _LINE_ENDS[:1])]
    return max((at + size for at, size in ends if at >= 0), default=0)


_LINE_ENDS: Final = (b"\n\n", b"\n\r\n", b"\r\r")


def count_events(events: bytes) -> int:
    """The number of empty lines in whole events whose lines end with LF.

    To search for two bytes costs as much as a copy of the bytes twenty times; to search for one costs half a copy. So
    walk over the lines of a large event, while there are few.
    """
    if len(events) < LARGE_EVENT or not events.endswith(b"\n\n"):
        return events.count(b"\n\n")
    last, at = len(events) - 2, -1
    for _ in range(_FEW_LINES):
        at = events.find(b"\n", at + 1)
        if at == last:
            return 1
        if events[at + 1] == _LF:
            break
    return events.count(b"\n\n")


LARGE_EVENT: Final = 16 * 1024  # bytes
_FEW_LINES: Final = 8
_LF: Final = ord("\n")


class EventTail(bytearray):
    """The unfinished event at the end of a stream's reads."""

    def whole_events(self, data: bytes) -> bytes:
        """Append `data`; take out and return the whole events. Reads each byte once, even in many parts."""
        seen = max(0, len(self) - 3)
        self += data
        cut = after_last_event(self, seen)
        events = bytes(self) if cut == len(self) else bytes(self[:cut])
        del self[:cut]
        return events
