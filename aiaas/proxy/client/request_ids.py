"""Request ids that reveal neither the number of earlier requests nor the process that answers.

A counter would let any client compute the gateway's traffic from two of its own requests. Random numbers cost a system
call each, so draw them for BLOCK ids at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

ID_BYTES: Final = 12  # 96 bits: two of a billion ids are equal with a chance of 10^-11
BLOCK: Final = 256


class RequestIds:
    """Makes ids of `size` bytes, in hexadecimal digits. `entropy(n)` gives n random bytes."""

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom, size: int = ID_BYTES) -> None:
        self._entropy = entropy
        self._size = size
        self._ready: list[str] = []

    def new(self) -> str:
        """The next id."""
        if not self._ready:
            self._ready = self._entropy(self._size * BLOCK).hex(" ", self._size).split(" ")
        return self._ready.pop()
