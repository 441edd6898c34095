"""When to send: times in seconds since the start, as pure functions of the load's shape, without a clock.

Open loop: requests are sent on schedule without waiting for answers. An arrival process of rate 1 (constant: 0, 1, ...;
Poisson: gaps drawn from an exponential distribution with mean 1) is stretched by the inverse of the cumulative rate

    L(t) = rate t^2 / (2 ramp)     while t < ramp: the rate grows linearly from 0
    L(t) = rate (t - ramp / 2)     afterwards

so ramp and process are independent of each other (time change of a point process). Each time is absolute, so delays do
not accumulate.

Closed loop: each user sends its next request when its last answer is complete; the ramp only sets when users start.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from math import log, sqrt

Draw = Callable[[], float]


def arrivals(rate: float, *, draw: Draw | None, ramp: float = 0.0) -> Iterator[float]:
    """Yield the times at which requests are due, without end.

    Args:
        rate: requests per second after the ramp; more than 0.
        draw: uniform numbers in [0, 1) for a Poisson process; None for a constant rate.
        ramp: seconds in which the rate grows from 0.
    """
    return (_inverse(position, rate, ramp) for position in _unit_process(draw))


def _unit_process(draw: Draw | None) -> Iterator[float]:
    if draw is None:
        return map(float, itertools.count())
    return itertools.accumulate(-log(1.0 - draw()) for _ in itertools.repeat(None))


def _inverse(position: float, rate: float, ramp: float) -> float:
    """Return the t with L(t) = position."""
    if position < rate * ramp / 2:
        return sqrt(2 * ramp * position / rate)
    return position / rate + ramp / 2


def user_starts(users: int, ramp: float = 0.0) -> tuple[float, ...]:
    """Return when each user of a closed loop starts: evenly over the ramp."""
    return tuple(ramp * number / users for number in range(users))
