"""The backends as they are now: connections, health, and the choice of an endpoint.

Choosing is a pure function over the endpoints' states (`choose`, `choose_by_prefix`); what changes those states is what
probes and requests report. A client's 4xx or a client's leaving is never reported (a breaker that trips on the client's
own faults takes the fleet down).

    up --(unhealthy_after failures in a row)--> down --(healthy_after good probes)--> up

Where a backend has a bound (`max_inflight`), requests wait for a slot of any of its endpoints. A slot that comes free
goes to the next in turn at once, so while somebody waits nothing is free, and nobody who comes later is faster.

The endpoints of a `dns` backend follow what its name resolves to (`resolve.py`). One that has left gets no new request;
those that it has go on.

An endpoint starts as up: one that is slow to answer its first probe must not delay the first request. An engine that we
start ourselves starts as down, and only its supervisor turns it up or down.

A vLLM that got SIGTERM refuses new connections and goes silent on those that it has, without closing them (capture
131). So after a refused probe, streams to that address on which nothing comes for SILENT_AFTER_REFUSAL are ended. One
that still delivers is left alone: behind a ClusterIP the probe may have met another pod.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

from aiaas.plan.model import BackendPlan, EndpointPlan
from aiaas.proxy.affinity import load_bound, prompt_prefix, weight
from aiaas.proxy.queue import FairQueue
from aiaas.proxy.upstream import Pool

# Seconds (contract section 6).
SILENT_AFTER_REFUSAL = 5.0

HealthListener = Callable[["EndpointState", bool, str], None]


class Stream(Protocol):
    """A request under way at an endpoint."""

    def end_if_silent(self, since: float) -> None:
        """End it if nothing has come after `since` (the loop's time) although it was read."""


class EndpointState:
    """One address: its pool, its requests under way, and whether it is up. `failures` and `successes` are in a row.

    suspect  called when a request has timed out in an engine of ours
    """

    __slots__ = (
        "_backend",
        "_listener",
        "_silence_checks",
        "failures",
        "plan",
        "pool",
        "streams",
        "successes",
        "suspect",
        "up",
    )

    def __init__(self, backend: BackendPlan, plan: EndpointPlan, listener: HealthListener) -> None:
        self._backend = backend
        self._listener = listener
        self.plan = plan
        self.pool = Pool(plan, backend.connect_timeout)
        self.streams: set[Stream] = set()
        self._silence_checks: set[asyncio.TimerHandle] = set()
        self.up = backend.engine is None
        self.failures = 0
        self.successes = 0
        self.suspect: Callable[[], None] | None = None

    @property
    def backend_name(self) -> str:
        """The backend that it belongs to."""
        return self._backend.name

    def __repr__(self) -> str:
        return f"<EndpointState {self._backend.name} {self.plan.url} {'up' if self.up else 'down'} {self.pool!r}>"

    def report_success(self, *, probe: bool) -> None:
        """An answer came, or a probe was good. Only probes bring an endpoint back up."""
        self.failures = 0
        if probe and not self.up:
            self.successes += 1
            if self.successes >= self._backend.health.healthy_after:
                self._turn(True, "its health check answers again")

    def report_failure(self, reason: str) -> None:
        """A connect failure, a reset, a dying engine, a bad probe: the backend's own fault, never a client's."""
        if self._backend.engine is not None:
            return  # nothing but its supervisor could turn it up again
        self.successes = 0
        self.failures += 1
        if self.up and self.failures >= self._backend.health.unhealthy_after:
            self._turn(False, reason)

    def report_timeout(self) -> None:
        """Have an engine of ours checked: an answer did not come in time, but a slow prefill is legal. Any other
        address has its probes."""
        if self.suspect is not None:
            self.suspect()

    def report_refused_probe(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing listens there any more: end the streams that stay silent from now on."""

        def check() -> None:
            self._silence_checks.discard(handle)
            for stream in list(self.streams):
                stream.end_if_silent(refused_at)

        refused_at = loop.time()
        handle = loop.call_at(refused_at + SILENT_AFTER_REFUSAL, check)
        self._silence_checks.add(handle)

    def close(self) -> None:
        """Drop idle connections; requests in flight go on."""
        self.pool.close()

    def set_up(self, up: bool, reason: str) -> None:
        """Somebody who knows better (the engine's supervisor) says so."""
        self.failures = self.successes = 0
        if up != self.up:
            self._turn(up, reason)

    def _turn(self, up: bool, reason: str) -> None:
        self.up = up
        self.successes = self.failures = 0
        self._listener(self, up, reason)


class Waiter:
    """A request that waits for a slot, of any backend of its route.

    key      between which the queue is fair
    tried    endpoints that it has tried
    body     of the request
    granted  the endpoint whose slot it now has; None: look again, as nothing is up any more, or `expired`
    places   how many backends it still may hear from
    """

    __slots__ = ("body", "expired", "granted", "key", "places", "tried")

    def __init__(
        self, key: Hashable, tried: Sequence[EndpointState], body: bytes, granted: asyncio.Future[EndpointState | None]
    ) -> None:
        self.key = key
        self.tried = tried
        self.body = body
        self.granted = granted
        self.expired = False
        self.places = 0

    def expire(self) -> None:
        """It has waited for as long as it may; nothing where it already has its answer."""
        if not self.granted.done():
            self.expired = True
            self.granted.set_result(None)


class BackendState:
    """A backend's endpoints, and who waits for them.

    turn     counts requests, for round robin and for spreading ties
    changed  set when endpoints have joined; whoever probes them clears it
    """

    __slots__ = ("_bound", "_leaving", "_listener", "_waiting", "changed", "endpoints", "plan", "turn")

    def __init__(self, plan: BackendPlan, listener: HealthListener) -> None:
        self.plan = plan
        self.endpoints = tuple(EndpointState(plan, endpoint, self._turned) for endpoint in plan.endpoints)
        self.changed = asyncio.Event()
        self.turn = 0
        self._leaving: list[EndpointState] = []
        self._listener = listener
        self._bound = plan.max_inflight
        self._waiting: FairQueue[Waiter] = FairQueue(plan.queue.size)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    @property
    def leaving(self) -> Sequence[EndpointState]:
        """Those that its name does not resolve to any more, while they have requests under way."""
        self._leaving = [endpoint for endpoint in self._leaving if endpoint.pool.inflight]
        return self._leaving

    def owns(self, endpoint: EndpointState) -> bool:
        """Whether it is, or was until now, one of this backend's."""
        return endpoint in self.endpoints or endpoint in self._leaving

    def resolved(self, addresses: Iterable[str]) -> tuple[list[EndpointState], list[EndpointState]]:
        """Make `addresses` (IP addresses, in any order) the endpoints of a `dns` backend; those that joined, that left.

        One that stays keeps its health, its requests and its connections; so does one that is back before its last
        request has ended.
        """
        template = self.plan.dns
        assert template is not None
        known = {endpoint.plan.url: endpoint for endpoint in (*self.leaving, *self.endpoints)}
        plans = [template.at(address) for address in sorted(set(addresses))]
        before = self.endpoints
        now = tuple(known.get(plan.url) or EndpointState(self.plan, plan, self._turned) for plan in plans)
        joined = [endpoint for endpoint in now if endpoint not in before]
        left = [endpoint for endpoint in before if endpoint not in now]
        self.endpoints = now
        self._leaving = [endpoint for endpoint in known.values() if endpoint not in now]
        for endpoint in left:
            endpoint.pool.close()
        for endpoint in joined:
            endpoint.pool.closed = False
        if joined:
            self.changed.set()
        if joined or left:  # where the last one that was up has left, nobody is to wait
            self._hand_over()
        return joined, left

    def pick(self, tried: Sequence[EndpointState], body: bytes = b"") -> EndpointState | None:
        """The endpoint for the next attempt, one that was not tried yet where there is one; None: none has a slot.

        Who goes there takes the slot (`pool.inflight`), and afterwards calls `give_back`.
        """
        if not tried and len(self.endpoints) == 1:
            only = self.endpoints[0]
            return only if only.up and (self._bound is None or only.pool.inflight < self._bound) else None
        if not any(endpoint in tried for endpoint in self.endpoints):
            # By request and not by attempt: retries in step with the turns would begin each request at the same one.
            self.turn += 1
        if self.plan.balance == "prefix_hash":
            return choose_by_prefix(self.endpoints, tried, prompt_prefix(body), self._bound)
        free = self.endpoints if self._bound is None else [e for e in self.endpoints if e.pool.inflight < self._bound]
        return choose(free, tried, self.turn, by_load=self.plan.balance == "least_inflight")

    def give_back(self, endpoint: EndpointState) -> None:
        """An exchange has ended, in whichever way: its slot goes to the next in turn."""
        endpoint.pool.inflight -= 1
        if self._bound is not None and self._waiting:
            self._hand_over()

    def wait(self, waiter: Waiter) -> bool:
        """Let it wait for a slot; False where the queue is full."""
        if not self._waiting.put(waiter.key, waiter):
            return False
        waiter.places += 1
        return True

    def forget(self, waiter: Waiter) -> None:
        """It waits no longer."""
        self._waiting.remove(waiter.key, waiter)

    def leave(self, waiter: Waiter) -> None:
        """Its client has gone. The slot that it may have got here in the same moment goes on to the next."""
        self.forget(waiter)
        granted = waiter.granted
        endpoint = granted.result() if granted.done() and not granted.cancelled() else None
        if endpoint is not None and self.owns(endpoint):
            self.give_back(endpoint)

    def remember_health(self, before: BackendState) -> None:
        """What is known about an address holds under a changed Plan too; an engine of ours would else stay down."""
        known = {endpoint.plan.url: endpoint.up for endpoint in before.endpoints}
        dns, dns_before = self.plan.dns, before.plan.dns
        if dns is not None and dns_before is not None and dns.url == dns_before.url:
            self.resolved([endpoint.plan.host for endpoint in before.endpoints])
        for endpoint in self.endpoints:
            endpoint.up = known.get(endpoint.plan.url, endpoint.up)

    def _turned(self, endpoint: EndpointState, up: bool, reason: str) -> None:
        self._listener(endpoint, up, reason)
        if self._waiting:
            self._hand_over()

    def _hand_over(self) -> None:
        """Give what is free to those whose turn it is. Where nothing is up, nobody is to wait here."""
        while self._waiting:
            is_up = False
            is_free = False
            for endpoint in self.endpoints:
                is_up = is_up or endpoint.up
                is_free = is_free or (endpoint.up and (self._bound is None or endpoint.pool.inflight < self._bound))
            if is_up and not is_free:
                return
            waiter = self._waiting.take()
            if waiter is None or waiter.granted.done():
                continue  # it has its answer, or was cancelled, and is about to leave
            chosen = self.pick(waiter.tried, waiter.body)
            if chosen is not None:
                chosen.pool.inflight += 1
            else:
                waiter.places -= 1
            if chosen is not None or not waiter.places:
                waiter.granted.set_result(chosen)

    def close(self) -> None:
        """Drop idle connections; requests in flight go on."""
        for endpoint in self.endpoints:
            endpoint.close()


def choose(
    endpoints: Sequence[EndpointState], tried: Sequence[EndpointState], turn: int, *, by_load: bool
) -> EndpointState | None:
    """Pure: an endpoint that is up, untried before tried, least in flight (ties by turn) or simply by turn."""
    candidates = [endpoint for endpoint in endpoints if endpoint.up]
    fresh = [endpoint for endpoint in candidates if endpoint not in tried]
    candidates = fresh or candidates
    if not candidates:
        return None
    if len(candidates) == 1:
        return candidates[0]
    offset = turn % len(candidates)
    rotated = candidates[offset:] + candidates[:offset]
    return min(rotated, key=lambda endpoint: endpoint.pool.inflight) if by_load else rotated[0]


def choose_by_prefix(
    endpoints: Sequence[EndpointState], tried: Sequence[EndpointState], prefix: bytes, bound: int | None = None
) -> EndpointState | None:
    """Pure: an endpoint that is up and has fewer than `bound` in flight, untried before tried; of these the first in
    the prefix's own order that does not have more in flight than its share.
    """
    up = [endpoint for endpoint in endpoints if endpoint.up]
    candidates = [endpoint for endpoint in up if bound is None or endpoint.pool.inflight < bound]
    candidates = [endpoint for endpoint in candidates if endpoint not in tried] or candidates
    if not candidates:
        return None
    share = load_bound([endpoint.pool.inflight for endpoint in up])
    within = [endpoint for endpoint in candidates if endpoint.pool.inflight <= share]
    if not within:  # those that have less are full or tried
        return min(candidates, key=lambda endpoint: endpoint.pool.inflight)
    return max(within, key=lambda endpoint: weight(prefix, endpoint.plan.url))


def all_endpoints(backends: Iterable[BackendState]) -> list[EndpointState]:
    """Every endpoint of every backend."""
    return [endpoint for backend in backends for endpoint in backend.endpoints]
