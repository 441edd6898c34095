"""The metrics: the plan's three by name, aiaas's own, and the process'.

A registry of its own for each gateway (no module state). Requests are tallied in plain integers, and put into
prometheus_client's counters at each scrape: seven increments cost 9 us, the tally one. Label values are
bounded: a model that no Plan names counts as `unknown`.
"""

from __future__ import annotations

import threading
from asyncio import get_running_loop
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from aiaas import __version__
from aiaas.openai import paths
from aiaas.plan.model import Plan
from aiaas.proxy.telemetry.cache_counters import CacheCounters
from aiaas.proxy.telemetry.counters import (
    Aborts,
    Accepted,
    Availability,
    CertificateDates,
    Process,
    ReloadCounters,
    Resumes,
    What,
)
from aiaas.proxy.telemetry.endpoint_gauges import EndpointGauges
from aiaas.proxy.telemetry.histogram import Tallies
from aiaas.proxy.telemetry.key_counters import KeyCounters, KeySums, exposed
from aiaas.proxy.telemetry.record import Record

UNKNOWN = "unknown"
# The usual ones, and beyond: a timeout of 120 s would all land in +Inf.
LATENCY_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120)
# A healthy loop is late by less than a millisecond (uvloop's timers count in those); a client notices a quarter second.
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
QUEUE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
GAP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
OVERHEAD_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
# The reasons of a further attempt (`upstream/attempt.py`), and of a connection turned away (`client/incidents.py`).
RETRY_REASONS = ("connect", "stale", "busy", "balancer", "engine", "lacks_path", "lost")
TURNED_AWAY_REASONS = ("evicted", "address", "full", "descriptors")
# Models whose series begin at 0 with the Plan that names them; further models' begin with their first request.
MODELS_AT_ZERO = 100
PATHS_AT_ZERO = frozenset({paths.CHAT, paths.COMPLETIONS, paths.RESPONSES, paths.MESSAGES})
# The `limit` label for each error code of a limit.
LIMIT_OF = {
    "rate_limit_exceeded": "requests",
    "tokens_limit_exceeded": "tokens",
    "concurrency_limit_exceeded": "concurrency",
    "quota_exceeded": "quota",
    "user_rate_limit_exceeded": "user_requests",
    "user_tokens_limit_exceeded": "user_tokens",
    "user_concurrency_limit_exceeded": "user_concurrency",
    "user_quota_exceeded": "user_quota",
    "too_many_wrong_keys": "wrong_keys",
}


class Timings:
    """The histograms that requests and events are measured with."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.latency = Tallies(
            "inference_latency_seconds",
            "From the request's arrival to the end of its answer",
            ["model", "endpoint"],
            LATENCY_BUCKETS,
            registry,
        )
        self.ttft = Tallies(
            "aiaas_time_to_first_token_seconds",
            "From the request's arrival to the first text, reasoning or part of a tool call of its stream",
            ["model"],
            TTFT_BUCKETS,
            registry,
        )
        self.gaps = Tallies(
            "aiaas_event_gap_seconds", "Time between two events of a stream", ["model"], GAP_BUCKETS, registry
        )
        self.overhead = Tallies(
            "aiaas_overhead_seconds",
            "From the request's arrival until it is sent upstream, without the waits for its body and an endpoint",
            ["model"],
            OVERHEAD_BUCKETS,
            registry,
        )
        self.queue_wait = Histogram(
            "aiaas_queue_wait_seconds",
            "How long requests waited in the queue for a slot, those that had to",
            ["class"],
            buckets=QUEUE_BUCKETS,
            registry=registry,
        )


class _Series:
    """The histograms of one (model, endpoint)."""

    __slots__ = ("latency", "overhead", "ttft")

    def __init__(self, timings: Timings, model: str, endpoint: str) -> None:
        self.latency = timings.latency.labels(model, endpoint)
        self.ttft = timings.ttft.labels(model)
        self.overhead = timings.overhead.labels(model)


@dataclass(slots=True)
class _Tally:
    """Requests that ended alike since the last scrape: how many, and their LLM tokens."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated_input_tokens: int = 0
    estimated_output_tokens: int = 0

    def add(self, other: _Tally) -> None:
        """Count those of `other` as well."""
        self.requests += other.requests
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.estimated_input_tokens += other.estimated_input_tokens
        self.estimated_output_tokens += other.estimated_output_tokens


@dataclass(slots=True, kw_only=True)
class _Ended(_Tally):
    """The tally of one kind of end, and the histograms of its requests."""

    series: _Series


