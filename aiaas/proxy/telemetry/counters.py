"""Counters and gauges that alerts read. Every series exists from the start, at 0.

Prometheus sees an increase only between two scrapes. A counter that appears with its first event, at 1, has not
increased: the first broken answer of a new pod, and the 47 errors before its first scrape, would fire no alert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from aiaas.plan.model import Plan
from aiaas.proxy.telemetry.record import Phase, Record, Resumption

What = Literal["config", "keys", "tls", "authorities"]
# The phases in which the engine works for a request.
WORKING: Final = ("waiting", "streaming")
# The error codes of an answer that its client ended; not a fault of the service.
CLIENTS_DOING: Final = frozenset({"client_left", "client_too_slow"})
# The error codes of an answer that the backend broke off, or no longer sent.
BACKENDS: Final = frozenset({"upstream_error", "upstream_timeout"})

RESUME_OUTCOMES: Final = ("resumed", "finished", "not_resumable", "nobody", "differs", "died_again")
RESUME_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30)


class Availability:
    """Requests that were answered in whole, and those that the service failed; made from the tallies of a scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "aiaas_availability_requests",
            "Requests by whether the service answered them in whole",
            ["result"],
            registry=registry,
        )
        self._broken = Counter(
            "aiaas_answers_broken",
            "Answers that broke off after they had begun, by who broke them off",
            ["by"],
            registry=registry,
        )
        for result in ("good", "bad"):
            self._requests.labels(result)
        for by in ("backend", "gateway"):
            self._broken.labels(by)

    def count(self, status: int, reason: str | None, requests: int) -> None:
        """Count requests that ended alike. A client's error, or a client that left, says nothing about the service."""
        if reason in CLIENTS_DOING or 400 <= status < 500:
            return
        broken = status < 400 and reason is not None
        if broken:
            self._broken.labels("backend" if reason in BACKENDS else "gateway").inc(requests)
        self._requests.labels("bad" if broken or status >= 500 else "good").inc(requests)


class Aborts:
    """Requests whose client left, and the LLM tokens that the engine spent on them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter("aiaas_aborts", "Requests whose client left, by phase", ["phase"], registry=registry)
        self._tokens = Counter(
            "aiaas_aborted_tokens",
            "LLM tokens of requests whose client left, by phase",
            ["phase", "type"],
            registry=registry,
        )
        for phase in get_args(Phase):
            self._requests.labels(phase)
        for phase in WORKING:
            for kind in ("input", "output"):
                self._tokens.labels(phase, kind)

    def count(self, record: Record) -> None:
        """Count a request whose client left."""
        self._requests.labels(record.phase).inc()
        if record.phase in WORKING and record.input_tokens is not None:
            self._tokens.labels(record.phase, "input").inc(record.input_tokens)
            self._tokens.labels(record.phase, "output").inc(record.output_tokens or 0)


class Resumes:
    """Streams that broke off although their backend has `resume`, by what became of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._streams = Counter(
            "aiaas_streams_resumed", "Streams that broke off, by outcome", ["model", "outcome"], registry=registry
        )
        self._gaps = Histogram(
            "aiaas_resume_gap_seconds",
            "From the last event before a stream broke off to the first one of its rest",
            ["model"],
            registry=registry,
            buckets=RESUME_BUCKETS,
        )

    def follow(self, plan: Plan, most: int) -> None:
        """Begin the series of the models of backends with `resume` at 0, of `most` of them."""
        resuming = (model for backend in plan.backends if backend.resume != "off" for model in backend.served_models)
        for model in islice(resuming, most):
            for outcome in RESUME_OUTCOMES:
                self._streams.labels(model, outcome)

    def count(self, model: str, resumption: Resumption) -> None:
        """Count such a stream; one whose client left in the meantime is an abort only."""
        if resumption.outcome:
            self._streams.labels(model, resumption.outcome).inc()
        if resumption.gap is not None:
            self._gaps.labels(model).observe(resumption.gap)


class ReloadCounters:
    """Reloads of the files that a gateway follows, and whether the last one succeeded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reloads = Counter("aiaas_reloads", "Reloads by what and result", ["what", "result"], registry=registry)
        self._ok = Gauge("aiaas_reload_ok", "Whether the last reload succeeded", ["what"], registry=registry)
        self._last = Gauge(
            "aiaas_reload_last_success_timestamp_seconds",
            "When a file was last put in force, in seconds since 1970",
            ["what"],
            registry=registry,
        )
        for what in get_args(What):
            for result in ("success", "failure"):
                self._reloads.labels(what, result)

    def count(self, what: What, ok: bool) -> None:
        """Count a reload."""
        self._reloads.labels(what, "success" if ok else "failure").inc()
        self.show(what, ok)

    def show(self, what: What, ok: bool) -> None:
        """Show whether the file on disk is in force, without counting a reload."""
        self._ok.labels(what).set(1 if ok else 0)
        if ok:
            self._last.labels(what).set_to_current_time()

    def forget(self, what: What) -> None:
        """The gateway no longer follows this file."""
        self._ok.remove(what)
        self._last.remove(what)


class CertificateDates(Collector):
    """When the certificate in force begins and ends to be valid; no series without TLS."""

    def __init__(self) -> None:
        self._dates: tuple[float, float] | None = None

    def show(self, begins: float, ends: float) -> None:
        """Show the dates of a certificate, in POSIX seconds."""
        self._dates = (begins, ends)

    def collect(self) -> Iterator[Metric]:
        """As in Collector."""
        if self._dates is None:
            return
        names = ("aiaas_certificate_not_before_timestamp_seconds", "aiaas_certificate_not_after_timestamp_seconds")
        for name, word, date in zip(names, ("begins", "ends"), self._dates, strict=True):
            text = f"When the validity of the certificate in force {word}, in seconds since 1970"
            yield GaugeMetricFamily(name, text, value=date)


class Accepted(Collector):
    """The connections that were accepted, counted elsewhere."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._number = number

    def collect(self) -> Iterator[Metric]:
        """As in Collector."""
        text = "Client connections that were accepted"
        yield CounterMetricFamily("aiaas_connections_accepted", text, value=self._number())


class Process(Collector):
    """The process' own metrics, and the share of its file descriptors in use.

    A gateway of several processes has the sum of their descriptors and the smallest of their limits, whose quotient
    means nothing; so each process shows its own.
    """

    def __init__(self) -> None:
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        """As in Collector: from /proc, and nothing where there is none."""
        values: dict[str, float] = {}
        for family in self._process.collect():
            values |= {sample.name: sample.value for sample in family.samples}
            yield family
        if values.get("process_max_fds"):
            yield GaugeMetricFamily(
                "aiaas_descriptors_used_ratio",
                "The share of its file descriptors that a process uses",
                value=values.get("process_open_fds", 0.0) / values["process_max_fds"],
            )
