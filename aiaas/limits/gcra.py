"""The generic cell rate algorithm: a token bucket whose whole state is one moment in time.

Theory (ITU-T I.371, annex A). Each unit takes `T = 60 / per_minute` seconds of the rate. The theoretical arrival
time, TAT, is when everything admitted so far will have been worked off. `backlog = max(TAT - now, 0)` seconds are still
owed, the bucket holds `burst * T` seconds, and a request of `cost` units fits where

    backlog + cost * T <= burst * T

Admitting it moves TAT on by `cost * T`. A missing TAT, or one in the past, is a full bucket.

Exactness:
1. Any window of `t` seconds admits at most `burst + (t + EPSILON) / T` units: TAT moves by T for each,
   starts no earlier than the window and ends no later than `burst * T + EPSILON` after it.
2. A client that waits `retry_after`, or longer, is admitted if nothing else was meanwhile. The wait is computed and
   then added by the client's clock, each with rounding; EPSILON is larger than those roundings and forgives them.
3. A clock that stands still or goes back does not admit more; time has to make up for the jump first.

A new rate for an old TAT keeps the seconds owed, hence the same share of the bucket where burst and rate grow alike.
"""

from __future__ import annotations

from math import floor
from typing import Final

from aiaas.limits.model import Decision, Rate

# One microsecond. A double of POSIX seconds (1.8e9) is exact to 0.24 us, one of monotonic seconds to far less.
EPSILON: Final = 1e-6
_HALF: Final = EPSILON / 2


def decide(tat: float | None, rate: Rate, cost: int, now: float) -> tuple[Decision, float]:
    """Decide on `cost` units at `now` seconds; return the Decision and the new TAT (the old one where refused).

    cost  units, 0 or more; 0 asks without charging and is refused only while the bucket is overdrawn
    """
    interval = 60.0 / rate.per_minute
    size = rate.burst * interval
    backlog = tat - now if tat is not None and tat > now else 0.0
    wanted = backlog + cost * interval
    if wanted <= size + EPSILON:
        # `_fitting`, without its two calls.
        remaining = floor((size - wanted + _HALF) / interval)
        return Decision(True, rate.per_minute, remaining if remaining > 0 else 0, wanted, 0.0), now + wanted
    retry_after = wanted - size if cost <= rate.burst else None
    refused = Decision(False, rate.per_minute, _fitting(size - backlog, interval), backlog, retry_after)
    return refused, now if tat is None else tat


def charge(tat: float | None, rate: Rate, cost: int, now: float) -> float:
    """The TAT after a correction: `cost` units were used beyond the charge, or, where negative, not used.

    Unused units come back, up to a full bucket. Additional ones may overdraw the bucket: then it admits nothing until
    they are worked off.
    """
    backlog = tat - now if tat is not None and tat > now else 0.0
    left = backlog + cost * (60.0 / rate.per_minute)
    return now + left if left > 0.0 else now


def _fitting(seconds: float, interval: float) -> int:
    """How many units fit into `seconds` of the bucket. Half of EPSILON makes sure of every promised unit."""
    return max(floor((seconds + _HALF) / interval), 0)
