"""When to send: moments as pure functions of the load's shape. Seconds since the start; nothing here has a clock.

Open loop: arrivals come on schedule, whatever the answers do. An arrival process of rate 1 (constant: 0, 1, 2, ...;
Poisson: gaps drawn from an exponential distribution with mean 1) is stretched by the inverse of the cumulative rate

    L(t) = rate t^2 / (2 ramp)     while t < ramp: the rate grows evenly from 0
    L(t) = rate (t - ramp / 2)     afterwards

so that ramp and process do not know each other (time change of a point process). Lateness never adds up, since each
moment is absolute.

Closed loop: each user sends when its last answer is whole; a ramp only says when each of them begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from math import log, sqrt

Draw = Callable[[], float]


def arrivals(rate: float, *, draw: Draw | None, ramp: float = 0.0) -> Iterator[float]:
    """The moments at which requests are due, without end.

    Args:
        rate: requests per second, once the ramp is over; more than 0.
        draw: uniform numbers in [0, 1) for a Poisson process; None is a constant rate.
        ramp: seconds in which the rate grows from 0.
    """
    return (_inverse(position, rate, ramp) for position in _unit_process(draw))


def _unit_process(draw: Draw | None) -> Iterator[float]:
    if draw is None:
        return map(float, itertools.count())
    return itertools.accumulate(-log(1.0 - draw()) for _ in itertools.repeat(None))


def _inverse(position: float, rate: float, ramp: float) -> float:
    """The t at which L(t) = position."""
    if position < rate * ramp / 2:
        return sqrt(2 * ramp * position / rate)
    return position / rate + ramp / 2


def user_starts(users: int, ramp: float = 0.0) -> tuple[float, ...]:
    """When each user of a closed loop begins: evenly over the ramp."""
    return tuple(ramp * number / users for number in range(users))
