"""How many prompt tokens the engines found in their caches, and whether sessions stay where theirs are.

The sums are plain integers, which a scrape reads: a counter of prometheus_client costs ten times as much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from aiaas.proxy.telemetry.record import Record


class CacheCounters(Collector):
    """By backend: the turns of sessions, and the prompt tokens of answers that say how many of them were cached."""

    def __init__(self) -> None:
        self._turns: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()

    def finished(self, record: Record) -> None:
        """Count a request that has ended."""
        backend, turn, cached, prompt = record.backend, record.session_turn, record.cached_tokens, record.input_tokens
        if backend is None:
            return
        if turn is not None:
            self._turns[backend, turn] += 1
        if cached is not None and prompt is not None:
            self._tokens[backend, "hit"] += min(cached, prompt)
            self._tokens[backend, "miss"] += max(0, prompt - cached)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """As in Collector."""
        turns = CounterMetricFamily(
            "aiaas_session_turns",
            "Requests of sessions: whether each went to the endpoint of the one before, or why not",
            labels=["backend", "result"],
        )
        tokens = CounterMetricFamily(
            "aiaas_prefix_cache_tokens",
            "Prompt tokens that were in the engine's prefix cache, or were not, where answers report it",
            labels=["backend", "result"],
        )
        for family, sums in ((turns, self._turns), (tokens, self._tokens)):
            for labels, number in sorted(sums.copy().items()):
                family.add_metric(labels, number)
            yield family