class UsageCounters:
    """How it goes with the store of usage."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._batches = Counter(
            "aiaas_usage_batches", "Usage batches written to the store, by result", ["result"], registry=registry
        )
        self._lost = Counter("aiaas_usage_lost_requests", "Requests missing from the usage store", registry=registry)
        for result in ("success", "failure"):
            self._batches.labels(result)

    def written(self, ok: bool) -> None:
        """Count a batch that was written, or could not be."""
        self._batches.labels("success" if ok else "failure").inc()

    def lost(self, requests: int) -> None:
        """Count requests that the store will never know of."""
        self._lost.inc(requests)


# By model, path, key id, status and error code.
_Ends = dict[tuple[str, str, str | None, int, str | None], _Ended]
T = TypeVar("T")


class Metrics:
    """Everything a gateway counts. `expose()` is what `/metrics` answers."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # half of the series, and of no use to Prometheus
        registry = self._registry = CollectorRegistry()
        self.timings = Timings(registry)
        self.requests = Counter(
            "inference_requests", "Inference requests by outcome", ["model", "endpoint", "status"], registry=registry
        )
        self.tokens = Counter(
            "tokens_processed",
            "LLM tokens settled, as reported or as estimated",
            ["model", "type"],
            registry=registry,
        )
        self._estimated = Counter(
            "aiaas_tokens_estimated", "LLM tokens that were estimated", ["model", "type"], registry=registry
        )
        self._responses = Counter(
            "aiaas_responses", "Answers by HTTP status and error code", ["code", "reason"], registry=registry
        )
        self._in_flight = Gauge("aiaas_requests_in_flight", "Inference requests in progress", registry=registry)
        self._queued = Gauge("aiaas_requests_queued", "Requests that wait for an endpoint", registry=registry)
        self._refused = Counter("aiaas_refused", "Requests refused by a limit", ["limit"], registry=registry)
        self._retries = Counter("aiaas_retries", "Retries by reason", ["reason"], registry=registry)
        self.resumes = Resumes(registry)
        self._aborts = Aborts(registry)
        self._availability = Availability(registry)
        self._endpoints = EndpointGauges(registry)
        self._resolutions = Counter("aiaas_dns_resolutions", "DNS lookups", ["backend", "result"], registry=registry)
        self.reloads = ReloadCounters(registry)
        self.certificate = CertificateDates()
        registry.register(self.certificate)
        self.keys = KeyCounters()
        self.loop_lag = Histogram(
            "aiaas_event_loop_lag_seconds",
            "How late the event loop runs its timers",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.usage = UsageCounters(registry)
        self._caches = CacheCounters()
        registry.register(self._caches)
        self._connections = Gauge("aiaas_connections", "Open client connections", registry=registry)
        self._held = Gauge("aiaas_held_bytes", "Bytes in use by connections and bodies", registry=registry)
        self._turned_away = Counter(
            "aiaas_connections_turned_away",
            "Connections refused, or closed to make room",
            ["reason"],
            registry=registry,
        )
        self._config = Info("aiaas_config", "Digest of the config in force", registry=registry)
        Info("aiaas_build", "Version of the running gateway", registry=registry).info({"version": __version__})
        registry.register(Process())
        self._tallies: _Ends = {}
        self._aside = threading.Lock()  # one scrape at a time
        _begin(self._refused, LIMIT_OF.values())
        _begin(self._retries, RETRY_REASONS)
        _begin(self._turned_away, TURNED_AWAY_REASONS)

    def watch_in_flight(self, number: Callable[[], int]) -> None:
        """Ask `number` at each scrape."""
        self._in_flight.set_function(number)

    def watch_door(self, connections: Callable[[], int], held: Callable[[], int], accepted: Callable[[], int]) -> None:
        """Likewise, for open connections, the bytes that they and their requests hold, and all that were accepted."""
        self._connections.set_function(connections)
        self._held.set_function(held)
        self._registry.register(Accepted(accepted))

    def turned_away(self, reason: str) -> None:
        """Count a connection that was refused, or ended for others."""
        self._turned_away.labels(reason).inc()

    def register(self, collector: Collector) -> None:
        """Have `collector` asked at each scrape as well."""
        self._registry.register(collector)

    def watch_queued(self, number: Callable[[], int]) -> None:
        """Likewise, for requests that wait for an endpoint."""
        self._queued.set_function(number)

    def finished(self, record: Record, duration: float) -> None:
        """Count a finished inference request."""
        model = record.model or UNKNOWN
        end = (model, record.path, record.key_id, record.status, record.error_code)
        tally = self._tallies.get(end)
        if tally is None:
            tally = self._tallies[end] = _Ended(series=_Series(self.timings, model, record.path))
        series = tally.series
        series.latency.observe(duration)
        if record.ttft is not None:
            series.ttft.observe(record.ttft)
        if record.overhead is not None:
            series.overhead.observe(record.overhead)
        tally.requests += 1
        if record.input_tokens is not None:
            tally.input_tokens += record.input_tokens
            tally.output_tokens += record.output_tokens or 0
            if record.estimated:
                tally.estimated_input_tokens += record.input_tokens
                tally.estimated_output_tokens += record.output_tokens or 0
        if record.session_turn is not None or record.cached_tokens is not None:
            self._caches.finished(record)
        if record.ended_by == "client":
            self._aborts.count(record)

    def _take(self) -> _Ends:
        """The tallies since the last time. On the event loop, which alone adds to them."""
        tallies, self._tallies = self._tallies, {}
        return tallies

    def _fold(self, tallies: _Ends) -> None:
        """Put tallies into the counters that they belong to. So a request costs one addition and not seven."""
        ends: defaultdict[tuple[str, str, int, str | None], _Tally] = defaultdict(_Tally)
        for (model, path, key_id, status, reason), tally in tallies.items():
            ends[model, path, status, reason].add(tally)
            if key_id is not None:
                self.keys.count(key_id, tally.requests, tally.input_tokens, tally.output_tokens)
        for (model, path, status, reason), total in ends.items():
            outcome = "success" if status < 400 and reason is None else "error"
            other = "error" if outcome == "success" else "success"
            self.requests.labels(model, path, outcome).inc(total.requests)
            self.requests.labels(model, path, other).inc(0)  # a series that begins at 0 has a first increase
            self.tokens.labels(model, "input").inc(total.input_tokens)
            self.tokens.labels(model, "output").inc(total.output_tokens)
            self._estimated.labels(model, "input").inc(total.estimated_input_tokens)
            self._estimated.labels(model, "output").inc(total.estimated_output_tokens)
            self._responses.labels(str(status), reason or "").inc(total.requests)
            self._availability.count(status, reason, total.requests)
        self.keys.forget_removed()

    def responded(self, status: int, reason: str | None) -> None:
        """Count a response to anything but an inference request."""
        self._responses.labels(str(status), reason or "").inc()

    def refused(self, code: str) -> None:
        """Count a refusal by a limit, whose error code is `code`."""
        self._refused.labels(LIMIT_OF[code]).inc()

    def retries(self, reason: str) -> None:
        """Count a further attempt."""
        self._retries.labels(reason).inc()

    def endpoint_up(self, backend: str, endpoint: str, up: bool) -> None:
        """Show an endpoint's health."""
        self._endpoints.up.labels(backend, endpoint).set(1 if up else 0)
        self._endpoints.draining.remove(backend, endpoint)

    def endpoint_drains(self, backend: str, endpoint: str) -> None:
        """Show that an endpoint drains; its health has no series meanwhile, so that it raises no alert."""
        self._endpoints.draining.labels(backend, endpoint).set(1)
        self._endpoints.up.remove(backend, endpoint)

    def endpoint_gone(self, backend: str, endpoint: str) -> None:
        """An endpoint that no Plan names any more has no series."""
        self._endpoints.remove(backend, endpoint)

    def endpoint_bound(self, backend: str, endpoint: str, places: int | None) -> None:
        """Show how many requests an endpoint may have at once; no series where it has no bound."""
        if places is None:
            self._endpoints.bound.remove(backend, endpoint)
        else:
            self._endpoints.bound.labels(backend, endpoint).set(places)

    def models_wrong(self, backend: str, endpoint: str, names: int) -> None:
        """Show how many names of the config an endpoint does not serve as the config says."""
        self._endpoints.models_wrong.labels(backend, endpoint).set(names)

    def resolved(self, backend: str, ok: bool) -> None:
        """Count an answer, or its failure, to the question for a backend's name."""
        self._resolutions.labels(backend, "success").inc(ok)
        self._resolutions.labels(backend, "failure").inc(not ok)

    def reloaded(self, what: What, ok: bool) -> None:
        """Count a reload."""
        self.reloads.count(what, ok)

    def config(self, digest: str) -> None:
        """Show which config is in force."""
        self._config.info({"digest": digest})

    def follow(self, plan: Plan) -> None:
        """Show the config in force, and begin the series of its models at 0."""
        self.config(plan.digest)
        for path in PATHS_AT_ZERO & plan.routes.keys():
            for model in (UNKNOWN, *islice(plan.routes[path], MODELS_AT_ZERO)):
                self.timings.ttft.labels(model)
                for outcome in ("success", "error"):
                    self.requests.labels(model, path, outcome)

        self.resumes.follow(plan, MODELS_AT_ZERO)

    def collect(self) -> Iterable[Metric]:
        """Every series as it is now, but for those by key: `keys.sums`."""
        self._fold(self._take())
        return self._registry.collect()

    def expose(self) -> bytes:
        """The text exposition format 0.0.4."""
        self._fold(self._take())
        return exposed(self._registry, self.keys.sums)

    async def aside(self, make: Callable[[CollectorRegistry, Mapping[str, KeySums]], T]) -> T:
        """Call `make` with the registry and the sums by key, in a thread: 50,000 keys take too long on the loop."""
        tallies = self._take()

        def work() -> T:
            with self._aside:
                self._fold(tallies)
                return make(self._registry, self.keys.sums)

        return await get_running_loop().run_in_executor(None, work)


def _begin(counter: Counter, values: Iterable[str]) -> None:
    """Begin the series of all values of a counter's one label at 0."""
    for value in values:
        counter.labels(value)
