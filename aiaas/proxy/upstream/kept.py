"""The text of an open stream, kept for as long as it may have to go on at another endpoint. In memory only, and never
part of a log line or a repr.

Reads are kept as they come and compressed together, SQUEEZED_AT at a time (zlib level 1: 22 us, to a thirtieth). All
streams of a process share one budget; a stream for which there is no room is forgotten, and nothing else happens to it.
"""

from __future__ import annotations

import zlib
from typing import Final

SQUEEZED_AT: Final = 128  # reads
STREAM_MOST: Final = 256 * 1024  # bytes of one stream, compressed: about 30,000 LLM tokens
_LEVEL: Final = 1


class KeptMemory:
    """The budget of a process, in bytes, and what is in use of it."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def __repr__(self) -> str:
        return f"<KeptMemory: {self.used} of {self.limit} bytes>"


class KeptStream:
    """The part of a stream that its client has: `fresh` reads, and those before them, compressed.

    fresh  appended to by the owner, which calls `squeeze` when there are SQUEEZED_AT
    """

    __slots__ = ("_memory", "_size", "_squeezed", "fresh")

    def __init__(self, memory: KeptMemory) -> None:
        self._memory = memory
        self._squeezed: list[bytes] = []
        self._size = 0
        self.fresh: list[bytes] = []

    def __repr__(self) -> str:
        return f"<KeptStream: {self._size} bytes>"

    def squeeze(self) -> bool:
        """Compress the fresh reads; False, with everything forgotten, if there is no room for them."""
        block = zlib.compress(b"".join(self.fresh), _LEVEL)
        self.fresh.clear()
        memory, size = self._memory, len(block)
        if self._size + size > STREAM_MOST or memory.used + size > memory.limit:
            self.forget()
            return False
        self._squeezed.append(block)
        self._size += size
        memory.used += size
        return True

    def whole(self) -> bytes:
        """Everything that was kept."""
        return b"".join((*map(zlib.decompress, self._squeezed), *self.fresh))

    def forget(self) -> None:
        """Free it."""
        self._memory.used -= self._size
        self._size = 0
        self._squeezed.clear()
        self.fresh.clear()
