"""Measure the gateway's overhead: compare requests through it with requests straight to the engine, by pairs. Pure.

Two consecutive runs differ by everything that changed between them. Here requests 2k and 2k+1 form a pair, one through
the gateway and one direct, in random order and sent next to each other, so slow drift cancels out in their difference.
The report gives the median of the differences with a bootstrap interval (`stats`). An interval that contains 0 means
that the overhead was not measurable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from aiaas.loadtest.pacer import Draw
from aiaas.loadtest.sample import Sample
from aiaas.loadtest.stats import Interval, bootstrap, median

FEWEST: Final = 20  # pairs; with fewer, the interval says little


class Overhead(msgspec.Struct, frozen=True):
    """Gateway minus direct, in seconds, over `pairs` pairs; `ttft` and `event` are None without streams.

    event      per gap between output events
    direct_*   the median of the direct requests, for comparison
    """

    pairs: int
    ttft: Interval | None
    event: Interval | None
    e2e: Interval
    direct_ttft: float | None
    direct_event: float | None
    direct_e2e: float


def overhead(samples: Iterable[Sample], draw: Draw) -> Overhead | None:
    """Return the latency that the gateway adds, or None if there are fewer than FEWEST complete pairs.

    draw   uniform numbers in [0, 1), for the intervals
    """
    pairs = _pairs(samples)
    if len(pairs) < FEWEST:
        return None
    e2e = _compare(pairs, lambda sample: sample.e2e, draw)
    if e2e is None:
        return None
    ttft = _compare(pairs, lambda sample: sample.ttft, draw)
    event = _compare(pairs, _mean_gap, draw)
    return Overhead(
        pairs=len(pairs),
        ttft=None if ttft is None else ttft[0],
        event=None if event is None else event[0],
        e2e=e2e[0],
        direct_ttft=None if ttft is None else ttft[1],
        direct_event=None if event is None else event[1],
        direct_e2e=e2e[1],
    )


def _pairs(samples: Iterable[Sample]) -> list[tuple[Sample, Sample]]:
    """Return (gateway, direct) for each pair after the warm-up in which both answers are complete."""
    halves: dict[int, Sample] = {}
    found = []
    for sample in samples:
        if not sample.ok or sample.warmup:
            continue
        other = halves.pop(sample.number // 2, None)
        if other is None:
            halves[sample.number // 2] = sample
        elif other.via != sample.via:
            found.append((sample, other) if sample.via == "gateway" else (other, sample))
    return found


def _compare(
    pairs: list[tuple[Sample, Sample]], figure: Callable[[Sample], float | None], draw: Draw
) -> tuple[Interval, float] | None:
    """Return a figure's difference and its direct median, or None if fewer than FEWEST pairs have the figure."""
    both = [(figure(gateway), figure(direct)) for gateway, direct in pairs]
    known = [(gateway, direct) for gateway, direct in both if gateway is not None and direct is not None]
    if len(known) < FEWEST:
        return None
    interval = bootstrap([gateway - direct for gateway, direct in known], median, draw)
    return interval, median([direct for _, direct in known])


def _mean_gap(sample: Sample) -> float | None:
    return sum(sample.gaps) / len(sample.gaps) / 1e6 if sample.gaps else None
