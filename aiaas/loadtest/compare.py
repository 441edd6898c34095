"""The gateway's own overhead: requests through it and straight to the engine, in turns, compared pair by pair. Pure.

Two runs one after the other differ by everything that changed meanwhile. Here requests 2k and 2k+1 form a pair, one
each way in random order, sent next to each other; the difference of a pair is free of whatever slow drift both met.
Reported is the median of the differences with a bootstrap interval (`stats`). An interval that holds 0 says that no
overhead was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from aiaas.loadtest.pacer import Draw
from aiaas.loadtest.sample import Sample
from aiaas.loadtest.stats import Interval, bootstrap, median

FEWEST: Final = 20  # pairs; the interval of fewer says little


class Overhead(msgspec.Struct, frozen=True):
    """Gateway minus direct, seconds, over so many pairs; None without streams.

    event      per gap between output events
    direct_*   the median of the direct requests, to compare with
    """

    pairs: int
    ttft: Interval | None
    event: Interval | None
    e2e: Interval
    direct_ttft: float | None
    direct_event: float | None
    direct_e2e: float


def overhead(samples: Iterable[Sample], draw: Draw) -> Overhead | None:
    """What the gateway adds; None for fewer than FEWEST whole pairs.

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
    """(gateway, direct) of each pair of whole answers after the warm-up."""
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
    """The difference of a figure, and the direct one's median; None where fewer than FEWEST pairs have it."""
    both = [(figure(gateway), figure(direct)) for gateway, direct in pairs]
    known = [(gateway, direct) for gateway, direct in both if gateway is not None and direct is not None]
    if len(known) < FEWEST:
        return None
    interval = bootstrap([gateway - direct for gateway, direct in known], median, draw)
    return interval, median([direct for _, direct in known])


def _mean_gap(sample: Sample) -> float | None:
    return sum(sample.gaps) / len(sample.gaps) / 1e6 if sample.gaps else None
