"""Figures for the live view of a run: the last seconds in a few numbers, and the history as a sparkline. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from aiaas.loadtest.sample import Sample
from aiaas.loadtest.stats import percentile

RECENT_SPAN: Final = 10.0  # seconds
BARS: Final = "▁▂▃▄▅▆▇█"
HISTORY: Final = 60  # seconds of the sparkline


class Glance(msgspec.Struct, frozen=True):
    """The last RECENT_SPAN seconds; latencies in seconds, None without an answer. Counts are since the start."""

    answers_per_second: float
    tokens_per_second: float
    ttft_p50: float | None
    ttft_p99: float | None
    e2e_p50: float | None
    e2e_p99: float | None
    answered: int
    errors: int
    rate_limited: int
    sparkline: str


class Recent:
    """Keeps the last samples and the number of answers in each second of the run."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._by_second: dict[int, int] = {}
        self._answered = self._errors = self._limited = 0

    def add(self, sample: Sample) -> None:
        """Add the sample of a request that ended."""
        if sample.aborted:
            return
        if sample.error:
            self._errors += sample.status != 429
            self._limited += sample.status == 429
            return
        self._answered += 1
        self._samples.append(sample)
        second = int(sample.end)
        self._by_second[second] = self._by_second.get(second, 0) + 1

    def glance(self, now: float) -> Glance:
        """Return the numbers at `now` (seconds since the run's start) and forget samples older than RECENT_SPAN."""
        while self._samples and self._samples[0].end < now - RECENT_SPAN:
            self._samples.popleft()
        for second in [second for second in self._by_second if second < now - HISTORY - 1]:
            del self._by_second[second]
        span = max(min(now, RECENT_SPAN), 1e-9)
        firsts = sorted(sample.ttft for sample in self._samples if sample.ttft is not None)
        wholes = sorted(sample.e2e for sample in self._samples)
        return Glance(
            answers_per_second=len(self._samples) / span,
            tokens_per_second=sum(sample.output_tokens for sample in self._samples) / span,
            ttft_p50=percentile(firsts, 50) if firsts else None,
            ttft_p99=percentile(firsts, 99) if firsts else None,
            e2e_p50=percentile(wholes, 50) if wholes else None,
            e2e_p99=percentile(wholes, 99) if wholes else None,
            answered=self._answered,
            errors=self._errors,
            rate_limited=self._limited,
            sparkline=sparkline([self._by_second.get(second, 0) for second in self._seconds(now)]),
        )

    def _seconds(self, now: float) -> range:
        """Return the complete seconds to draw, without the current one."""
        return range(max(int(now) - HISTORY, 0), int(now))


def sparkline(values: Sequence[float]) -> str:
    """Draw one bar for each value, scaled from 0 to the largest."""
    top = max(values, default=0)
    return "".join(BARS[round(value / top * (len(BARS) - 1))] if top else BARS[0] for value in values)
