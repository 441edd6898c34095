"""Who has presented too many wrong keys: a bucket of failures for each source (a client's network). Pure.

Only failures that cost a slow hash count, and only keys that need one are held up by it: neither keys that aiaas made,
nor keys that were verified before. So a client that shares its address with an attacker (NAT) works on, and one whose
imported key is new to this process is told when to come back, not that its key is wrong.

An attacker with many addresses is the business of the bounds in `verifier.py`, which hold for all together.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Final

BURST: Final = 10  # failures at once: a fleet of clients that was rolled out with the wrong key; 0.2 s of hashing
INTERVAL: Final = 10.0  # seconds for each further one: 0.2 % of a core
MAX_SOURCES: Final = 4096  # the least recently seen is forgotten
_FULL: Final = BURST * INTERVAL


class FailureThrottle:
    """The buckets of the sources that failed lately."""

    def __init__(self) -> None:
        self._empty_at: OrderedDict[str, float] = OrderedDict()  # when each bucket will have run out

    def __len__(self) -> int:
        """Sources that are remembered."""
        return len(self._empty_at)

    def wait(self, source: str, now: float) -> float:
        """Seconds until `source` may have a key hashed; 0 where it may right now. `now` is POSIX seconds."""
        level = self._level(source, now)
        return max(0.0, level - _FULL + INTERVAL)

    def failed(self, source: str, now: float) -> None:
        """A key from `source` was hashed slowly and was wrong."""
        self._empty_at[source] = now + min(self._level(source, now) + INTERVAL, _FULL)
        self._empty_at.move_to_end(source)
        if len(self._empty_at) > MAX_SOURCES:
            self._empty_at.popitem(last=False)

    def _level(self, source: str, now: float) -> float:
        """Seconds that the bucket takes to run out; at most what a full one takes, also when the clock is set back."""
        return min(max(self._empty_at.get(source, now) - now, 0.0), _FULL)


def source_of(address: str) -> str:
    """What one client can hold of addresses: one of IPv4, 64 bits' worth of IPv6 (RFC 6177). Else the text itself."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    return f"{IPv6Address(int(ip) >> 64 << 64)}/64" if isinstance(ip, IPv6Address) else str(ip)
