"""The endpoints of a `dns` backend follow what its name resolves to, as the pods behind a headless Service come and go.

    unknown --(first answer)--> known --(each answer)--> known

- The name is asked every `interval`. While no answer has ever come, no request can be sent (503 `no_healthy_backend`),
  and it is asked more often: after `first` seconds, then twice that, and so on up to `interval`.
- No answer, an error, a name that does not exist any more (NXDOMAIN), no address: nothing changes. Resolver and name
  cannot be told apart from here, and a resolver that is down must not take the fleet down. Addresses that have really
  gone are found by their probes.
- One question at a time: getaddrinfo cannot be cancelled, and its threads are few. One that takes longer than `timeout`
  counts as a failure, and its answer is still taken when it comes.
- Neither the order of the answer nor an address that stands in it twice means anything.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from aiaas.proxy.backends import BackendState
from aiaas.proxy.log import JsonLog
from aiaas.proxy.metrics import Metrics

# The IP addresses of (host, port). Raises OSError or UnicodeError where there are none to be had.
Resolve = Callable[[str, int], Coroutine[Any, Any, Sequence[str]]]


async def addresses_of(host: str, port: int) -> list[str]:
    """As the machine resolves names: hosts file, search domains, IPv4 and IPv6. Off the event loop, in a thread.

    getaddrinfo tells no time to live.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `interval` is CoreDNS's time to live for a Service; `timeout` is that of resolv.conf for one server."""

    interval: float = 5.0
    first: float = 0.25
    timeout: float = 5.0


class Resolver:
    """Asks for names, and tells log and metrics what changed."""

    def __init__(
        self, log: JsonLog, metrics: Metrics, resolve: Resolve = addresses_of, timing: Timing | None = None
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._resolve = resolve
        self._timing = timing or Timing()

    async def follow(self, backend: BackendState) -> None:
        """Keep the endpoints of a `dns` backend at what its name resolves to, until cancelled."""
        name = backend.plan.dns
        assert name is not None
        timing = self._timing
        misses = 0
        while True:
            question = asyncio.create_task(self._resolve(name.host, name.port), name=f"getaddrinfo {name.host}")
            try:
                while not (await asyncio.wait([question], timeout=timing.timeout))[0]:
                    misses += 1
                    self._failed(backend, misses, f"no answer within {timing.timeout:g} s")
            finally:
                question.cancel()
            try:
                addresses, reason = question.result(), "no address"
            except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS could hold
                addresses, reason = (), getattr(error, "strerror", None) or str(error)
            if addresses:
                self._answered(backend, misses, addresses)
                misses = 0
            else:
                misses += 1
                self._failed(backend, misses, reason)
            await asyncio.sleep(next_delay(misses, bool(backend.endpoints), timing))

    def _answered(self, backend: BackendState, misses: int, addresses: Sequence[str]) -> None:
        name = backend.plan.name
        self._metrics.resolved(name, ok=True)
        if misses:
            self._log.event("info", "dns_recovered", backend=name, failures=misses)
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

    def _failed(self, backend: BackendState, misses: int, reason: str) -> None:
        """Counted each time, and said once."""
        name = backend.plan.name
        self._metrics.resolved(name, ok=False)
        if misses == 1 and backend.plan.dns is not None:
            asked = backend.plan.dns.host
            kept = len(backend.endpoints)
            self._log.event("warning", "dns_failed", backend=name, name=asked, reason=reason, kept_endpoints=kept)


def next_delay(misses: int, known: bool, timing: Timing) -> float:
    """Seconds until the name is asked again, after so many failures in a row; `known`: there are endpoints."""
    if known or not misses:
        return timing.interval
    return min(timing.interval, timing.first * 2.0 ** min(misses - 1, 10))
