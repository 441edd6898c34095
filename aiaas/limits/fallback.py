"""The shared store while it is there, and what the config says while it is not. No request waits for it meanwhile.

    local  this process counts by itself: of each limit its share, which is the limit divided by the largest number of
           processes that there may be, and at least 1
    allow  everything is let in
    deny   nothing is: 503 with Retry-After

A request is settled where it was admitted. What was counted locally stays local when the store is back.
"""

from __future__ import annotations

from math import inf
from typing import Final, Literal

from aiaas.errors import UpstreamError
from aiaas.limits.connection import StoreAwayError
from aiaas.limits.memory import MemoryStore
from aiaas.limits.model import UNLIMITED, Admission, Lease, Limits, Rate
from aiaas.limits.redis import RedisStore

Mode = Literal["local", "allow", "deny"]

SHARED: Final = "shared"
RETRY_AFTER: Final = (("retry-after", "1"), ("retry-after-ms", "1000"))

_NOTHING_KNOWN: Final = Admission(None, None, None, None, None)


class FallbackStore:
    """`aiaas.limits.model.Store`: `shared` where it can be asked.

    processes  the largest number of gateway processes that may share the limits
    decisions  how many requests were decided by `shared`, `local`, `allow` or `deny`
    """

    def __init__(self, shared: RedisStore, mode: Mode, processes: int) -> None:
        self.shared = shared
        self._local = MemoryStore()
        self.decisions = {SHARED: 0}
        self.follow(mode, processes)

    def follow(self, mode: Mode, processes: int) -> None:
        """From now on these hold; what was admitted is settled as it was admitted."""
        self._mode = mode
        self._processes = processes
        self.decisions.setdefault(mode, 0)

    def __repr__(self) -> str:
        return f"FallbackStore({self.shared!r}, {self._mode})"

    async def admit(self, key: str, limits: Limits, tokens: int, now: float, wall: float) -> Admission:
        """As in `Store.admit`. Raises UpstreamError 503 while the store is away and the mode is `deny`."""
        if limits == UNLIMITED:  # nothing to share
            return await self._local.admit(key, limits, tokens, now, wall)
        if self.shared.up:
            try:
                admission = await self.shared.admit(key, limits, tokens, now, wall)
            except StoreAwayError:
                pass
            else:
                self.decisions[SHARED] += 1
                return admission
        self.decisions[self._mode] += 1
        if self._mode == "deny":
            message = "The limits of this key cannot be checked just now; try again shortly."
            raise UpstreamError(503, "overloaded", message, headers=RETRY_AFTER)
        if self._mode == "allow":
            return Admission(None, None, None, None, Lease(key, UNLIMITED, tokens, now, False, wall))
        share = share_of(limits, self._processes)
        return await self._local.admit(key, share, fitted(tokens, limits, share), now, wall)

    async def look(self, key: str, limits: Limits, now: float) -> Admission:
        """As in `Store.look`; without a word about limits where they are not known."""
        if self.shared.up:
            try:
                return await self.shared.look(key, limits, now)
            except StoreAwayError:
                pass
        if self._mode != "local":
            return _NOTHING_KNOWN
        return await self._local.look(key, share_of(limits, self._processes), now)

    async def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        """As in `Store.settle`. Never suspends."""
        await (self.shared if lease.id else self._local).settle(lease, used_tokens, now, wall, ran=ran)

    async def close(self) -> None:
        """As in `Store.close`."""
        await self.shared.close()


def share_of(limits: Limits, processes: int) -> Limits:
    """What one of `processes` may let in so that all together keep the limits; at least 1 of each."""

    def part(whole: int) -> int:
        return max(whole // processes, 1)

    requests, tokens = limits.requests, limits.tokens
    day, month, concurrent = limits.tokens_per_day, limits.tokens_per_month, limits.concurrent
    return Limits(
        requests=None if requests is None else Rate(part(requests.per_minute), part(requests.burst)),
        tokens=None if tokens is None else Rate(part(tokens.per_minute), part(tokens.burst)),
        tokens_per_day=None if day is None else part(day),
        tokens_per_month=None if month is None else part(month),
        concurrent=None if concurrent is None else part(concurrent),
    )


def fitted(tokens: int, limits: Limits, share: Limits) -> int:
    """The reservation of a request that is in order under `limits`, cut to what the share can hold at all.

    Else an outage would turn it into one that is too large ever to be let in, a 400. What it really used is settled.
    """
    return tokens if tokens > _most(limits) else int(min(tokens, _most(share)))


def _most(limits: Limits) -> float:
    """The largest reservation that these limits can ever let in."""
    burst = None if limits.tokens is None else limits.tokens.burst
    sizes = (burst, limits.tokens_per_day, limits.tokens_per_month)
    return min((size for size in sizes if size is not None), default=inf)
