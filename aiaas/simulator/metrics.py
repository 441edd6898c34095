"""The vllm: metrics that routers, autoscalers and tests read (transcript 78), in their own registry.

Names, labels and buckets are vLLM 0.32's. Metrics of features that the simulator does not have (KV transfer,
speculation) are left out. As in vLLM, there is no counter for aborts: an abort only shows in num_requests_running and
in a generation_tokens_total that stops growing (transcript 80).
"""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
CONTENT_TYPE = CONTENT_TYPE_LATEST

_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
_ITL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)


class EngineLoad(Protocol):
    """The values of the gauges at a scrape."""

    @property
    def running(self) -> int:
        """Sequences in generation."""

    @property
    def waiting(self) -> int:
        """Sequences waiting for a place."""

    @property
    def kv_usage(self) -> float:
        """0..1."""


class SimulatorMetrics:
    """One server's metrics; each counter is bound to its labels once."""

    def __init__(self, model: str) -> None:
        self._registry = registry = CollectorRegistry()
        engine = {"engine": "0", "model_name": model}
        names = tuple(engine)

        def gauge(name: str, text: str, *more: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, (*names, *more), registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, names, registry=registry).labels(**engine)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, names, registry=registry, buckets=buckets).labels(**engine)

        self._running = gauge("num_requests_running", "Number of requests in model execution batches.").labels(**engine)
        self._waiting = gauge("num_requests_waiting", "Number of requests waiting to be processed.").labels(**engine)
        by_reason = gauge("num_requests_waiting_by_reason", "Number of waiting requests by reason.", "reason")
        self._waiting_for_capacity = by_reason.labels(**engine, reason="capacity")
        by_reason.labels(**engine, reason="deferred")
        sleep = gauge("engine_sleep_state", "Engine sleep state; awake = 1 means engine is awake.", "sleep_state")
        for state in ("awake", "weights_offloaded", "discard_all"):
            sleep.labels(**engine, sleep_state=state).set(state == "awake")
        self._kv = gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.").labels(**engine)
        self.prefix_queries = counter("prefix_cache_queries", "Prefix cache queries, in number of queried tokens.")
        counter("prefix_cache_hits", "Prefix cache hits, in number of cached tokens.")
        counter("num_preemptions", "Cumulative number of preemption from the engine.")
        self.prompt_tokens = counter("prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = counter("generation_tokens", "Number of generation tokens processed.")
        success = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            (*names, "finished_reason"),
            registry=registry,
        )
        self.success = {reason: success.labels(**engine, finished_reason=reason) for reason in FINISH_REASONS}
        rejections = Counter(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            ("model_name", "reason"),
            registry=registry,
        )
        self.rejections = rejections.labels(model_name=model, reason="max_num_queued_reqs")
        rejections.labels(model_name=model, reason="max_num_queued_tokens")
        self.ttft = histogram("time_to_first_token_seconds", "Time to first token in seconds.", _TTFT_BUCKETS)
        self.itl = histogram("inter_token_latency_seconds", "Inter-token latency in seconds.", _ITL_BUCKETS)
        self.e2e = histogram("e2e_request_latency_seconds", "E2E request latency in seconds.", _REQUEST_BUCKETS)
        self.queue = histogram("request_queue_time_seconds", "Time spent in WAITING phase.", _REQUEST_BUCKETS)
        self.prefill = histogram("request_prefill_time_seconds", "Time spent in PREFILL phase.", _REQUEST_BUCKETS)
        self.decode = histogram("request_decode_time_seconds", "Time spent in DECODE phase.", _REQUEST_BUCKETS)
        self.http = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ("handler", "method", "status"),
            registry=registry,
        )

    def render(self, load: EngineLoad) -> bytes:
        """Return the metrics text with the current gauges."""
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._waiting_for_capacity.set(load.waiting)
        self._kv.set(load.kv_usage)
        return generate_latest(self._registry)
