"""The counts of the metrics since the start, in the form of the admin endpoint. Pure.

It reads metric families, those of one gateway or the sums of all its workers, so the figures are those of `/metrics`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from aiaas.proxy.admin.model import CachedView, ModelView, ProcessView, TotalsView


class _Sample(Protocol):
    """One series of a family."""

    @property
    def name(self) -> str:
        """The name, with `_total`, `_bucket`, ..."""

    @property
    def labels(self) -> dict[str, str]:
        """The labels."""

    @property
    def value(self) -> float:
        """The value."""


class _Family(Protocol):
    """One metric."""

    @property
    def name(self) -> str:
        """The name."""

    @property
    def samples(self) -> Sequence[_Sample]:
        """The series."""


_Buckets = list[tuple[float, float]]


class Figures:
    """The figures of some families.

    turns, cached  by backend
    """

    def __init__(self, families: Iterable[_Family]) -> None:
        self.totals = TotalsView()
        self.process = ProcessView()
        self.turns: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self.cached: defaultdict[str, CachedView] = defaultdict(CachedView)
        self._models: dict[str, ModelView] = {}
        self._ttft: defaultdict[str, _Buckets] = defaultdict(list)
        self._lag: _Buckets = []
        for family in families:
            for sample in family.samples:
                self._add(sample.name, sample.labels, sample.value)
        self.process.loop_lag_p99 = quantile(0.99, self._lag)

    @property
    def models(self) -> list[ModelView]:
        """The models, those with the most requests first."""
        for name, model in self._models.items():
            buckets = self._ttft[name]
            model.ttft_p50, model.ttft_p95 = (quantile(part, buckets) for part in (0.5, 0.95))
            model.ttft_buckets = [(None if math.isinf(bound) else bound, count) for bound, count in buckets]
        return sorted(self._models.values(), key=lambda model: -model.requests)

    def _add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        match name:
            case "inference_requests_total":
                self._count_requests(labels, int(value))
            case "tokens_processed_total":
                field = f"{labels['type']}_tokens"
                for counted in (self.totals, self._model(labels["model"])):
                    setattr(counted, field, getattr(counted, field) + int(value))
            case "aiaas_refused_total":
                self.totals.refused += int(value)
            case "aiaas_session_turns_total":
                self.turns[labels["backend"]][labels["result"]] = int(value)
            case "aiaas_prefix_cache_tokens_total":
                setattr(self.cached[labels["backend"]], labels["result"], int(value))
            case "aiaas_time_to_first_token_seconds_bucket":
                self._ttft[labels["model"]].append((float(labels["le"]), value))
            case "aiaas_event_loop_lag_seconds_bucket":
                self._lag.append((float(labels["le"]), value))
            case "process_resident_memory_bytes":
                self.process.memory = int(value)
            case "process_open_fds":
                self.process.descriptors = int(value)
            case "process_max_fds":
                self.process.descriptors_max = int(value)
            case "process_cpu_seconds_total":
                self.process.cpu_seconds = value

    def _count_requests(self, labels: Mapping[str, str], number: int) -> None:
        for counted in (self.totals, self._model(labels["model"])):
            counted.requests += number
            if labels["status"] == "error":
                counted.errors += number

    def _model(self, name: str) -> ModelView:
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelView(name)
        return found


def quantile(part: float, buckets: _Buckets) -> float | None:
    """The value that `part` of all observations do not exceed, between the bounds as Prometheus interpolates; None
    without observations. Above the last bound it is that bound."""
    ordered = sorted(buckets)
    if not ordered or not ordered[-1][1]:
        return None
    wanted, low, below = part * ordered[-1][1], 0.0, 0.0
    for high, count in ordered:
        if count >= wanted:
            return low if math.isinf(high) else low + (high - low) * (wanted - below) / (count - below)
        low, below = high, count
    return low
