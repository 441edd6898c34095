"""The words of the limiter, as frozen values. Seconds are floats on one monotonic clock, passed in as `now`.

What every request makes anew is a msgspec.Struct (a tenth of a frozen dataclass's cost), what a Plan holds a dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec


class LateWord(Protocol):
    """The shared store's word on a request that was let in before it came."""

    def settle(self, used_tokens: int, ran: bool) -> None:
        """The request has ended, as in `Store.settle`. Never suspends."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_minute` on average, `burst` at once after a pause (a token bucket of that size)."""

    per_minute: int
    burst: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything that holds for one key; None is no limit.

    requests          requests a minute
    tokens            LLM tokens a minute; its bucket holds one minute's worth
    tokens_per_day    quota in the UTC day
    tokens_per_month  quota in the UTC month
    concurrent        requests in flight
    """

    requests: Rate | None = None
    tokens: Rate | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    concurrent: int | None = None


UNLIMITED = Limits()


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What one limit says about one request.

    allowed      whether this limit lets it in
    limit        the configured amount (requests or tokens a minute; for quotas and slots their size)
    remaining    how many more would be let in right now, after this one
    reset_after  seconds until the limit is whole again
    retry_after  seconds until this same request would be let in; 0 where allowed, None where waiting cannot help
    """

    allowed: bool
    limit: int
    remaining: int
    reset_after: float
    retry_after: float | None


class Lease(msgspec.Struct, frozen=True, gc=False):
    """What an admitted request holds, and has to give back exactly once: a slot and a reservation of tokens.

    id             its name in the shared store; "" where this process alone knows of it
    admitted_at    the `now` of its admission, monotonic seconds
    admitted_wall  the `wall` of its admission, POSIX seconds: its tokens count in the UTC day and month of that moment
    late           settled as well: the store was asked, and may yet say that it let the request in
    """

    key: str
    limits: Limits
    reserved_tokens: int
    admitted_at: float
    slot: bool
    admitted_wall: float = 0.0
    id: str = ""
    late: LateWord | None = None


class AdmissionResult(msgspec.Struct, frozen=True, gc=False):
    """All limits' word on one request, decided and charged at once (or nothing charged at all).

    refused_by  None where admitted, else "requests", "tokens", "concurrency" or "quota"
    requests    the request limit's Decision, None where there is no such limit
    tokens      the token limit's Decision, likewise
    refusal     the Decision of the limit that refused; None where admitted
    lease       to be settled; None where refused
    """

    refused_by: str | None
    requests: Decision | None
    tokens: Decision | None
    refusal: Decision | None
    lease: Lease | None


class Store(Protocol):
    """Where the limiter's state lives: `MemoryStore` in this process, `FallbackStore` in Redis while that is there.

    A store with a clock of its own goes by that, and not by `now` and `wall`.
    """

    async def admit(self, key: str, limits: Limits, tokens: int, now: float, wall: float) -> AdmissionResult:
        """Decide on one request of `key` that reserves `tokens`, and charge it if all limits let it in.

        now   monotonic seconds; wall  POSIX seconds, for the UTC windows of quotas
        """
        ...

    async def look(self, key: str, limits: Limits, now: float) -> AdmissionResult:
        """How the limits on requests and tokens stand, with nothing asked for and nothing charged; no lease."""
        ...

    async def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        """Give back the slot, and replace the reservation by what was used. Settling twice is a caller's bug.

        ran  False where no backend saw the request: it then costs no request either
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
