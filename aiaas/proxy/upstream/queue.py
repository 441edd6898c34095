"""A bounded queue that is fair between keys. State and decisions only, without clocks and tasks.

First come, first served within a key; between keys one each in turn:

    a1 a2 a3 b1 arrive in this order   ->   a1 b1 a2 a3

So a key that has filled the queue holds up another key's first request by one turn and not by its whole backlog. A key
that comes (or comes back) is last in the round. The bound counts requests, of whichever key. Every step takes constant
time, however many wait: OrderedDict and not dict, whose first entry is found by walking over those that were removed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)


class FairQueue(Generic[W]):
    """At most `size` waiters, each once, each under a key. A smaller `size` does not remove waiters."""

    __slots__ = ("_rounds", "length", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.length = 0
        # By key, in the order of the round; its waiters in order of arrival. No key is there without a waiter.
        self._rounds: OrderedDict[Hashable, OrderedDict[W, None]] = OrderedDict()

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"<FairQueue: {self.length} of {self.size} wait, {len(self._rounds)} keys>"

    def put(self, key: Hashable, waiter: W) -> bool:
        """Queue the waiter; False if the queue is full."""
        if self.length >= self.size:
            return False
        own = self._rounds.get(key)
        if own is None:
            own = self._rounds[key] = OrderedDict()
        own[waiter] = None
        self.length += 1
        return True

    def take(self) -> W | None:
        """Take out the next waiter; None if the queue is empty."""
        if not self._rounds:
            return None
        key, own = self._rounds.popitem(last=False)
        waiter, _ = own.popitem(last=False)
        if own:
            self._rounds[key] = own
        self.length -= 1
        return waiter

    def remove(self, key: Hashable, waiter: W) -> None:
        """Remove the waiter; does nothing if it is not in the queue."""
        own = self._rounds.get(key)
        if own is None or waiter not in own:
            return
        del own[waiter]
        self.length -= 1
        if not own:
            del self._rounds[key]
