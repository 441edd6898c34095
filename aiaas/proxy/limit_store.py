"""Create the shared store of limits from the Plan, log when it fails and recovers, and expose its metrics."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aiaas.errors import EnvironmentFault
from aiaas.limits.connection import StoreTlsError, tls_context
from aiaas.limits.fallback import FallbackStore
from aiaas.limits.redis import RedisStore
from aiaas.limits.redis_url import RedisUrl
from aiaas.plan.model import LimitsPlan
from aiaas.proxy.tasks import Keeper
from aiaas.proxy.telemetry.histogram import Tallies
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.waiting import first_of

# Seconds that the store gets to connect before the gateway serves requests; in the same network it needs milliseconds.
START: Final = 1.0
# Seconds of an answer: in the same network it takes 0.2 ms, and `rate_limit.store_timeout` is 0.25 s by default.
STORE_BUCKETS: Final = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


def shared_store(limits: LimitsPlan, log: JsonLog) -> FallbackStore | None:
    """Return the store that a Plan names, not yet connected; None for `memory`.

    Raises EnvironmentFault if the store's TLS files cannot be used.
    """
    url = limits.store_url
    if url is None:
        return None
    tls = store_tls(url)

    def changed(up: bool, reason: str) -> None:
        if up:
            log.event("info", "limit_store_up", store=url.url)
        else:
            log.event("warning", "limit_store_away", store=url.url, reason=reason, meanwhile=limits.on_store_failure)

    shared = RedisStore(url, tls, changed, patience=limits.store_timeout)
    return FallbackStore(shared, limits.on_store_failure, limits.processes)


def store_tls(url: RedisUrl) -> ssl.SSLContext | None:
    """Return the TLS context for the store; None without TLS. Raises EnvironmentFault if a file cannot be used."""
    try:
        return tls_context(url)
    except StoreTlsError as error:
        raise EnvironmentFault(f"rate_limit.store: {error}") from error


async def begin_shared_store(store: FallbackStore, keeper: Keeper, metrics: Metrics, stack: AsyncExitStack) -> None:
    """Connect to the store, and stay connected until `stack` ends. Wait at most START seconds: the gateway also serves
    without the store."""
    metrics.register(StoreMetrics(store))
    stack.push_async_callback(store.close)
    keeper.keep(store.shared.run, "shared store", stack)
    await first_of(store.shared.tried.wait(), timeout=START)


class StoreMetrics(Collector):
    """The counts of a shared store, read at each scrape: counting costs a request one addition."""

    def __init__(self, store: FallbackStore) -> None:
        self._store = store
        self._answers = Tallies(
            "aiaas_limit_store_seconds", "How long the shared store took to answer", [], STORE_BUCKETS, None
        )
        store.shared.on_answer = self._answers.labels().observe

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; docs/metrics.md says what they mean."""
        store = self._store
        yield GaugeMetricFamily(
            "aiaas_limit_store_up", "Whether the shared store of limits is reachable", value=float(store.shared.up)
        )
        yield CounterMetricFamily(
            "aiaas_limit_store_failures",
            "Calls to the shared store, and attempts to connect to it, that failed",
            value=store.shared.failures,
        )
        yield GaugeMetricFamily(
            "aiaas_limit_processes",
            "Gateway processes that share the limits, as last counted in the shared store",
            value=float(store.processes),
        )
        yield CounterMetricFamily(
            "aiaas_limit_settlements_lost",
            "Settlements that did not reach the shared store, or may not have reached it",
            value=store.shared.settlements_lost,
        )
        yield from self._answers.collect()
        decisions = CounterMetricFamily(
            "aiaas_limit_decisions", "Limit decisions by the store that made them", labels=["by"]
        )
        for by, number in store.decisions.items():
            decisions.add_metric([by], number)
        yield decisions
