"""Follow the load of a backend's endpoints, and bound each by it: `max_inflight: auto` (`auto_bound.py` decides).

Each endpoint that is up is asked for its `/metrics` every METRICS_INTERVAL, side by side. An endpoint that does not
answer keeps its bound. One without vLLM's metrics has no bound; neither has an address behind which several servers
answer in turn, since each look would show another one. Both are logged once, with what to do.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiaas.openai import paths
from aiaas.proxy.upstream.ask import fetch
from aiaas.proxy.upstream.auto_bound import AutoBound, first_bound, next_bound
from aiaas.proxy.upstream.connection import Failure
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.endpoint_watch import EndpointWatch
from aiaas.proxy.upstream.vllm_load import VllmLoad, vllm_load

METRICS_INTERVAL: Final = 1.0
TIMEOUT: Final = 2.0
# Seconds until an endpoint whose load cannot be read is asked again: it may be another server by then.
ASK_AGAIN: Final = 60.0

NO_METRICS: Final = "it has no metrics of vLLM, so its requests are not bounded; write `max_inflight: N` for a bound"
SEVERAL_SERVERS: Final = (
    "several servers answer at its address in turn, so their metrics say nothing about one of them, and its requests "
    "are not bounded; name the servers with `dns:` or `urls:`, or write `max_inflight: N`"
)


class BoundWatch(EndpointWatch):
    """One for each backend with `max_inflight: auto`; the interval is for a load that cannot be read."""

    async def _ask(self, endpoint: EndpointState) -> None:
        before = endpoint.pool.inflight
        answer = await fetch(endpoint, paths.METRICS, TIMEOUT)
        if isinstance(answer, Failure) or answer.status >= 500 or endpoint not in self._backend.endpoints:
            return
        load = vllm_load(answer.body) if answer.status == 200 else None
        if load is None:
            self._unbound(endpoint, NO_METRICS)
        elif endpoint.auto is not None and load.started < endpoint.auto.started:
            self._unbound(endpoint, SEVERAL_SERVERS)  # a server that was restarted has started later, not earlier
        elif self._said.get(endpoint) != SEVERAL_SERVERS:
            self._said.pop(endpoint, None)
            self._bound(endpoint, load, max(before, endpoint.pool.inflight))

    def _bound(self, endpoint: EndpointState, load: VllmLoad, own: int) -> None:
        now = asyncio.get_running_loop().time()
        waits = any(backend.waiting for backend in endpoint.users)
        if endpoint.auto is None:
            state = first_bound(load, now)
        else:
            state = next_bound(endpoint.auto, load, now, own=own, waits=waits)
        self._use(endpoint, state)

    def _unbound(self, endpoint: EndpointState, why: str) -> None:
        self._due[endpoint] = asyncio.get_running_loop().time() + self._interval
        if self._said.get(endpoint) != why:
            self._said[endpoint] = why
            name = self._backend.plan.name
            self._log.event("warning", "bound_unknown", backend=name, upstream=endpoint.plan.url, problem=why)
        self._use(endpoint, None)

    def _use(self, endpoint: EndpointState, state: AutoBound | None) -> None:
        endpoint.use_bound(state)
        self._metrics.endpoint_bound(self._backend.plan.name, endpoint.plan.url, endpoint.bound)
