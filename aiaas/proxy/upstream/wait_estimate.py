"""How long a request would wait in a queue, from the grants of the last seconds. Pure: the caller has the clock.

    wait = (own requests that wait + 1) / own grants a second

A key that always has requests waiting is served at about the same rate from one ten seconds to the next, and its own
grants show that rate, whatever the other keys do. Before a key has had ENOUGH_GRANTS while it waits, take an equal part
of all grants instead. That part may be far from true for a key with credit, or of another class: it is good enough for
`Retry-After`, and not for a refusal.

An engine with long answers may end many of them at once and then none for a while: where the last SHORT_WINDOW seconds
had too few grants, take the last LONG_WINDOW seconds.

Only grants to requests that waited count. While any wait, these are all grants; while none do, nothing is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from aiaas.proxy.upstream.backends import BackendState

SHORT_WINDOW: Final = 10  # seconds, and buckets
LONG_WINDOW: Final = 60
ENOUGH_GRANTS: Final = 3  # grants; fewer say nothing about a rate
PAUSE_MOST: Final = 1  # seconds; after a longer one without anybody waiting, the rate of all is measured anew


class SlotPace:
    """Grants since `began`, of the last LONG_WINDOW seconds at the most: one bucket for each second that had any."""

    __slots__ = ("_began", "_buckets")

    def __init__(self, began: float) -> None:
        self._began = began
        self._buckets: deque[list[int]] = deque(maxlen=LONG_WINDOW + 1)  # the second, and its grants

    def add(self, now: float) -> None:
        """Count a grant."""
        second = int(now)
        if self._buckets and self._buckets[-1][0] >= second:
            self._buckets[-1][1] += 1
        else:
            self._buckets.append([second, 1])

    def has_paused(self, now: float) -> bool:
        """Whether the last grant is longer ago than PAUSE_MOST."""
        return not self._buckets or int(now) - self._buckets[-1][0] > PAUSE_MOST

    def rate(self, now: float) -> float | None:
        """Grants a second; None where there were too few to tell."""
        short, long = int(now) - SHORT_WINDOW, int(now) - LONG_WINDOW
        grants, since = 0, short
        for second, count in reversed(self._buckets):
            if second < since:
                if grants >= ENOUGH_GRANTS or second < long:
                    break
                since = long
            grants += count
        elapsed = now - max(self._began, since)
        return grants / elapsed if grants >= ENOUGH_GRANTS and elapsed > 0 else None


class Prediction(NamedTuple):
    """The seconds that a request would wait. `own`: by the key's own grants, and so good enough to refuse it."""

    seconds: float
    own: bool


class GrantRates:
    """The grants of one backend's queue: all, and by key, of the keys that wait."""

    __slots__ = ("_all", "_keys")

    def __init__(self) -> None:
        self._all = SlotPace(0.0)
        self._keys: dict[Hashable, SlotPace] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def begin(self, key: Hashable, now: float) -> None:
        """A request of the key begins to wait."""
        if not self._keys and self._all.has_paused(now):
            self._all = SlotPace(now)
        if key not in self._keys:
            self._keys[key] = SlotPace(now)

    def granted(self, key: Hashable, now: float) -> None:
        """A waiting request of the key has a slot."""
        self._all.add(now)
        self._keys[key].add(now)

    def forget(self, key: Hashable) -> None:
        """No request of the key waits any more."""
        self._keys.pop(key, None)

    def own_rate(self, key: Hashable, now: float) -> float | None:
        """The key's grants a second since it began to wait; None where there were too few to tell."""
        own = self._keys.get(key)
        return None if own is None else own.rate(now)

    def equal_rate(self, key: Hashable, now: float, position: int, length: int) -> float | None:
        """The key's part of all grants a second, if all keys were served equally often and `length` requests of all
        keys wait: it waits no longer than for all of them. None where there were too few grants to tell."""
        rate = self._all.rate(now)
        if rate is None:
            return None
        keys = len(self._keys) + (key not in self._keys)
        return rate * position / min(position * keys, max(length + 1, position))


def position_of(backends: Sequence[BackendState], key: Hashable, user: str | None = None) -> int:
    """The place of the key's next request among its own: 1 where none of them waits. With a `user`, of that one's."""
    return 1 + min(backend.fair.ahead(key, user) for backend in backends)


def predict(backends: Sequence[BackendState], key: Hashable, now: float, user: str | None = None) -> Prediction | None:
    """The wait of a request of the key that is added to the queues of all `backends` now; None if nothing is known."""
    position = position_of(backends, key, user)
    total, own = 0.0, True
    for backend in backends:
        rate = backend.rates.own_rate(key, now)
        if rate is None:
            own = False
            rate = backend.rates.equal_rate(key, now, position, backend.waiting)
        total += rate or 0.0
    return Prediction(position / total, own) if total else None
