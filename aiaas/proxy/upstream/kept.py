"""The text of an open stream, kept for as long as it may have to go on at another endpoint. In memory only, and never
part of a log line or a repr.

Reads are kept as they came, and packed JOINED_AT at a time: events begin and end alike, so that of each only its middle
is kept, some 10 bytes of 250, and an event costs two slices. (zlib costs five times as much.) All streams of a process
share one budget; a stream for which there is no room is forgotten, and nothing else happens to it.
"""

from __future__ import annotations

from typing import Final

import msgspec

JOINED_AT: Final = 64  # reads
STREAM_MOST: Final = 256 * 1024  # bytes of one stream, packed: about 25,000 LLM tokens
_BLOCK: Final = 200  # bytes of a block beside its content, about
_BLANK: Final = b"\n\n"  # behind each event
_MARK: Final = b"\0"  # JSON escapes it, so that no event has it


class KeptMemory:
    """The budget of a process, in bytes, and what is in use of it."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def __repr__(self) -> str:
        return f"<KeptMemory: {self.used} of {self.limit} bytes>"


class _Packed(msgspec.Struct, frozen=True, gc=False):
    """Some events: how all of them begin and end, and their middles with a mark between any two."""

    head: bytes
    tail: bytes
    middles: bytes

    def events(self) -> bytes:
        between = self.tail + self.head
        return self.head + (self.middles.replace(_MARK, between) if between else self.middles) + self.tail


class KeptStream:
    """The part of a stream that its client has: `fresh` reads, and those before them, packed.

    fresh  appended to by the owner, which calls `join` when there are JOINED_AT
    """

    __slots__ = ("_blocks", "_head", "_memory", "_size", "_tail", "fresh")

    def __init__(self, memory: KeptMemory) -> None:
        self._memory = memory
        self._blocks: list[_Packed] = []
        self._size = 0
        self._head = self._tail = b""
        self.fresh: list[bytes] = []

    def __repr__(self) -> str:
        return f"<KeptStream: {self._size} bytes>"

    def join(self) -> bool:
        """Pack the fresh reads; False, with everything forgotten, if there is no room for them."""
        events = b"".join(self.fresh)
        self.fresh.clear()
        packed = self._pack(events)
        if len(packed.middles) * 4 > len(events):  # the events look different by now
            self._head, self._tail = _common(events.split(_BLANK)[:-1])
            packed = self._pack(events)
        memory, size = self._memory, len(packed.middles) + _BLOCK
        if self._size + size > STREAM_MOST or memory.used + size > memory.limit:
            self.forget()
            return False
        self._blocks.append(packed)
        self._size += size
        memory.used += size
        return True

    def _pack(self, events: bytes) -> _Packed:
        head, tail = self._head, self._tail + _BLANK
        skip, end = len(head), -len(self._tail) or None
        packed = _Packed(head, tail, _MARK.join([event[skip:end] for event in events.split(_BLANK)[:-1]]))
        return packed if packed.events() == events else _Packed(b"", b"", events)

    def whole(self) -> bytes:
        """Everything that was kept."""
        return b"".join((*(block.events() for block in self._blocks), *self.fresh))

    def forget(self) -> None:
        """Free it."""
        self._memory.used -= self._size
        self._size = 0
        self._blocks.clear()
        self.fresh.clear()


def _common(events: list[bytes]) -> tuple[bytes, bytes]:
    """How all of these begin, and how they end; together not longer than the shortest."""
    if not events:
        return b"", b""
    head = _alike(min(events), max(events))
    ends = [event[head:][::-1] for event in events]
    tail = _alike(min(ends), max(ends))
    return events[0][:head], events[0][len(events[0]) - tail :]


def _alike(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)
