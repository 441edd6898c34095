"""The metrics of several workers as one: pure, over what each last said.

- Counters and histograms are summed, also over the workers that have ended: what those last said is kept (`retire`),
  so a counter never goes backwards. Only the series of keys that were removed go (`forget_removed`).
- Gauges are of the workers that live: each by its rule in GAUGES. One that has no rule shows its greatest value.
- Infos (which config, which version) stand as they are. While a new config spreads there are two for a moment.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from aiaas.proxy.telemetry.record import NO_KEY

GAUGES: Final[Mapping[str, Callable[[float, float], float]]] = MappingProxyType(
    {
        "aiaas_requests_in_flight": operator.add,
        "aiaas_requests_queued": operator.add,
        "aiaas_connections": operator.add,
        "aiaas_held_bytes": operator.add,
        "aiaas_endpoint_up": min,  # down for one worker is worth a look
        "aiaas_models_wrong": max,  # likewise
        "aiaas_limit_store_up": min,
        "aiaas_limit_processes": min,  # too small a count makes too large a share
        "process_resident_memory_bytes": operator.add,  # pages that processes share count for each of them
        "process_virtual_memory_bytes": operator.add,
        "process_open_fds": operator.add,
        "process_max_fds": min,  # each has its own; it is the smallest that runs out first
        "process_start_time_seconds": min,  # the gateway's: that a worker was replaced, aiaas_worker_ends_total says
    }
)
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
    """Adds families up. `families` is the result, in the order in which they were first seen."""

    def __init__(self) -> None:
        self._heads: dict[str, MetricFamily] = {}
        self._values: dict[str, _Series] = {}

    def add(self, families: Iterable[MetricFamily]) -> None:
        """Another worker's."""
        for family in families:
            self._heads.setdefault(family.name, family)
            values = self._values.setdefault(family.name, {})
            combine = operator.add if family.kind in _CUMULATIVE else GAUGES.get(family.name, max)
            for sample in family.samples:
                key = (sample.name, tuple(sample.labels.items()))
                before = values.get(key)
                values[key] = sample.value if before is None else combine(before, sample.value)

    def retire(self, families: Iterable[MetricFamily]) -> None:
        """Those of a worker that has ended: only what counts, and not how things stood."""
        self.add(family for family in families if family.kind in _CUMULATIVE)

    def forget_removed(self, key_ids: frozenset[str]) -> None:
        """Drop the series of all keys but these: a key that was removed from the key file has none."""
        kept = key_ids | {NO_KEY}
        for values in self._values.values():
            gone = [series for series in values if any(n == "key_id" and v not in kept for n, v in series[1])]
            for series in gone:
                del values[series]

    def families(self) -> list[MetricFamily]:
        """What has been added."""
        return [
            MetricFamily(
                head.name, head.kind, head.help, [MetricSample(n, dict(labels), v) for (n, labels), v in values.items()]
            )
            for head, values in zip(self._heads.values(), self._values.values(), strict=True)
        ]


def snapshot(metrics: Iterable[Metric]) -> list[MetricFamily]:
    """What a registry collects, as values that can be sent."""
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
    """What only the supervisor knows: how many workers serve and answer, how many have ended unasked, how many hung."""

    def one(name: str, kind: str, text: str, sample: str, value: int) -> MetricFamily:
        return MetricFamily(name, kind, text, [MetricSample(sample, {}, value)])

    return [
        one("aiaas_workers", "gauge", "Workers that serve and answer", "aiaas_workers", answering),
        one("aiaas_worker_ends", "counter", "Workers that exited unexpectedly", "aiaas_worker_ends_total", ends),
        one("aiaas_worker_hangs", "counter", "Workers killed because they hung", "aiaas_worker_hangs_total", hangs),
    ]


def exposition(families: Iterable[MetricFamily]) -> bytes:
    """The text exposition format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Given(families))
    return generate_latest(registry)


class _Given(Collector):
    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.help, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric
