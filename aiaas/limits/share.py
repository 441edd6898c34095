"""How much one process may admit while the shared store is away. Pure.

Each of `processes` gets an equal part of every limit, at least 1, and of the rest that the key had when the store last
answered. All parts add up to the whole fleet's limit, but for the rounding up to 1: each process lets a key with
anything left in once.

    bucket of the whole   |#### used ####|---------- left ----------|     size = burst x T
    bucket of the share   |########|- left / processes -|                 size and rate divided, in the same way

An overdrawn bucket has the wait of the whole: time works it off, and time cannot be divided between processes.
"""

from __future__ import annotations

from math import inf

import msgspec

from aiaas.limits.gcra import charge
from aiaas.limits.model import Limits, Rate
from aiaas.limits.standing import Standing
from aiaas.limits.state import State, windows_at


class KnownState(msgspec.Struct):
    """A key's last known state: the store's answer at monotonic `at`, and the changes since."""

    standing: Standing
    at: float
    requests: int = 0
    tokens: int = 0
    slots: int = 0
    cheap: int = 0


def share_of(limits: Limits, processes: int) -> Limits:
    """The part of one of `processes`; at least 1 of each."""

    def part(whole: int) -> int:
        return max(whole // processes, 1)

    def part_of(rate: Rate | None) -> Rate | None:
        return None if rate is None else Rate(part(rate.per_minute), part(rate.burst))

    day, month, concurrent = limits.tokens_per_day, limits.tokens_per_month, limits.concurrent
    return Limits(
        requests=part_of(limits.requests),
        tokens=part_of(limits.tokens),
        tokens_per_day=None if day is None else part(day),
        tokens_per_month=None if month is None else part(month),
        concurrent=None if concurrent is None else part(concurrent),
        cheap=limits.cheap,
        other=part_of(limits.other),
    )


def _buckets(limits: Limits) -> tuple[Rate | None, Rate | None]:
    """The rates of requests and of cheap requests."""
    return (limits.other, limits.requests) if limits.cheap else (limits.requests, limits.other)


def share_of_rest(known: KnownState, limits: Limits, processes: int, now: float) -> State:
    """The state with which a key's share begins, by this process's monotonic clock. Slots are `slots_of_rest`."""
    share = share_of(limits, processes)
    before, elapsed = known.standing.state, now - known.at
    state = State()

    def tat(stored: float, rate: Rate, part: Rate, cost: int) -> float:
        backlog = charge(stored, rate, cost, known.standing.now) - known.standing.now - elapsed
        return now + _backlog_of_share(max(backlog, 0.0), rate, part, processes)

    (requests, cheap), (requests_share, cheap_share) = _buckets(limits), _buckets(share)
    if requests is not None and requests_share is not None:
        state.requests = tat(before.requests, requests, requests_share, known.requests)
    if cheap is not None and cheap_share is not None:
        state.cheap = tat(before.cheap, cheap, cheap_share, known.cheap)
    if limits.tokens is not None and share.tokens is not None:
        state.tokens = tat(before.tokens, limits.tokens, share.tokens, known.tokens)
    windows, then = windows_at(known.standing.wall + elapsed), windows_at(known.standing.wall)
    state.day, state.month = windows.day, windows.month
    if limits.tokens_per_day is not None and share.tokens_per_day is not None and then.day == windows.day:
        used = (before.day_tokens if before.day >= then.day else 0) + known.tokens
        state.day_tokens = share.tokens_per_day - _part(limits.tokens_per_day - used, processes)
    if limits.tokens_per_month is not None and share.tokens_per_month is not None and then.month == windows.month:
        used = (before.month_tokens if before.month >= then.month else 0) + known.tokens
        state.month_tokens = share.tokens_per_month - _part(limits.tokens_per_month - used, processes)
    return state


def slots_of_rest(known: KnownState, concurrent: int, processes: int, held: int) -> int:
    """How many requests of a key may run here at once, where `held` of them have slots of the store."""
    return held + _part(concurrent - known.standing.state.slots - known.slots, processes)


def fitted(tokens: int, limits: Limits, share: Limits) -> int:
    """The reservation of a request that `limits` allow, cut to the most that the share can hold.

    Otherwise an outage would make the reservation too large ever to be let in, a 400. The settlement uses real tokens.
    """
    return tokens if tokens > _most(limits) else int(min(tokens, _most(share)))


def _part(left: int, processes: int) -> int:
    return max(left // processes, 1) if left > 0 else 0


def _backlog_of_share(backlog: float, rate: Rate, part: Rate, processes: int) -> float:
    """Seconds that the share's bucket begins with, where the whole one has `backlog`."""
    interval, interval_of_part = 60.0 / rate.per_minute, 60.0 / part.per_minute
    size = part.burst * interval_of_part
    left = (rate.burst * interval - backlog) / interval
    if left >= 1:
        return max(size - max(left / processes, 1.0) * interval_of_part, 0.0)
    return size - interval_of_part + (1 - left) * interval


def _most(limits: Limits) -> float:
    """The largest reservation that these limits can ever let in."""
    burst = None if limits.tokens is None else limits.tokens.burst
    user = None if limits.user is None else _most(limits.user)
    sizes = (burst, limits.tokens_per_day, limits.tokens_per_month, user)
    return min((size for size in sizes if size is not None), default=inf)
