"""The backends across Plans: a reload replaces their settings and keeps their state.

Identity: a backend keeps its state while its name and its models stay; an endpoint while its backend names its URL. An
endpoint that a backend lets go belongs to the backend that names its URL now (the backend was renamed, or the address
moved), with its slots: the engine there does not know of names. Two backends that name one URL each have an endpoint of
their own, as `max_inflight` is a backend's.

A backend that is taken out while it has requests is retired: running requests end, and waiting ones get their turn
before requests that wait for the same endpoints in a newer backend. If it comes back before that, it keeps its state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from aiaas.plan.model import BackendPlan
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.dial import ClientTls
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.kept import KeptMemory
from aiaas.proxy.upstream.moving import move_streams


class Fleet:
    """`backends` are those of the Plan in force, by name. `tls` is for all https endpoints, of every Plan; `kept`
    for the text of open streams, with the Plan's `resume_memory`."""

    def __init__(self, log: JsonLog, metrics: Metrics, tls: ClientTls) -> None:
        self._log = log
        self._metrics = metrics
        self._tls = tls
        self.kept = KeptMemory(0)
        self._retired: list[BackendState] = []
        self.backends: Mapping[str, BackendState] = {}

    def follow(self, plans: Sequence[BackendPlan]) -> Mapping[str, BackendState]:
        """Put another Plan's backends in force."""
        shown = _series(self.backends.values())
        self._retired = [backend for backend in self._retired if not _dissolved(backend)]
        named = {plan.name: plan for plan in plans}
        known = {
            backend.plan.name: backend
            for backend in (*self._retired, *self.backends.values())
            if backend.plan.name in named and backend.lives_on(named[backend.plan.name])
        }
        for backend in self.backends.values():
            if known.get(backend.plan.name) is not backend:
                backend.retire()
                self._retired.append(backend)
        self._retired = [backend for backend in self._retired if known.get(backend.plan.name) is not backend]
        for plan in plans:
            if plan.name in known:
                known[plan.name].part(plan)
        backends: dict[str, BackendState] = {}
        for plan in plans:
            backend = backends[plan.name] = known.get(plan.name) or self._begin(plan)
            if backend.plan != plan or backend.retired:
                backend.follow(plan)
        self.backends = backends
        # A late request may wait in a dissolved backend, for an endpoint that has a new bound now.
        users = [user for endpoint in _endpoints(backends.values()) for user in endpoint.users]
        for backend in dict.fromkeys((*self._retired, *backends.values(), *users)):
            backend.hand_over()
        self._show(shown)
        for endpoint in _endpoints(backends.values()):
            if endpoint.draining:
                endpoint.empty("the config says drain")
        return backends

    def close(self) -> None:
        """Drop idle connections; requests in flight go on."""
        for backend in (*self._retired, *self.backends.values()):
            backend.close()

    def _begin(self, plan: BackendPlan) -> BackendState:
        return BackendState(plan, self._turned, self._tls, self._unclaimed, self._emptied, self.kept)

    def _unclaimed(self, url: str) -> EndpointState | None:
        found = (backend.parted(url) for backend in (*self._retired, *self.backends.values()))
        return next((endpoint for endpoint in found if endpoint is not None), None)

    def _turned(self, endpoint: EndpointState, up: bool, reason: str) -> None:
        backend = endpoint.backend
        if self.backends.get(backend.plan.name) is not backend or endpoint not in backend.endpoints:
            return  # of a Plan that is no longer in force: some request still tries it
        self._metrics.endpoint_up(endpoint.backend_name, endpoint.plan.url, up)
        self._log.event(
            "info" if up else "warning",
            "endpoint_up" if up else "endpoint_down",
            backend=endpoint.backend_name,
            upstream=endpoint.plan.url,
            reason=reason,
        )

    def _emptied(self, endpoint: EndpointState, reason: str) -> None:
        self._log.event(
            "info",
            "endpoint_draining",
            backend=endpoint.backend_name,
            upstream=endpoint.plan.url,
            reason=reason,
            streams=len(endpoint.streams),
        )
        if endpoint.streams:
            move_streams(endpoint, asyncio.get_running_loop())

    def _show(self, before: set[tuple[str, str]]) -> None:
        """Keep a series in the metrics for each endpoint, and remove those of `before` that are gone."""
        for endpoint in _endpoints(self.backends.values()):
            if endpoint.draining:
                self._metrics.endpoint_drains(endpoint.backend_name, endpoint.plan.url)
            else:
                self._metrics.endpoint_up(endpoint.backend_name, endpoint.plan.url, endpoint.up)
        for backend, url in before - _series(self.backends.values()):
            self._metrics.endpoint_gone(backend, url)


def _series(backends: Iterable[BackendState]) -> set[tuple[str, str]]:
    return {(endpoint.backend_name, endpoint.plan.url) for endpoint in _endpoints(backends)}


def _endpoints(backends: Iterable[BackendState]) -> list[EndpointState]:
    return [endpoint for backend in backends for endpoint in backend.endpoints]


def _dissolved(backend: BackendState) -> bool:
    """Dissolve a retired backend that is not in use."""
    if backend.is_busy:
        return False
    backend.dissolve()
    return True
