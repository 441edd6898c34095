"""Which requests are traced, and which traces are exported.

Every inference request gets a trace id, so that its log line, its vLLM and its client name the same trace. Which traces
are exported is decided when their requests have ended: slow and failed ones always, of the others `sample_ratio`.

No stranger can make the gateway export everything: the flag `sampled` counts only from a trusted proxy, the draw does
not depend on the trace id, and a request without a valid key is never exported.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from typing import Final

from aiaas import __version__
from aiaas.plan.model import Plan, TracesPlan
from aiaas.proxy.client.identity import Networks, is_trusted
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.client.request_ids import RequestIds
from aiaas.proxy.span_export import SpanExporter
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.telemetry.spans import Value, encoded_spans, envelope, is_failed, spans_of
from aiaas.proxy.telemetry.trace import SPAN_ID_BYTES, TRACE_ID_BYTES, Trace, context_of
from aiaas.proxy.upstream.dial import ClientTls

SERVICE: Final = "aiaas"


class Tracing:
    """Begins traces and decides on them. `plan` is None while traces are off.

    draw  gives a number from 0 to 1, below 1
    """

    def __init__(
        self, log: JsonLog, tls: ClientTls, wall: Callable[[], float], draw: Callable[[], float] = random.random
    ) -> None:
        resource: dict[str, Value] = {
            "service.name": SERVICE,
            "service.version": __version__,
            "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
        self.exporter = SpanExporter(log, tls, *envelope(resource, __version__))
        self.plan: TracesPlan | None = None
        self._wall = wall
        self._draw = draw
        self._scheme = "http"
        self._new_trace_id = RequestIds(size=TRACE_ID_BYTES).new
        self._new_span_id = RequestIds(size=SPAN_ID_BYTES).new

    def follow(self, plan: Plan) -> None:
        """Trace as this Plan says from now on."""
        self.plan = plan.monitoring.traces
        self._scheme = "http" if plan.server.tls is None else "https"
        self.exporter.follow(None if self.plan is None else self.plan.collector)

    def begin(self, plan: TracesPlan, request: HttpRequest, peer: str, trusted: Networks) -> Trace:
        """The trace of a request that has just come from `peer`."""
        sampled = self._draw() < plan.sample_ratio
        parent_id, state, line, span_id = None, "", "", self._new_span_id()
        context = context_of(request.values)
        if context is None:
            trace_id = self._new_trace_id()
        else:
            trace_id, parent_id, flag, state = context
            if flag and not sampled:
                sampled = is_trusted(peer, trusted)
            if state:
                line = f"tracestate: {state}\r\n"
        flags = "01" if sampled or plan.engine_spans == "all" else "00"
        lines = f"traceparent: 00-{trace_id}-{span_id}-{flags}\r\n{line}"
        return Trace(trace_id, parent_id, state, sampled, span_id, lines)

    def ended(self, record: Record, trace: Trace, duration: float) -> None:
        """Export the trace of a request that has ended, or forget it."""
        plan, ttft = self.plan, record.ttft
        if plan is None:
            return
        is_slow = duration >= plan.slow_after or (ttft is not None and ttft >= plan.slow_ttft)
        has_failed = (record.status >= 400 or record.error_code is not None) and is_failed(record)
        if (trace.sampled or is_slow or has_failed) and record.key_id is not None:
            spans = spans_of(record, trace, duration, self._wall() - time.monotonic(), self._scheme)
            self.exporter.add(encoded_spans(spans), len(spans))
