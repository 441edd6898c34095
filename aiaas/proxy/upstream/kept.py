"""The text of an open stream, kept for as long as it may have to go on at another endpoint. In memory only, and never
part of a log line or a repr.

Nearly all events of a stream begin and end alike: of each only the middle is kept, some 10 bytes of 250. Where an event
differs, a new run begins. (Compressing whole reads took four times as long as relaying them.) All streams of a process
share one budget; a stream for which there is no room is forgotten, and nothing else happens to it.
"""

from __future__ import annotations

from typing import Final

JOINED_AT: Final = 128  # middles; a bytes object takes 33 bytes more than its content
STREAM_MOST: Final = 256 * 1024  # bytes of one stream: about 25,000 LLM tokens
_SEPARATOR: Final = b"\n\n"  # stands inside of no event
_BLOCK: Final = 200  # bytes of a block beside its content, about
_NOTHING: Final = b"\0"  # no event begins so


class KeptMemory:
    """The budget of a process, in bytes, and what is in use of it."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def __repr__(self) -> str:
        return f"<KeptMemory: {self.used} of {self.limit} bytes>"


class KeptStream:
    """The part of a stream that its client has.

    head, tail  the beginning and the end (with the line end of its chunk) of an event of the present run
    least       bytes of such an event with its line end, at the least
    skip, drop  where its middle begins, and where it ends, counted from the end of its chunk
    fresh       the middles of the run, to which the owner appends; it calls `join` when there are JOINED_AT
    """

    __slots__ = ("_blocks", "_memory", "_model", "_size", "drop", "fresh", "head", "least", "skip", "tail")

    def __init__(self, memory: KeptMemory) -> None:
        self._memory = memory
        self._blocks: list[bytes | tuple[bytes, bytes, bytes]] = []
        self._size = 0
        self._model = b""  # the event that the next one is compared with
        self.fresh: list[bytes] = []
        self._begin_run(_NOTHING, b"")

    def __repr__(self) -> str:
        return f"<KeptStream: {self._size} bytes>"

    def _begin_run(self, head: bytes, tail: bytes) -> None:
        self.head, self.tail = head, tail + b"\r\n"
        self.skip, self.drop = len(head), -len(self.tail)
        self.least = len(head) + len(self.tail)

    def add(self, event: bytes) -> bool:
        """Keep one whole event; False, with everything forgotten, if there is no room."""
        if event.startswith(b":"):
            return True
        tail = self.tail[:-2]
        if len(event) + 2 >= self.least and event.startswith(self.head) and event.endswith(tail):
            self.fresh.append(event[self.skip : len(event) - len(tail)])
            return len(self.fresh) < JOINED_AT or self.join()
        return self.begin(event)

    def begin(self, event: bytes) -> bool:
        """Keep an event that begins or ends otherwise than those before it, and begin a new run; False as in `add`."""
        if not self.join() or not self._keep(event, len(event)):
            return False
        if b'"role"' in event:  # a chat's first one, unlike all others
            return True
        if self._model:
            head = _alike(self._model, event)
            tail = _alike(self._model[head:][::-1], event[head:][::-1])
            self._begin_run(event[:head], event[len(event) - tail :])
        self._model = event
        return True

    def join(self) -> bool:
        """Put the fresh middles together; False as in `add`."""
        if not self.fresh:
            return True
        joined = _SEPARATOR.join(self.fresh)
        if joined.split(_SEPARATOR) != self.fresh:
            self.forget()
            return False
        self.fresh.clear()
        return self._keep((self.head, self.tail[:-2], joined), len(joined))

    def _keep(self, block: bytes | tuple[bytes, bytes, bytes], size: int) -> bool:
        memory, size = self._memory, size + _BLOCK
        if self._size + size > STREAM_MOST or memory.used + size > memory.limit:
            self.forget()
            return False
        self._blocks.append(block)
        self._size += size
        memory.used += size
        return True

    def whole(self) -> bytes:
        """Everything that was kept."""
        fresh = (self.head, self.tail[:-2], _SEPARATOR.join(self.fresh))
        return b"".join(map(_events, (*self._blocks, *((fresh,) if self.fresh else ()))))

    def forget(self) -> None:
        """Free it."""
        self._memory.used -= self._size
        self._size = 0
        self._blocks.clear()
        self.fresh.clear()


def _alike(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def _events(block: bytes | tuple[bytes, bytes, bytes]) -> bytes:
    if isinstance(block, bytes):
        return block
    head, tail, joined = block
    return head + (tail + head).join(joined.split(_SEPARATOR)) + tail
