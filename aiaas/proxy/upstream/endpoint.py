"""One address of a backend as it is now: its connections, its requests under way, and whether it is up.

The reports of probes and requests change its health. A client's 4xx or a client's leaving is never reported (a breaker
that trips on the client's own faults takes the fleet down).

    up --(unhealthy_after failures in a row)--> down --(healthy_after good probes)--> up

An endpoint starts as up: one that is slow to answer its first probe must not delay the first request. An engine that we
start ourselves starts as down, and only its supervisor turns it up or down.

After SIGTERM a vLLM refuses new connections and goes silent on its open ones, without closing them. So after a refused
probe, end the streams to that address on which nothing comes for SILENT_AFTER_REFUSAL. A stream that still delivers is
left alone: behind a ClusterIP the probe may have met another pod.

A server whose machine or network is gone does not even refuse: its probes time out. After `unhealthy_after` of them in
a row, end the streams that have been silent since the first of these began. An engine that hangs: `hangs.py`.

An endpoint whose config says `drain` is not up either, however healthy: it gets no new requests and finishes those that
it has. Its health is still followed, and not reported. It turns back with the config that drops `drain`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from aiaas.plan.model import EndpointPlan
from aiaas.proxy.request.served_models import NOTHING_LISTED, Listed
from aiaas.proxy.upstream.affinity import number_of
from aiaas.proxy.upstream.auto_bound import AutoBound
from aiaas.proxy.upstream.connection import Pool
from aiaas.proxy.upstream.dial import ClientTls

if TYPE_CHECKING:
    from aiaas.proxy.upstream.backends import BackendState

SILENT_AFTER_REFUSAL = 5.0  # seconds
PENDING_MOST = 2  # times max_pending_prefill; a prompt that would be more tokens is let in alone
BOUND_PER_RESERVED = 4  # slots of the bound for each slot of the reserve, at the least

HealthListener = Callable[["EndpointState", bool, str], None]
DrainListener = Callable[["EndpointState", str], None]


class Stream(Protocol):
    """A request under way at an endpoint."""

    def end_if_silent(self, since: float, why: str) -> None:
        """End it if nothing has come after `since` (the loop's time) although it was read."""

    def last_byte(self) -> float | None:
        """When a byte came last (the loop's time), if its text has begun and it is being read."""


class EndpointState:
    """One address: its pool, its requests under way, and whether it is up. `failures` and `successes` are in a row.

    healthy  by probes and requests, or by its supervisor
    up       gets new requests: healthy, and not draining
    emptying its server is about to go, or its config says so: `empty` was called

    backend  the one that names it in the Plan in force, else the last one that did: its settings hold
    users    whose waiting requests get its slots, the oldest first: `backend`, and those that a reload took out
    bound    the backend's max_inflight, None for any number; if that is `auto`, the bound of `auto`, once it is known
    suspect  called when a request has timed out in an engine that we started
    hangs    its streams stood still, and it has not written a token since; its `/health` alone does not bring it up
    lost     when the last probes began that timed out in a row, `unhealthy_after` of them at the most (the loop's time)
    lacks    the paths of the API that its engine does not have, as far as is known
    listed   the models that it lists; number is that of its URL, for `prefix_hash`
    problem  how these models differ from the config, or why they are unknown; empty if they agree
    since    when it came up, went down or began to drain (POSIX seconds), and the `reason` while it is down

    Where it has a bound:
    reserve       slots beyond the bound, for keys that have little in flight
    most_pending  prompt tokens: with so many pending, it is not free
    pending       prompt tokens of the requests under way whose first byte has not come
    reserved      how many of these requests the bound did not let in
    pending_reserved  the prompt tokens of those
    """

    __slots__ = (
        "auto",
        "backend",
        "bound",
        "emptying",
        "failures",
        "hangs",
        "healthy",
        "lacks",
        "listed",
        "lost",
        "most_pending",
        "number",
        "pending",
        "pending_reserved",
        "plan",
        "pool",
        "problem",
        "reason",
        "reserve",
        "reserved",
        "since",
        "streams",
        "successes",
        "suspect",
        "up",
        "users",
    )

    def __init__(self, backend: BackendState, plan: EndpointPlan, tls: ClientTls) -> None:
        self.pool = Pool(plan, backend.plan.connect_timeout, tls)
        self.streams: set[Stream] = set()
        self.healthy = backend.plan.engine is None
        self.emptying = False
        self.failures = self.successes = 0
        self.pending = self.reserved = self.pending_reserved = 0
        self.auto: AutoBound | None = None
        self.suspect: Callable[[], None] | None = None
        self.hangs = False
        self.lost: list[float] = []
        self.listed: Listed = NOTHING_LISTED
        self.problem = self.reason = ""
        self.since = time.time()
        self.lacks: frozenset[str] = frozenset()
        self.users: list[BackendState] = []
        self.plan = plan
        self.belong_to(backend, plan)

    def belong_to(self, backend: BackendState, plan: EndpointPlan) -> None:
        """Take the settings of the backend that names it now. Slots, connections and health stay."""
        self.backend = backend
        self._set_bound()
        self.most_pending = backend.plan.max_pending_prefill
        if plan.drain != self.draining:
            self.since = time.time()
        if plan.trust != self.pool.dialer.trust:  # verify the server again
            self.pool.dialer.trust = plan.trust
            self.pool.drop_idle()
        self.plan = self.pool.endpoint = plan
        self.up = self.healthy and not plan.drain
        self.number = number_of(plan.url.encode())
        self.pool.connect_timeout = backend.plan.connect_timeout
        self.pool.closed = False
        if backend not in self.users:
            self.users.append(backend)

    def use_bound(self, auto: AutoBound | None) -> None:
        """Take a bound that was found from the endpoint's metrics; None: none could be found."""
        self.auto = auto
        self._set_bound()
        self.hand_over()

    def _set_bound(self) -> None:
        bound = self.backend.plan.max_inflight
        if bound == "auto":
            bound = None if self.auto is None else self.auto.places
        self.bound = bound
        # Where the bound is small, a few more slots would make nonsense of it.
        self.reserve = min(self.backend.plan.fair.reserve, (bound or 0) // BOUND_PER_RESERVED)

    @property
    def backend_name(self) -> str:
        """The backend that it belongs to."""
        return self.backend.plan.name

    @property
    def draining(self) -> bool:
        """Whether the config says that it gets no new requests."""
        return self.plan.drain

    def is_free(self, tokens: int = 0) -> bool:
        """Whether the bound lets a request with a prompt of so many tokens in now."""
        bound = self.bound
        if bound is None or not self.up:
            return self.up
        if self.pool.inflight >= bound:
            return False
        if self._can_read(tokens):
            return True
        self.backend.catch_up()
        return self._can_read(tokens)

    def _can_read(self, tokens: int) -> bool:
        """Whether a prompt may join those that wait for their first token. A short one that comes after it then waits
        for PENDING_MOST times the bound at the most, or for one long prompt: not for a long one behind another."""
        if self.pending >= self.most_pending:
            return False
        # Without those of the reserve: there may always be one, and a long prompt would never be let in.
        before = self.pending - self.pending_reserved
        return not before or before + tokens <= PENDING_MOST * self.most_pending

    @property
    def has_reserve(self) -> bool:
        """Whether a request of a key under its share may go there now, although it is not free."""
        if not self.up or self.bound is None:
            return False
        return self.pool.inflight < self.bound + self.reserve and self.reserved < self.reserve

    def __repr__(self) -> str:
        return f"<EndpointState {self.backend_name} {self.plan.url} {'up' if self.up else 'down'} {self.pool!r}>"

    def take(self) -> None:
        """Take a slot, for an exchange, or for the request that is next in the queue."""
        self.pool.inflight += 1

    def give_back(self) -> None:
        """An exchange has ended: give its slot to the next waiting request."""
        self.pool.inflight -= 1
        for backend in self.users:
            if backend.fair.length or backend.resuming:
                backend.hand_over()

    def leave(self, backend: BackendState) -> None:
        """`backend` does not name it any more. Its requests go on, and its idle connections end."""
        if backend in self.users:
            self.users.remove(backend)
        if self.backend is backend:
            self.pool.close()

    def report_success(self, *, probe: bool) -> None:
        """An answer came, or a probe was good. Only probes bring an endpoint back up."""
        self.failures = 0
        if probe:
            self.hangs = False
            self.emptying = self.draining
        if probe and not self.healthy:
            self.successes += 1
            if self.successes >= self.backend.plan.health.healthy_after:
                self._turn(True, "its health check answers again")

    def report_failure(self, reason: str) -> None:
        """A connect failure, a reset, a dying engine, a bad probe: the backend's own fault, never a client's."""
        if self.backend.plan.engine is not None:
            return  # only its supervisor could turn it up again
        self.successes = 0
        self.failures += 1
        if self.healthy and self.failures >= self.backend.plan.health.unhealthy_after:
            self._turn(False, reason)

    def report_timeout(self) -> None:
        """Have the engine checked if we started it; any other address has its probes."""
        if self.suspect is not None:
            self.suspect()

    def report_refused_probe(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing listens there any more: end the streams that stay silent from now on."""
        refused_at = loop.time()
        why = "its address refuses connections, and it has fallen silent"
        loop.call_at(refused_at + SILENT_AFTER_REFUSAL, self._end_silent, refused_at, why)

    def report_lost_probe(self, began: float, now: float) -> None:
        """A probe that began at `began` (the loop's time) got no answer in time."""
        needed = self.backend.plan.health.unhealthy_after
        self.lost = [*self.lost, began][-needed:]
        if len(self.lost) == needed:
            since = min(self.lost[0], now - SILENT_AFTER_REFUSAL)
            self._end_silent(since, "its address does not answer, and it has fallen silent")

    def report_hang(self, reason: str) -> None:
        """Its streams stand still: take it down at once. An engine that we started is looked at by its supervisor."""
        if self.backend.plan.engine is not None:
            self.report_timeout()
            return
        self.hangs = True
        self.successes = 0
        if self.healthy:
            self._turn(False, reason)

    def empty(self, reason: str) -> None:
        """Its server is to go: by the config, or since a probe was refused or got 503 while it has streams.

        Called once, until a probe is good again. Moving of resumable streams hooks in here, as `backend.emptied`:
        `streams` has those under way, which may still flow. Behind a ClusterIP the refused probe may have met another
        pod.
        """
        if not self.emptying:
            self.emptying = True
            self.backend.emptied(self, reason)

    def _end_silent(self, since: float, why: str) -> None:
        for stream in list(self.streams):
            stream.end_if_silent(since, why)

    def set_up(self, up: bool, reason: str) -> None:
        """Set the state that the engine's supervisor reports."""
        if up != self.healthy:
            self._turn(up, reason)
        elif not up:  # an engine that has never been healthy dies for a reason, too
            self.reason = reason

    def _turn(self, healthy: bool, reason: str) -> None:
        self.healthy, self.reason, self.since = healthy, "" if healthy else reason, time.time()
        self.up = healthy and not self.draining
        if not self.draining:
            self.backend.listener(self, healthy, reason)
        self.hand_over()

    def hand_over(self) -> None:
        """Give room that has come free to the requests that are next."""
        for backend in self.users:
            if backend.fair.length or backend.resuming:
                backend.hand_over()
