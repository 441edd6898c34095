"""Fold samples into the data of charts: values over time, distributions and rates. Pure.

Every sample is included. Many samples are folded into bins of time or into a distribution's percentiles, so a chart of
100,000 requests is not larger than one of 1,000; a few samples are drawn one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from aiaas.loadtest.sample import Sample
from aiaas.loadtest.slo import Bound, meets
from aiaas.loadtest.stats import percentile, rank

MOST_BINS: Final = 100  # more would not be visible on a phone
FULL_BIN: Final = 20  # values that make a median worth drawing
FEW: Final = 300  # values; up to this number they are also drawn one by one
# The points of a distribution: each percent, and finer steps towards the slow end.
SHARES: Final = (*range(1, 99), *(98 + tenth / 10 for tenth in range(21)), 99.95, 99.99)


class Bin(msgspec.Struct, frozen=True):
    """The values of one span of time, in seconds; None without values."""

    start: float
    stop: float
    count: int
    p50: float | None = None
    p99: float | None = None
    slowest: float | None = None

    @property
    def middle(self) -> float:
        """The middle of the span, its position on the time axis."""
        return (self.start + self.stop) / 2


def bins_over_time(points: Sequence[tuple[float, float]], end: float) -> tuple[Bin, ...]:
    """Fold (moment, value) into spans of equal length from 0 to `end`; empty if there are too few values."""
    number = min(len(points) // FULL_BIN, MOST_BINS)
    if number < 2 or end <= 0:
        return ()
    inside: list[list[float]] = [[] for _ in range(number)]
    for moment, value in points:
        inside[_place(moment, end, number)].append(value)
    return tuple(_bin(place * end / number, (place + 1) * end / number, values) for place, values in enumerate(inside))


def _bin(start: float, stop: float, values: list[float]) -> Bin:
    if not values:
        return Bin(start, stop, 0)
    values.sort()
    return Bin(start, stop, len(values), percentile(values, 50), percentile(values, 99), values[-1])


def _place(moment: float, end: float, number: int) -> int:
    return min(max(int(moment / end * number), 0), number - 1)


class SpanRate(msgspec.Struct, frozen=True):
    """Answers that ended in one span of time, per second."""

    start: float
    stop: float
    answers: float
    good: float

    @property
    def middle(self) -> float:
        """The middle of the span, its position on the time axis."""
        return (self.start + self.stop) / 2


def rates_over_time(samples: Sequence[Sample], bounds: tuple[Bound, ...], end: float) -> tuple[SpanRate, ...]:
    """Count complete answers, and answers within the SLO, by when they ended."""
    whole = [sample for sample in samples if sample.ok]
    number = min(len(whole) // FULL_BIN, MOST_BINS)
    if number < 2 or end <= 0:
        return ()
    answers, good = [0] * number, [0] * number
    for sample in whole:
        place = _place(sample.end, end, number)
        answers[place] += 1
        good[place] += meets(sample, bounds)
    width = end / number
    return tuple(SpanRate(at * width, (at + 1) * width, answers[at] / width, good[at] / width) for at in range(number))


def faults_over_time(samples: Iterable[Sample], end: float) -> dict[str, tuple[tuple[float, float, int], ...]]:
    """Count failures as (start, stop, count), by kind and code, the most frequent kind first."""
    moments: dict[str, list[float]] = {}
    for sample in samples:
        if sample.error and not sample.warmup and not sample.aborted:
            moments.setdefault(f"{sample.error} {sample.code}".strip(), []).append(sample.end)
    width = max(end, 1e-9) / MOST_BINS
    found = {}
    for kind, ends in sorted(moments.items(), key=lambda it: (-len(it[1]), it[0])):
        counts = Counter(_place(moment, width * MOST_BINS, MOST_BINS) for moment in ends)
        found[kind] = tuple((place * width, (place + 1) * width, count) for place, count in sorted(counts.items()))
    return found


class Distribution(msgspec.Struct, frozen=True):
    """Points (value, percent of all values that do not exceed it), ascending, and the usual percentiles by name."""

    count: int
    points: tuple[tuple[float, float], ...]
    named: dict[int, float]


def distribution(counts: Counter[float]) -> Distribution | None:
    """Return the distribution of counted values; None without values."""
    number = counts.total()
    if not number:
        return None
    ordered = sorted(counts.items())
    wanted = sorted({0.0, *SHARES, 100.0})
    found: dict[float, float] = {}
    passed, place = 0, 0
    for value, times in ordered:
        passed += times
        while place < len(wanted) and rank(number, wanted[place]) < passed:
            found[wanted[place]] = value
            place += 1
    steps = {value: share for share, value in found.items()}  # for equal values, the highest share counts
    points = ((found[0.0], 0.0), *sorted(steps.items()))
    return Distribution(number, points, {percent: found[percent] for percent in (50, 90, 99)})


def latency_counts(samples: Iterable[Sample], name: str) -> Counter[float]:
    """Count the latencies, in seconds, of complete answers after the warm-up, as `summary` does."""
    counts: Counter[float] = Counter()
    for sample in samples:
        if not sample.ok or sample.warmup:
            continue
        if name == "itl":
            counts.update(sample.gaps)
        else:
            value: float | None = getattr(sample, name)
            if value is not None:
                counts[value] += 1
    return Counter({value / 1e6: times for value, times in counts.items()}) if name == "itl" else counts
