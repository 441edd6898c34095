"""How close a key is to its limits, for people who watch a gateway. Pure: it charges nothing."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from aiaas.limits.gcra import decide
from aiaas.limits.model import Limits, Rate
from aiaas.limits.state import State, windows_at


class Nearness(msgspec.Struct, frozen=True, gc=False):
    """The use of one limit.

    limit      "requests", "tokens", "concurrency" or "quota"
    used, of   of a rate: of its burst, which a key may use at once
    resets_in  seconds until nothing is used any more, None where that is not known
    """

    limit: str
    used: int
    of: int
    resets_in: float | None

    @property
    def part(self) -> float:
        """The used part of the limit."""
        return self.used / self.of


def nearest(state: State, limits: Limits, now: float, wall: float) -> Nearness | None:
    """The limit of which the most is used; None without limits. `now` is the store's clock, `wall` POSIX seconds."""
    return max(_each(state, limits, now, wall), key=lambda found: found.part, default=None)


def _each(state: State, limits: Limits, now: float, wall: float) -> Iterator[Nearness]:
    if limits.requests is not None:
        yield _of_rate("requests", state.requests, limits.requests, now)
    if limits.tokens is not None:
        yield _of_rate("tokens", state.tokens, limits.tokens, now)
    if limits.concurrent is not None:
        yield Nearness("concurrency", state.slots, limits.concurrent, None)
    windows = windows_at(wall)
    if limits.tokens_per_day is not None:
        used = state.day_tokens if state.day >= windows.day else 0
        yield Nearness("quota", used, limits.tokens_per_day, windows.day_end - wall)
    if limits.tokens_per_month is not None:
        used = state.month_tokens if state.month >= windows.month else 0
        yield Nearness("quota", used, limits.tokens_per_month, windows.month_end - wall)


def _of_rate(name: str, tat: float, rate: Rate, now: float) -> Nearness:
    decision, _ = decide(tat, rate, 0, now)
    return Nearness(name, rate.burst - decision.remaining, rate.burst, decision.reset_after)
