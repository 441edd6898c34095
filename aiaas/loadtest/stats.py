"""Statistics: percentiles, means, and confidence intervals. Pure.

Percentiles are by nearest rank: p90 is the smallest measured value that at least 90 % of all values do not exceed. A
percentile is always a measured value, never interpolated. With fewer than 100 values p99 is the largest value.

Confidence intervals are by bootstrap (percentile method): compute the statistic of many random samples of equal size,
drawn with replacement; the interval spans the middle 95 % of the results. This makes no assumption about the
distribution. `draw` gives uniform numbers in [0, 1), so the same seed gives the same interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import ceil, exp, lgamma, log, sqrt
from typing import Final

import msgspec

from aiaas.loadtest.pacer import Draw

REDRAWS: Final = 1000  # with this many, the ends of the interval vary by about 2 % of its width
CONFIDENCE: Final = 0.95


class Spread(msgspec.Struct, frozen=True):
    """A distribution in a few numbers; all except `count` have the unit of the values (usually seconds)."""

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
    """Return the position, from 0, of a percentile among `count` sorted values."""
    return max(ceil(count * percent / 100 - 1e-9), 1) - 1


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of sorted values; there must be at least one."""
    return ordered[rank(len(ordered), percent)]


def spread(values: Iterable[float]) -> Spread | None:
    """Return the distribution of the values, None without values."""
    return spread_of_counts(Counter(values))


def spread_of_counts(counts: Counter[float]) -> Spread | None:
    """Return the distribution of counted values: a long run has millions of gaps, but only a few thousand different
    ones."""
    number = counts.total()
    if not number:
        return None
    mean = sum(value * times for value, times in counts.items()) / number
    variance = sum((value - mean) ** 2 * times for value, times in counts.items()) / number
    ordered = sorted(counts.items())
    p50, p90, p95, p99 = _at(ordered, [rank(number, percent) for percent in (50, 90, 95, 99)])
    return Spread(number, mean, sqrt(variance), ordered[0][0], p50, p90, p95, p99, ordered[-1][0])


def _at(ordered: Sequence[tuple[float, int]], ranks: Sequence[int]) -> list[float]:
    """Return the values at ascending positions."""
    found: list[float] = []
    passed = 0
    for value, times in ordered:
        passed += times
        while len(found) < len(ranks) and ranks[len(found)] < passed:
            found.append(value)
    return found


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the middle two; there must be at least one value."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def bootstrap(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float], draw: Draw, redraws: int = REDRAWS
) -> Interval:
    """Compute `statistic` of the values with its interval; there must be at least one value."""
    size = len(values)
    estimates = sorted(statistic([values[int(draw() * size)] for _ in range(size)]) for _ in range(redraws))
    tail = (1 - CONFIDENCE) / 2 * 100
    return Interval(statistic(values), percentile(estimates, tail), percentile(estimates, 100 - tail))


def percentile_interval(ordered: Sequence[float], percent: float) -> Interval:
    """Return a nearest-rank percentile of sorted values, at least one, with its 95 % interval from their order.

    The number of values below the true percentile is binomial for every distribution, so two of the values enclose the
    percentile (Conover, Practical Nonparametric Statistics, 3.2). If there are too few values, the upper end is
    infinite, and the lower end 0, the smallest possible latency. For 100,000 values this takes as long as sorting them.
    """
    size, share = len(ordered), percent / 100
    tail = (1 - CONFIDENCE) / 2
    low, high = -1, size
    below = 0.0  # P(at most `number` values lie below)
    reach = 9 * sqrt(size * share * (1 - share)) + 9  # probabilities beyond it are negligible
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
    """Return the probability of exactly `number` out of `size`."""
    ways = lgamma(size + 1) - lgamma(number + 1) - lgamma(size - number + 1)
    return exp(ways + number * log(share) + (size - number) * log(1 - share))
