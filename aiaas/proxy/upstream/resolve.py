"""Look names up in the background, so that requests do not wait for DNS: each address of a `dns` name is an endpoint,
as the pods behind a headless Service come and go; the name in a `url` is one endpoint with these addresses (`dial.py`).

    unknown --(first answer)--> known --(each answer)--> known

- The name is asked every `interval`. While no answer has ever come, it is asked more often: after `first` seconds, then
  twice that, and so on up to `interval`. A `dns` backend has no endpoint until then (503 `no_healthy_backend`).
- No answer, an error, a name that does not exist any more (NXDOMAIN), no address: nothing changes. Resolver and name
  cannot be told apart from here, and a resolver that is down must not take the fleet down. Addresses that have really
  gone are found by their probes.
- One question at a time: getaddrinfo cannot be cancelled, and its threads are few. One that takes longer than `timeout`
  counts as a failure, and its answer is still taken when it comes.
- Of a `dns` name neither the order of the answer nor an address that stands in it twice means anything. A `url` tries
  its addresses in the order of the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aiaas.config.address import is_address
from aiaas.plan.model import BackendPlan
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.dial import Resolve, addresses_of, why_unresolved


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `interval` is CoreDNS's time to live for a Service; `timeout` is that of resolv.conf for one server."""

    interval: float = 5.0
    first: float = 0.25
    timeout: float = 5.0


class Resolver:
    """Looks names up, and logs and counts changes."""

    def __init__(
        self, log: JsonLog, metrics: Metrics, resolve: Resolve = addresses_of, timing: Timing | None = None
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._resolve = resolve
        self._timing = timing or Timing()

    async def follow(self, backend: BackendState, host: str, port: int) -> None:
        """Keep a backend's addresses of the name `host` up to date, until cancelled."""
        timing = self._timing
        misses = 0
        while True:
            question = asyncio.create_task(self._resolve(host, port), name=f"getaddrinfo {host}")
            try:
                while not (await asyncio.wait([question], timeout=timing.timeout))[0]:
                    misses += 1
                    self._failed(backend, host, misses, f"no answer within {timing.timeout:g} s")
            finally:
                question.cancel()
            try:
                addresses, reason = question.result(), "no address"
            except (OSError, UnicodeError) as error:
                addresses, reason = (), why_unresolved(error)
            if addresses:
                self._answered(backend, host, misses, addresses)
                misses = 0
            else:
                misses += 1
                self._failed(backend, host, misses, reason)
            await asyncio.sleep(next_delay(misses, bool(_known(backend, host)), timing))

    def _answered(self, backend: BackendState, host: str, misses: int, addresses: Sequence[str]) -> None:
        self._metrics.resolved(backend.plan.name, ok=True)
        if misses:
            self._log.event("info", "dns_recovered", backend=backend.plan.name, name=host, failures=misses)
        if backend.plan.dns is not None:
            self._resolved(backend, addresses)
            return
        changed = [e.pool.dialer.found(addresses) for e in backend.endpoints if e.plan.host == host]
        if any(changed):
            self._log.event(
                "info", "addresses_changed", backend=backend.plan.name, name=host, addresses=sorted(addresses)
            )

    def _resolved(self, backend: BackendState, addresses: Sequence[str]) -> None:
        name = backend.plan.name
        joined, left = backend.resolved(addresses)
        for endpoint in joined:
            self._metrics.endpoint_up(name, endpoint.plan.url, endpoint.up)
        for endpoint in left:
            self._metrics.endpoint_gone(name, endpoint.plan.url)
        if joined or left:
            self._log.event(
                "info",
                "endpoints_changed",
                backend=name,
                joined=[endpoint.plan.url for endpoint in joined],
                left=[endpoint.plan.url for endpoint in left],
                endpoints=len(backend.endpoints),
            )

    def _failed(self, backend: BackendState, host: str, misses: int, reason: str) -> None:
        """Counted each time, and logged once."""
        name = backend.plan.name
        self._metrics.resolved(name, ok=False)
        if misses == 1:
            kept = len(_known(backend, host))
            self._log.event("warning", "dns_failed", backend=name, name=host, reason=reason, kept_addresses=kept)


def names_of(plan: BackendPlan) -> dict[str, int]:
    """The names that a backend's addresses come from, each with a port to ask for."""
    named = plan.endpoints if plan.dns is None else (plan.dns,)
    return {endpoint.host: endpoint.port for endpoint in named if not is_address(endpoint.host)}


def _known(backend: BackendState, host: str) -> Sequence[str]:
    """The addresses of `host` that requests of `backend` can use."""
    if backend.plan.dns is not None:
        return [endpoint.plan.host for endpoint in backend.endpoints]
    return next((e.pool.dialer.addresses for e in backend.endpoints if e.plan.host == host), ())


def next_delay(misses: int, known: bool, timing: Timing) -> float:
    """Seconds until the next look-up, after `misses` failures in a row; `known`: addresses are known."""
    if known or not misses:
        return timing.interval
    return min(timing.interval, timing.first * 2.0 ** min(misses - 1, 10))
