"""Slow down sources of wrong keys: a bucket of failures for each source (a client's network). Pure.

Only failures that cost a slow hash count, and the throttle delays only keys that need one: neither keys that aiaas
made, nor keys that were verified before. So a client that shares its address with an attacker (NAT) works on, and a
client whose imported key is new to this process learns when to retry, not that its key is wrong.

Against an attacker with many addresses, `verifier.py` bounds the work for all sources together.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address
from typing import Final

BURST: Final = 10  # failures at once: a fleet of clients rolled out with the wrong key; 0.2 s of hashing
SECONDS_A_TRY: Final = 10.0  # seconds for each further one: 0.2 % of a core
MAX_SOURCES: Final = 4096  # beyond it the least recently seen source is forgotten
_FULL: Final = BURST * SECONDS_A_TRY


class FailureThrottle:
    """The buckets of the sources that failed lately."""

    def __init__(self) -> None:
        self._empty_at: OrderedDict[str, float] = OrderedDict()  # when each bucket will be empty

    def __len__(self) -> int:
        """The number of remembered sources."""
        return len(self._empty_at)

    def wait(self, source: str, now: float) -> float:
        """Seconds until `source` may have a key hashed; 0 for now. `now` is POSIX seconds."""
        level = self._level(source, now)
        return max(0.0, level - _FULL + SECONDS_A_TRY)

    def failed(self, source: str, now: float) -> None:
        """Count a wrong key from `source` that cost a slow hash."""
        self._empty_at[source] = now + min(self._level(source, now) + SECONDS_A_TRY, _FULL)
        self._empty_at.move_to_end(source)
        if len(self._empty_at) > MAX_SOURCES:
            self._empty_at.popitem(last=False)

    def _level(self, source: str, now: float) -> float:
        """Seconds until the bucket is empty; never more than for a full bucket, even when the clock is set back."""
        return min(max(self._empty_at.get(source, now) - now, 0.0), _FULL)


def source_of(address: str) -> str:
    """The network of one client: one IPv4 address, or an IPv6 /64 (RFC 6177). Any other text stays as it is."""
    if ":" not in address:
        return address
    try:
        network = int(IPv6Address(address)) >> 64 << 64
    except ValueError:
        return address
    return f"{IPv6Address(network)}/64"
