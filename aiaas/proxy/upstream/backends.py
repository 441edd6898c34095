"""The backends as they are now: connections, health, and the choice of an endpoint.

Choosing is a pure function over the endpoints' states (`choose.py`); the reports of probes and requests change those
states. A client's 4xx or a client's leaving is never reported (a breaker that trips on the client's own faults takes
the fleet down).

    up --(unhealthy_after failures in a row)--> down --(healthy_after good probes)--> up

Where a backend has a bound (`max_inflight`), requests wait for a slot of any of its endpoints. A slot that comes free
goes to the next waiting request at once, so while a request waits nothing is free, and a later one cannot overtake it.

The endpoints of a `dns` backend follow what its name resolves to (`resolve.py`). One that has left gets no new request;
those that it has go on.

State outlives a Plan: an address keeps its connections, slots and health, a backend its queue and its turn. A reload
only replaces their settings (`BackendState.follow`, `fleet.py`).

An endpoint starts as up: one that is slow to answer its first probe must not delay the first request. An engine that we
start ourselves starts as down, and only its supervisor turns it up or down.

After SIGTERM a vLLM refuses new connections and goes silent on its open ones, without closing them. So after a refused
probe, end the streams to that address on which nothing comes for SILENT_AFTER_REFUSAL. A stream that still delivers is
left alone: behind a ClusterIP the probe may have met another pod.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

from aiaas.plan.model import BackendPlan, EndpointPlan
from aiaas.proxy.request.served_models import NOTHING_LISTED, Listed
from aiaas.proxy.upstream.affinity import number_of, prompt_prefix
from aiaas.proxy.upstream.choose import choose, choose_by_prefix
from aiaas.proxy.upstream.connection import Pool
from aiaas.proxy.upstream.dial import ClientTls
from aiaas.proxy.upstream.queue import FairQueue

SILENT_AFTER_REFUSAL = 5.0  # seconds

HealthListener = Callable[["EndpointState", bool, str], None]


class Stream(Protocol):
    """A request under way at an endpoint."""

    def end_if_silent(self, since: float) -> None:
        """End it if nothing has come after `since` (the loop's time) although it was read."""


class EndpointState:
    """One address: its pool, its requests under way, and whether it is up. `failures` and `successes` are in a row.

    backend  the one that names it in the Plan in force, else the last one that did: its settings hold
    users    whose waiting requests get its slots, the oldest first: `backend`, and those that a reload took out
    bound    the backend's max_inflight; suspect is called when a request has timed out in an engine that we started
    listed   the models that it lists; number is that of its URL, for `prefix_hash`
    """

    __slots__ = (
        "backend",
        "bound",
        "failures",
        "listed",
        "number",
        "plan",
        "pool",
        "streams",
        "successes",
        "suspect",
        "up",
        "users",
    )

    def __init__(self, backend: BackendState, plan: EndpointPlan, tls: ClientTls) -> None:
        self.pool = Pool(plan, backend.plan.connect_timeout, tls)
        self.streams: set[Stream] = set()
        self.up = backend.plan.engine is None
        self.failures = self.successes = 0
        self.suspect: Callable[[], None] | None = None
        self.listed: Listed = NOTHING_LISTED
        self.users: list[BackendState] = []
        self.belong_to(backend, plan)

    def belong_to(self, backend: BackendState, plan: EndpointPlan) -> None:
        """Take the settings of the backend that names it now. Slots, connections and health stay."""
        self.backend = backend
        self.bound = backend.plan.max_inflight
        self.plan = self.pool.endpoint = plan
        self.number = number_of(plan.url.encode())
        self.pool.connect_timeout = backend.plan.connect_timeout
        self.pool.closed = False
        if backend not in self.users:
            self.users.append(backend)

    @property
    def backend_name(self) -> str:
        """The backend that it belongs to."""
        return self.backend.plan.name

    @property
    def is_free(self) -> bool:
        """Whether a request may go there now."""
        return self.up and (self.bound is None or self.pool.inflight < self.bound)

    def __repr__(self) -> str:
        return f"<EndpointState {self.backend_name} {self.plan.url} {'up' if self.up else 'down'} {self.pool!r}>"

    def take(self) -> None:
        """Take a slot, for an exchange, or for the request that is next in the queue."""
        self.pool.inflight += 1

    def give_back(self) -> None:
        """An exchange has ended: give its slot to the next waiting request."""
        self.pool.inflight -= 1
        self._hand_over()

    def leave(self, backend: BackendState) -> None:
        """`backend` does not name it any more. Its requests go on, and its idle connections end."""
        if backend in self.users:
            self.users.remove(backend)
        if self.backend is backend:
            self.pool.close()

    def report_success(self, *, probe: bool) -> None:
        """An answer came, or a probe was good. Only probes bring an endpoint back up."""
        self.failures = 0
        if probe and not self.up:
            self.successes += 1
            if self.successes >= self.backend.plan.health.healthy_after:
                self._turn(True, "its health check answers again")

    def report_failure(self, reason: str) -> None:
        """A connect failure, a reset, a dying engine, a bad probe: the backend's own fault, never a client's."""
        if self.backend.plan.engine is not None:
            return  # only its supervisor could turn it up again
        self.successes = 0
        self.failures += 1
        if self.up and self.failures >= self.backend.plan.health.unhealthy_after:
            self._turn(False, reason)

    def report_timeout(self) -> None:
        """Have the engine checked if we started it; any other address has its probes."""
        if self.suspect is not None:
            self.suspect()

    def report_refused_probe(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing listens there any more: end the streams that stay silent from now on."""

        def check() -> None:
            for stream in list(self.streams):
                stream.end_if_silent(refused_at)

        refused_at = loop.time()
        loop.call_at(refused_at + SILENT_AFTER_REFUSAL, check)

    def set_up(self, up: bool, reason: str) -> None:
        """Set the state that the engine's supervisor reports."""
        if up != self.up:
            self._turn(up, reason)

    def _turn(self, up: bool, reason: str) -> None:
        self.up = up
        self.backend.listener(self, up, reason)
        self._hand_over()

    def _hand_over(self) -> None:
        for backend in self.users:
            if backend._waiting.length:
                backend.hand_over()


class Waiter:
    """A request that waits for a slot, of any backend of its route.

    key      between which the queue is fair
    tried    endpoints that it has tried
    body     of the request
    granted  the endpoint whose slot it now has, by the backend `by`; None: look again, as nothing is up any more, or
             `expired`
    places   how many backends it still may hear from
    """

    __slots__ = ("body", "by", "expired", "granted", "key", "places", "tried")

    def __init__(
        self, key: Hashable, tried: Sequence[EndpointState], body: bytes, granted: asyncio.Future[EndpointState | None]
    ) -> None:
        self.key = key
        self.tried = tried
        self.body = body
        self.granted = granted
        self.by: BackendState | None = None
        self.expired = False
        self.places = 0

    def expire(self) -> None:
        """End the wait after `max_wait`; does nothing if the waiter already has its answer."""
        if not self.granted.done():
            self.expired = True
            self.granted.set_result(None)


class BackendState:
    """A backend's endpoints, and the requests that wait for them.

    listener   called whenever an endpoint goes down or comes up
    unclaimed  an endpoint at a URL that no backend of the Plan in force has any more, None without one
    retired    taken out by a reload; requests that began before still use it
    turn       counts requests, for round robin and for spreading ties
    changed    set when endpoints have joined; `probe_forever` clears it
    """

    __slots__ = (
        "_leaving",
        "_tls",
        "_unclaimed",
        "_waiting",
        "changed",
        "endpoints",
        "listener",
        "plan",
        "retired",
        "turn",
    )

    def __init__(
        self,
        plan: BackendPlan,
        listener: HealthListener,
        tls: ClientTls | None = None,
        unclaimed: Callable[[str], EndpointState | None] = lambda _url: None,
    ) -> None:
        self.plan = plan
        self.listener = listener
        self.retired = False
        self.changed = asyncio.Event()
        self.turn = 0
        self.endpoints: tuple[EndpointState, ...] = ()
        self._leaving: list[EndpointState] = []
        self._tls = tls or ClientTls()
        self._unclaimed = unclaimed
        self._waiting: FairQueue[Waiter] = FairQueue(plan.queue.size)
        self._place(plan.endpoints)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return self._waiting.length

    @property
    def leaving(self) -> Sequence[EndpointState]:
        """Former endpoints of this backend that still have requests under way."""
        self._leaving = [e for e in self._leaving if e.pool.inflight and e.backend is self]
        return self._leaving

    @property
    def is_busy(self) -> bool:
        """Whether a request waits here, or is under way at an endpoint that belongs to it."""
        own = [endpoint for endpoint in self.endpoints if endpoint.backend is self]
        return bool(self.waiting or self.leaving or any(endpoint.pool.inflight for endpoint in own))

    # -- what a reload, or an answer of DNS, changes ---------------------------------------------------------------

    def lives_on(self, plan: BackendPlan) -> bool:
        """Whether `plan` is of the same backend: one that serves the models that waiting requests asked for."""
        return plan.name == self.plan.name and set(self.plan.served_models) <= set(plan.served_models)

    def part(self, plan: BackendPlan) -> None:
        """Let endpoints go that `plan` does not name, so that another backend can have them, before `follow`."""
        named = {endpoint.url for endpoint in plan.endpoints}
        if plan.dns is None:
            self._place([endpoint.plan for endpoint in self.endpoints if endpoint.plan.url in named])

    def follow(self, plan: BackendPlan) -> None:
        """Take another Plan's settings. Endpoints that it names as well stay as they are, and so do those that wait;
        the caller calls `hand_over` once all backends have followed.

        Where it is found by another name from now on, the endpoints stay until that name has its first answer.
        """
        before, self.plan, self.retired = self.plan, plan, False
        self._waiting.size = plan.queue.size
        if plan.dns is None:
            self._place(plan.endpoints)
        elif before.dns is not None and before.dns.url == plan.dns.url:
            self._place([plan.dns.at(endpoint.plan.host) for endpoint in self.endpoints])
        else:
            self._place([endpoint.plan for endpoint in self.endpoints])

    def retire(self) -> None:
        """A reload has taken it out. Its requests go on, and so do those that wait; idle connections end."""
        self.retired = True
        self.close()

    def dissolve(self) -> None:
        """End a retired backend that is not in use."""
        for endpoint in self.endpoints:
            endpoint.leave(self)

    def parted(self, url: str) -> EndpointState | None:
        """Find an endpoint of its own at `url` that this backend no longer needs for new requests."""
        candidates = (*self._leaving, *self.endpoints) if self.retired else self._leaving
        return next((e for e in candidates if e.backend is self and e.plan.url == url), None)

    def resolved(self, addresses: Iterable[str]) -> tuple[list[EndpointState], list[EndpointState]]:
        """Make `addresses` (IP addresses, in any order) the endpoints of a `dns` backend; those that joined, that left.

        One that stays keeps its health, its requests and its connections; so does one that is back before its last
        request has ended.
        """
        template = self.plan.dns
        assert template is not None
        joined, left = self._place([template.at(address) for address in sorted(set(addresses))])
        if joined or left:  # where the last one that was up has left, nobody is to wait
            self.hand_over()
        return joined, left

    def _place(self, plans: Sequence[EndpointPlan]) -> tuple[list[EndpointState], list[EndpointState]]:
        own = {e.plan.url: e for e in (*self.leaving, *self.endpoints) if e.backend is self}
        before, now = self.endpoints, []
        for plan in plans:
            endpoint = own.get(plan.url) or self._unclaimed(plan.url)
            if endpoint is None:
                endpoint = EndpointState(self, plan, self._tls)
            else:
                endpoint.belong_to(self, plan)
            now.append(endpoint)
        self.endpoints = tuple(now)
        self._leaving = [endpoint for endpoint in own.values() if endpoint not in now]
        joined = [endpoint for endpoint in now if endpoint not in before]
        left = [endpoint for endpoint in before if endpoint not in now]
        for endpoint in left:
            endpoint.leave(self)
        if joined:
            self.changed.set()
        return joined, left

    # -- slots -----------------------------------------------------------------------------------------------------

    def pick(self, tried: Sequence[EndpointState], body: bytes = b"") -> EndpointState | None:
        """The endpoint for the next attempt, one that was not tried yet where there is one; None: none has a slot.

        The caller takes the slot (`take`), and gives it back afterwards.
        """
        if not tried and len(self.endpoints) == 1:
            only = self.endpoints[0]
            return only if only.up and (only.bound is None or only.pool.inflight < only.bound) else None
        if not any(endpoint in tried for endpoint in self.endpoints):
            # By request and not by attempt: retries in step with the turns would begin each request at the same one.
            self.turn += 1
        if self.plan.balance == "prefix_hash":
            return choose_by_prefix(self.endpoints, tried, prompt_prefix(body))
        return choose(self.endpoints, tried, self.turn, by_load=self.plan.balance == "least_inflight")

    def wait(self, waiter: Waiter) -> bool:
        """Queue the waiter for a slot; False if the queue is full."""
        if not self._waiting.put(waiter.key, waiter):
            return False
        if self.retired:
            for endpoint in self.endpoints:
                endpoint.users += [] if self in endpoint.users else [self]
        waiter.places += 1
        return True

    def forget(self, waiter: Waiter) -> None:
        """Remove the waiter from the queue."""
        self._waiting.remove(waiter.key, waiter)

    def leave(self, waiter: Waiter) -> None:
        """The waiter's client has gone. Pass on the slot that the waiter may have got in the same moment."""
        self.forget(waiter)
        granted = waiter.granted
        endpoint = granted.result() if granted.done() and not granted.cancelled() else None
        if endpoint is not None and waiter.by is self:
            endpoint.give_back()

    def hand_over(self) -> None:
        """Give free slots to the requests that are next. If no endpoint is up, end all waits here."""
        while self._waiting:
            is_up = any(endpoint.up for endpoint in self.endpoints)
            if is_up and not any(endpoint.is_free for endpoint in self.endpoints):
                return
            waiter = self._waiting.take()
            if waiter is None or waiter.granted.done():
                continue  # it has its answer, or was cancelled, and is about to leave
            chosen = self.pick(waiter.tried, waiter.body)
            if chosen is not None:
                chosen.take()
                waiter.by = self
            else:
                waiter.places -= 1
            if chosen is not None or not waiter.places:
                waiter.granted.set_result(chosen)

    def close(self) -> None:
        """Drop idle connections; requests in flight go on."""
        for endpoint in self.endpoints:
            endpoint.pool.close()
