"""The limiter's vocabulary, as frozen values. Seconds are floats on one monotonic clock, passed in as `now`.

Values made for every request are msgspec.Structs (a tenth of a frozen dataclass's cost); those in a Plan dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec


class LateWord(Protocol):
    """The shared store's late answer about a request that was let in without it."""

    def settle(self, used_tokens: int, ran: bool) -> None:
        """Settle the request that has ended, as in `Store.settle`."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_minute` on average, `burst` at once after an idle period (a token bucket of that size)."""

    per_minute: int
    burst: int


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of one key; None means unlimited.

    requests          requests a minute, in one of a key's two buckets
    tokens            LLM tokens a minute; its bucket holds one minute's worth
    tokens_per_day    quota in the UTC day
    tokens_per_month  quota in the UTC month
    concurrent        requests in flight
    cheap             `requests` is the bucket of cheap requests, which only count tokens
    other             the other bucket of requests: a store that begins anew carries both over
    user              the limits of each user behind the key, which hold within the key's; None without such limits
    """

    requests: Rate | None = None
    tokens: Rate | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    concurrent: int | None = None
    cheap: bool = False
    other: Rate | None = None
    user: Limits | None = None


UNLIMITED = Limits()


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The decision of one limit on one request.

    allowed      whether this limit lets it in
    limit        the configured amount (requests or tokens a minute; for quotas and slots their size)
    remaining    how many more it would let in right now, after this one
    reset_after  seconds until the limit is whole again
    retry_after  seconds until the limit would let this request in; 0 where allowed, None where waiting cannot help
    """

    allowed: bool
    limit: int
    remaining: int
    reset_after: float
    retry_after: float | None


class Lease(msgspec.Struct, frozen=True, gc=False):
    """An admitted request's slot and token reservation, which it gives back exactly once.

    id             its name in the shared store; "" where only this process knows it
    admitted_wall  the `wall` of its admission, POSIX seconds: its tokens count in the UTC day and month of that moment
    late           settled as well: the store's answer is still to come, and may be that it let the request in
    user           of the key, where `limits.user` holds for each of them: settled as well
    """

    key: str
    limits: Limits
    reserved_tokens: int
    slot: bool
    admitted_wall: float = 0.0
    id: str = ""
    late: LateWord | None = None
    user: str = ""


class AdmissionResult(msgspec.Struct, frozen=True, gc=False):
    """The decision of all limits on one request, made and charged in one step (or not charged at all).

    refused_by  None where admitted, else "requests", "tokens", "concurrency" or "quota"
    requests    the request limit's Decision, None where there is no such limit; the key's or its user's, by which there
                are fewer left
    tokens      the token limit's Decision, likewise
    refusal     the Decision of the limit that refused; None where admitted
    lease       for `settle`; None where refused
    of_user     the limit that refused is that of a user of the key
    """

    refused_by: str | None
    requests: Decision | None
    tokens: Decision | None
    refusal: Decision | None
    lease: Lease | None
    of_user: bool = False


class Store(Protocol):
    """The home of the limiter's state: `MemoryStore` in this process, `FallbackStore` in Redis while it is reachable.

    A store with its own clock uses that instead of `now` and `wall`.
    """

    async def admit(
        self, key: str, limits: Limits, tokens: int, now: float, wall: float, user: str = ""
    ) -> AdmissionResult:
        """Decide on one request of `key` that reserves `tokens`, and charge it if all limits let it in.

        now   monotonic seconds; wall  POSIX seconds, for the UTC windows of quotas
        user  of the key; counts only where `limits.user` is set
        """
        ...

    async def look(self, key: str, limits: Limits, now: float, user: str = "") -> AdmissionResult:
        """The state of the limits on requests and tokens; charges nothing and gives no lease."""
        ...

    def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        """Give back the slot, and replace the reservation by the used tokens. Settling twice is a caller's bug.

        ran  False where the request did not reach a backend: it then does not cost a request either
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
