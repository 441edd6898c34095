"""Cheap histograms for every request and every event: an observation costs one addition.

prometheus_client's `observe` takes a lock and walks the buckets, 1.3 us for each of 10,000 events a second. Here only
the event loop observes, so a list of integers is enough; a scrape sums up the buckets.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry


class Tally:
    """One series. `counts` has an entry for each bound, and one for values above all bounds.

    at         the bucket of the last value, which is mostly that of the next one, too
    low, high  its bounds: it counts values above `low`, up to and including `high`, as in Prometheus
    """

    __slots__ = ("at", "bounds", "counts", "high", "low", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.find(0.0)

    def observe(self, value: float) -> None:
        """Count `value`."""
        if not self.low < value <= self.high:
            self.find(value)
        self.counts[self.at] += 1
        self.total += value

    def find(self, value: float) -> None:
        """Go to the bucket of `value`."""
        self.at = at = bisect_left(self.bounds, value)
        self.low = self.bounds[at - 1] if at else -math.inf
        self.high = self.bounds[at] if at < len(self.bounds) else math.inf


class Tallies(Collector):
    """A metric: a Tally for each combination of label values, created at first use.

    registry  None: the caller collects it
    """

    def __init__(
        self, name: str, text: str, labels: list[str], bounds: tuple[float, ...], registry: CollectorRegistry | None
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Tally] = {}
        if registry is not None:
            registry.register(self)

    def labels(self, *values: str) -> Tally:
        """Return the series of these label values, which are in the order of the metric's labels."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Tally(self._bounds)
        return series

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric's current values; prometheus_client calls this."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, series in list(self._series.items()):  # a scrape runs in a thread, while the loop goes on
            family.add_metric(values, _cumulative(self._bounds, list(series.counts)), series.total)
        yield family


def _cumulative(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    """Return the buckets in cumulative form, each counting all values up to its bound."""
    names = [*(repr(float(bound)) for bound in bounds), "+Inf"]
    below = 0
    buckets: list[tuple[str, float]] = []
    for name, count in zip(names, counts, strict=True):
        below += count
        buckets.append((name, below))
    return buckets
