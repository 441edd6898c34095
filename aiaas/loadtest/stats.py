"""Numbers out of measurements: percentiles, means, and how sure one can be. Pure.

Percentiles are by nearest rank: p90 is the smallest measured value that at least 90 % of all values do not exceed. It
is always a value that was measured, never one between two. With fewer than 100 values p99 is the largest.

Confidence intervals are by bootstrap (percentile method): the statistic of many random re-draws, with replacement, of
the same size; the interval holds the middle 95 % of them. Nothing is assumed about the distribution. `draw` gives
uniform numbers in [0, 1), so that the same seed gives the same interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import ceil, exp, lgamma, log, sqrt
from typing import Final

import msgspec

from aiaas.loadtest.pacer import Draw

REDRAWS: Final = 1000  # the ends of the interval then vary by about 2 % of its width
CONFIDENCE: Final = 0.95


class Spread(msgspec.Struct, frozen=True):
    """A distribution in a few numbers, all but `count` in the unit of the values (seconds, mostly)."""

    count: int
    mean: float
    deviation: float
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float


class Interval(msgspec.Struct, frozen=True):
    """An estimate and the ends of its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


def rank(count: int, percent: float) -> int:
    """The position, from 0, of a percentile among `count` sorted values."""
    return max(ceil(count * percent / 100 - 1e-9), 1) - 1


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values that are sorted already; at least one."""
    return ordered[rank(len(ordered), percent)]


def spread(values: Iterable[float]) -> Spread | None:
    """The distribution of the values, None where there are none."""
    return spread_of_counts(Counter(values))


def spread_of_counts(counts: Counter[float]) -> Spread | None:
    """The same of values that are counted already: a long run has millions of gaps and few thousand different ones."""
    number = counts.total()
    if not number:
        return None
    mean = sum(value * times for value, times in counts.items()) / number
    variance = sum((value - mean) ** 2 * times for value, times in counts.items()) / number
    ordered = sorted(counts.items())
    p50, p90, p95, p99 = _at(ordered, [rank(number, percent) for percent in (50, 90, 95, 99)])
    return Spread(number, mean, sqrt(variance), ordered[0][0], p50, p90, p95, p99, ordered[-1][0])


def _at(ordered: Sequence[tuple[float, int]], ranks: Sequence[int]) -> list[float]:
    """The values at ascending positions."""
    found: list[float] = []
    passed = 0
    for value, times in ordered:
        passed += times
        while len(found) < len(ranks) and ranks[len(found)] < passed:
            found.append(value)
    return found


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the middle two; at least one value."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def bootstrap(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float], draw: Draw, redraws: int = REDRAWS
) -> Interval:
    """`statistic` of the values, with its interval; at least one value."""
    size = len(values)
    estimates = sorted(statistic([values[int(draw() * size)] for _ in range(size)]) for _ in range(redraws))
    tail = (1 - CONFIDENCE) / 2 * 100
    return Interval(statistic(values), percentile(estimates, tail), percentile(estimates, 100 - tail))


def percentile_interval(ordered: Sequence[float], percent: float) -> Interval:
    """A nearest-rank percentile of sorted values, at least one, with the 95 % interval that their order gives.

    How many of n values lie below the true percentile is binomial, whatever the distribution; so two of the values
    hold it between them (Conover, Practical Nonparametric Statistics, 3.2). Where n is too small for that, the end is
    infinite, or 0 at the low side: latencies have no other bound. For 100,000 values it costs what the sorting did.
    """
    size, share = len(ordered), percent / 100
    tail = (1 - CONFIDENCE) / 2
    low, high = -1, size
    below = 0.0  # P(at most `number` of them lie below)
    reach = 9 * sqrt(size * share * (1 - share)) + 9  # nothing that could be seen lies beyond
    first = max(int(size * share - reach), 0)
    for number in range(first, min(int(size * share + reach), size) + 1):
        below += _binomial(size, number, share)
        if below <= tail:
            low = number
        if below >= 1 - tail:
            high = number
            break
    ends = (0.0 if low < 0 else ordered[low], float("inf") if high >= size else ordered[high])
    return Interval(percentile(ordered, percent), *ends)


def _binomial(size: int, number: int, share: float) -> float:
    """The probability of exactly `number` out of `size`."""
    ways = lgamma(size + 1) - lgamma(number + 1) - lgamma(size - number + 1)
    return exp(ways + number * log(share) + (size - number) * log(1 - share))
