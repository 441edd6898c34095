"""Send spans to an OpenTelemetry collector: OTLP over HTTP with JSON (https://opentelemetry.io/docs/specs/otlp/).

    a trace is kept -> `add` puts its encoded spans into a queue, or drops them where that is full
    every EXPORT_INTERVAL, or when a batch is full -> the oldest spans are sent in one request

Rules:
  1. Nothing here holds up a request, and memory is bounded to QUEUE_BYTES. Dropped spans are counted, by reason.
  2. If the collector is away or busy (429, 502, 503, 504), the batch stays first in the queue and is sent again, after
     the collector's Retry-After or a pause that doubles. Any other error drops the batch: the same bytes would be
     refused again.
  3. The log has one line when a fault begins and one when it ends, not one for each batch.
  4. A clean shutdown sends what is left within FLUSH_TIME.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import msgspec
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from aiaas.plan.model import TRACES_PATH, EndpointPlan
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.upstream.ask import Fetched, ask
from aiaas.proxy.upstream.connection import Failure, FailureKind, Pool
from aiaas.proxy.upstream.dial import ClientTls

QUEUE_BYTES: Final = 2 * 1024**2  # about 2,000 spans
BATCH_BYTES: Final = 512 * 1024  # a collector takes 20 MiB by default, those of vendors often 1 to 5
EXPORT_INTERVAL: Final = 5.0  # seconds, as in OpenTelemetry's own SDKs
EXPORT_TIMEOUT: Final = 10.0
_CONNECT_TIMEOUT: Final = 5.0
FLUSH_TIME: Final = 1.0
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
LONGEST_RETRY_AFTER: Final = 300
_BUSY: Final = frozenset({429, 502, 503, 504})
# Why spans are dropped: the queue was full; the collector refused them; it was away at the gateway's end.
REASONS: Final = ("queue_full", "refused", "shutdown")
_SHOWN: Final = 200  # characters of a collector's message in the log


class _PartialSuccess(msgspec.Struct, rename="camel"):
    rejected_spans: int | str = 0
    error_message: str = ""


class _Answer(msgspec.Struct, rename="camel"):
    """ExportTraceServiceResponse."""

    partial_success: _PartialSuccess | None = None


class SpanExporter(Collector):
    """The queue of spans, and the way to the collector. Each process has one.

    before, after  the bytes around the spans in the body of a request
    interval       seconds between two batches
    first_pause    seconds before a batch is sent again
    """

    def __init__(
        self,
        log: JsonLog,
        tls: ClientTls,
        before: bytes,
        after: bytes,
        interval: float = EXPORT_INTERVAL,
        first_pause: float = _FIRST_PAUSE,
    ) -> None:
        self._log = log
        self._tls = tls
        self._before, self._after = before, after
        self._interval = interval
        self._collector: EndpointPlan | None = None
        self._queue: deque[tuple[bytes, int]] = deque()
        self._bytes = 0
        self._some = asyncio.Event()  # the queue holds something
        self._full = asyncio.Event()  # it holds a whole batch
        self._changed = asyncio.Event()  # the collector is another one: a pause ends
        self._first_pause = self._pause = first_pause
        self._fault = ""
        self._exported = 0
        self._dropped: Counter[str] = Counter()

    def follow(self, collector: EndpointPlan | None) -> None:
        """Send to this collector from now on; None: drop what has not been sent."""
        if collector is None:
            self._drop(len(self._queue), "shutdown")
        if collector != self._collector:
            self._collector, self._pause = collector, self._first_pause
            self._changed.set()

    def add(self, spans: bytes, number: int) -> None:
        """Queue the encoded spans of one trace, or drop them."""
        if self._collector is None or self._bytes + len(spans) > QUEUE_BYTES:
            self._dropped["queue_full"] += number
            return
        self._queue.append((spans, number))
        self._bytes += len(spans)
        self._some.set()
        if self._bytes >= BATCH_BYTES:
            self._full.set()

    async def run(self) -> None:
        """Send batches until cancelled. May be run again after an exception."""
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._full.wait()
            while self._queue:
                self._changed.clear()
                pause = await self._export(EXPORT_TIMEOUT)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._changed.wait()

    async def close(self) -> None:
        """Send what is left, within FLUSH_TIME. Call this when `run` has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIME):
                while self._queue and not await self._export(FLUSH_TIME):
                    pass
        self._drop(len(self._queue), "shutdown")

    async def _export(self, timeout: float) -> float:
        """Send the oldest spans. Return how many seconds to wait before the next try; 0 if these are done with."""
        collector = self._collector
        if collector is None:
            return 0.0
        traces, size = 0, 0
        parts: list[bytes] = []
        for spans, _ in self._queue:
            if parts and size + len(spans) > BATCH_BYTES:
                break
            parts.append(spans)
            size += len(spans)
            traces += 1
        pool = Pool(collector, _CONNECT_TIMEOUT, self._tls)
        answer = await ask(pool, TRACES_PATH, timeout, b"%b%b%b" % (self._before, b",".join(parts), self._after))
        if collector != self._collector:
            return 0.0
        if isinstance(answer, Failure) and answer.kind is not FailureKind.MALFORMED:
            return self._again(answer.detail, None)
        if isinstance(answer, Fetched) and answer.status in _BUSY:
            return self._again(f"status {answer.status}", answer.retry_after)
        self._pause = self._first_pause
        self._judge(answer, traces)
        return 0.0

    def _again(self, why: str, asked: int | None) -> float:
        """A batch was not taken now. Return the pause."""
        self._note("traces_not_exported", why, hint="spans are kept in memory and sent again")
        pause = self._pause
        self._pause = min(2 * pause, _LONGEST_PAUSE)
        return pause * random.uniform(0.5, 1.0) if asked is None else float(min(max(asked, 1), LONGEST_RETRY_AFTER))

    def _judge(self, answer: Fetched | Failure, traces: int) -> None:
        """Take the first `traces` out of the queue, as the collector has answered."""
        refused = _refusal(answer)
        if refused is not None:
            self._drop(traces, "refused")
            self._note("traces_refused", refused, hint="these spans are dropped; check monitoring.traces.endpoint")
            return
        number = self._take(traces)
        assert isinstance(answer, Fetched)
        rejected, message = _rejected(answer.body)
        self._dropped["refused"] += min(rejected, number)
        self._exported += number - min(rejected, number)
        if rejected:
            self._note("traces_refused", message, hint="the collector took only a part of these spans")
        elif self._fault:
            self._fault = ""
            self._log.event("info", "traces_exported_again")

    def _note(self, event: str, error: str, hint: str) -> None:
        if self._fault != event:
            self._fault = event
            self._log.event("warning", event, error=error[:_SHOWN], hint=hint)

    def _take(self, traces: int) -> int:
        """Take the first `traces` out of the queue. Return the number of their spans."""
        number = 0
        for _ in range(traces):
            spans, count = self._queue.popleft()
            self._bytes -= len(spans)
            number += count
        if self._bytes < BATCH_BYTES:
            self._full.clear()
        if not self._queue:
            self._some.clear()
        return number

    def _drop(self, traces: int, reason: str) -> None:
        self._dropped[reason] += self._take(traces)

    def collect(self) -> Iterator[Metric]:
        """Yield the counters; called at each scrape. None if traces are off."""
        if self._collector is None:
            return
        yield CounterMetricFamily("aiaas_spans_exported", "Spans that the collector took", value=self._exported)
        dropped = CounterMetricFamily("aiaas_spans_dropped", "Spans that were not exported", labels=["reason"])
        for reason in REASONS:
            dropped.add_metric([reason], self._dropped[reason])
        yield dropped


def _refusal(answer: Fetched | Failure) -> str | None:
    """Why the spans were refused for good; None if they were taken."""
    if isinstance(answer, Failure):
        return answer.detail
    if 200 <= answer.status < 300:
        return "a web page, so this is not a collector" if answer.content_type.startswith(b"text/html") else None
    text = answer.body[:_SHOWN].decode("utf-8", "replace")
    return f"status {answer.status}: {text}" if text.isprintable() else f"status {answer.status}"


def _rejected(body: bytes) -> tuple[int, str]:
    """How many spans the collector says it rejected, and why."""
    try:
        partial = msgspec.json.decode(body, type=_Answer).partial_success if body else None
        rejected = 0 if partial is None else int(partial.rejected_spans)
    except (msgspec.DecodeError, ValueError):
        return 0, ""
    return max(0, rejected), "" if partial is None else partial.error_message
