"""Merge the metrics of several workers, purely, from each worker's last report.

- Counters and histograms are summed over all workers, including those that have ended (`retire`), so a counter never
  goes backwards. Only the sums of removed keys are dropped (`forget_removed`).
- Gauges are merged over the living workers, each by its rule in GAUGES; a gauge without a rule shows its largest value.
- Infos (config digest, version) are passed on unchanged. While a new config spreads there are two for a moment.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from aiaas.proxy.telemetry.key_counters import KeySums, exposed, forget

GAUGES: Final[Mapping[str, Callable[[float, float], float]]] = MappingProxyType(
    {
        "aiaas_requests_in_flight": operator.add,
        "aiaas_requests_queued": operator.add,
        "aiaas_connections": operator.add,
        "aiaas_held_bytes": operator.add,
        "aiaas_endpoint_up": min,  # show an endpoint that is down for one worker
        "aiaas_endpoint_draining": max,
        "aiaas_endpoint_max_inflight": operator.add,  # each worker has its own bound for the same engine
        "aiaas_models_wrong": max,  # show a problem that one worker sees
        "aiaas_limit_store_up": min,
        "aiaas_reload_ok": min,  # show a file that one worker cannot use
        "aiaas_reload_last_success_timestamp_seconds": min,
        "aiaas_certificate_not_before_timestamp_seconds": min,
        "aiaas_certificate_not_after_timestamp_seconds": min,
        "aiaas_descriptors_used_ratio": max,  # each process has its own limit
        "aiaas_limit_processes": min,  # too small a count makes a worker's share too large
        "process_resident_memory_bytes": operator.add,  # pages that processes share count for each of them
        "process_virtual_memory_bytes": operator.add,
        "process_open_fds": operator.add,
        "process_max_fds": min,  # each process has its own limit; the smallest is reached first
        "process_start_time_seconds": min,  # the gateway's start; aiaas_worker_ends_total counts replaced workers
    }
)
NO_KEYS: Final[Mapping[str, KeySums]] = MappingProxyType({})
_CUMULATIVE: Final = ("counter", "histogram", "summary")


class MetricSample(msgspec.Struct, array_like=True, frozen=True):
    """One series: its name (with `_total`, `_bucket`, ...), its labels, its value."""

    name: str
    labels: dict[str, str]
    value: float


class MetricFamily(msgspec.Struct, array_like=True, frozen=True):
    """One metric; `kind` is prometheus_client's word for its type."""

    name: str
    kind: str
    help: str
    samples: list[MetricSample]


_Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Sums:
    """Adds families up. `families` returns the result, in the order in which the families were first added."""

    def __init__(self) -> None:
        self._heads: dict[str, MetricFamily] = {}
        self._values: dict[str, _Series] = {}
        self.by_key: dict[str, KeySums] = {}

    def add(self, families: Iterable[MetricFamily], by_key: Mapping[str, KeySums] = NO_KEYS) -> None:
        """Add the families and the sums by key of another worker."""
        for family in families:
            self._heads.setdefault(family.name, family)
            values = self._values.setdefault(family.name, {})
            combine = operator.add if family.kind in _CUMULATIVE else GAUGES.get(family.name, max)
            for sample in family.samples:
                key = (sample.name, tuple(sample.labels.items()))
                before = values.get(key)
                values[key] = sample.value if before is None else combine(before, sample.value)
        for key_id, used in by_key.items():
            sums = self.by_key.get(key_id)
            if sums is None:
                sums = self.by_key[key_id] = KeySums()
            sums.add(used.requests, used.input_tokens, used.output_tokens)

    def retire(self, families: Iterable[MetricFamily], by_key: Mapping[str, KeySums] = NO_KEYS) -> None:
        """Add the families of a worker that has ended, but not its gauges, and its sums by key."""
        self.add((family for family in families if family.kind in _CUMULATIVE), by_key)

    def forget_removed(self, key_ids: frozenset[str]) -> None:
        """Drop the sums of all keys except `key_ids`: the other keys were removed from the key file."""
        forget(self.by_key, key_ids)

    def families(self) -> list[MetricFamily]:
        """Return the sums."""
        return [
            MetricFamily(
                head.name, head.kind, head.help, [MetricSample(n, dict(labels), v) for (n, labels), v in values.items()]
            )
            for head, values in zip(self._heads.values(), self._values.values(), strict=True)
        ]


def snapshot(metrics: Iterable[Metric]) -> list[MetricFamily]:
    """Return the metrics of a registry as values that can be sent."""
    return [
        MetricFamily(
            metric.name,
            metric.type,
            metric.documentation,
            [MetricSample(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in metrics
    ]


def of_supervisor(answering: int, ends: int, hangs: int) -> list[MetricFamily]:
    """Return the supervisor's own metrics: how many workers serve and answer, ended unexpectedly, and hung."""

    def one(name: str, kind: str, text: str, sample: str, value: int) -> MetricFamily:
        return MetricFamily(name, kind, text, [MetricSample(sample, {}, value)])

    return [
        one("aiaas_workers", "gauge", "Workers that serve and answer", "aiaas_workers", answering),
        one("aiaas_worker_ends", "counter", "Workers that exited unexpectedly", "aiaas_worker_ends_total", ends),
        one("aiaas_worker_hangs", "counter", "Workers killed because they hung", "aiaas_worker_hangs_total", hangs),
    ]


def exposition(families: Iterable[MetricFamily], by_key: Mapping[str, KeySums] = NO_KEYS) -> bytes:
    """Return the families and the sums by key in the text exposition format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Given(families))
    return exposed(registry, by_key)


class _Given(Collector):
    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.help, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric
