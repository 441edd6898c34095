"""The backends as they are now: their endpoints, and the choice of one.

Choosing is a pure function over the endpoints' states (`choose.py`); whose turn it is, is another (`fair_share.py`).

Where a backend has a bound (`max_inflight`), requests wait for a slot of any of its endpoints. A slot that comes free
goes to the next waiting request at once, so while a request waits nothing is free, and a later one cannot overtake it.
Two more rules keep a key with few requests from waiting for those with many:

- An endpoint with `max_pending_prefill` prompt tokens that wait for their first token is not free either: a short
  prompt behind many long ones would wait for all of them, in the engine's own queue. Nor is it free for a long prompt
  while another one waits: with 3,000 tokens before 9,000, a short prompt's p99 was 1.3 times the best possible.
- A few slots beyond the bound are a reserve, for keys that are under their share. A prompt that came in by the reserve
  need not wait until others have been read.

The endpoints of a `dns` backend follow what its name resolves to (`resolve.py`). One that has left gets no new request;
those that it has go on.

State outlives a Plan: an address keeps its connections, slots and health, a backend its queue and its turn. A reload
only replaces their settings (`BackendState.follow`, `fleet.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Iterable, Sequence

from aiaas.plan.model import BackendPlan, EndpointPlan
from aiaas.proxy.request.visit import Visit
from aiaas.proxy.upstream.choose import choose
from aiaas.proxy.upstream.dial import ClientTls
from aiaas.proxy.upstream.endpoint import DrainListener, EndpointState, HealthListener
from aiaas.proxy.upstream.fair_share import FairShare
from aiaas.proxy.upstream.kept import KeptMemory
from aiaas.proxy.upstream.sessions import Sessions
from aiaas.proxy.upstream.wait_estimate import GrantRates
from aiaas.proxy.upstream.waiter import Grant, Waiter


class BackendState:
    """A backend's endpoints, and the requests that wait for them.

    listener   called whenever an endpoint goes down or comes up
    emptied    called when an endpoint's server is about to go, and its streams should (`EndpointState.empty`)
    unclaimed  an endpoint at a URL that no backend of the Plan in force has any more, None without one
    retired    taken out by a reload; requests that began before still use it
    fair       who waits, and what each key has been served
    rates      how often those that wait get a slot
    sessions   where each session's prompts are cached, for `balance: auto`
    kept       the memory for the text of open streams, of all backends with `resume`
    resuming   streams that broke off and wait for another endpoint: they are served before `fair`
    no_resume_until  the loop's time: the breaker of resumes (`resume.py`)
    turn       counts requests, for round robin and for spreading ties
    mixed      paths that some of its endpoints lack and others may have
    changed    set when endpoints have joined; `probe_forever` clears it
    """

    __slots__ = (
        "_leaving",
        "_tls",
        "_unclaimed",
        "changed",
        "emptied",
        "endpoints",
        "fair",
        "kept",
        "listener",
        "mixed",
        "no_resume_until",
        "plan",
        "rates",
        "resuming",
        "retired",
        "sessions",
        "turn",
    )

    def __init__(
        self,
        plan: BackendPlan,
        listener: HealthListener,
        tls: ClientTls | None = None,
        unclaimed: Callable[[str], EndpointState | None] = lambda _url: None,
        emptied: DrainListener = lambda _endpoint, _reason: None,
        kept: KeptMemory | None = None,
    ) -> None:
        self.plan = plan
        self.listener = listener
        self.emptied = emptied
        self.retired = False
        self.changed = asyncio.Event()
        self.turn = 0
        self.kept = kept or KeptMemory(0)
        self.resuming: list[Waiter] = []
        self.no_resume_until = -math.inf
        self.endpoints: tuple[EndpointState, ...] = ()
        self.mixed: frozenset[str] = frozenset()
        self._leaving: list[EndpointState] = []
        self._tls = tls or ClientTls()
        self._unclaimed = unclaimed
        self.fair: FairShare[Waiter] = FairShare(plan.queue.size, plan.fair.output_weight, plan.fair.credit)
        self.rates = GrantRates()
        self.sessions = Sessions()
        self._place(plan.endpoints)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return self.fair.length

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
        self.catch_up()
        named = {endpoint.url for endpoint in plan.endpoints}
        if plan.dns is None:
            self._place([endpoint.plan for endpoint in self.endpoints if endpoint.plan.url in named])

    def follow(self, plan: BackendPlan) -> None:
        """Take another Plan's settings. Endpoints that it names as well stay as they are, and so do those that wait;
        the caller calls `hand_over` once all backends have followed.

        Where it is found by another name from now on, the endpoints stay until that name has its first answer.
        """
        self.catch_up()
        before, self.plan, self.retired = self.plan, plan, False
        fair = self.fair
        fair.size, fair.output_weight, fair.credit = plan.queue.size, plan.fair.output_weight, plan.fair.credit
        if plan.dns is None:
            self._place(plan.endpoints)
        elif before.dns is not None and before.dns.url == plan.dns.url:
            self._place([plan.dns.at(endpoint.plan.host) for endpoint in self.endpoints])
        else:
            self._place([endpoint.plan for endpoint in self.endpoints])

    def retire(self) -> None:
        """A reload has taken it out. Its requests go on, and so do those that wait; idle connections end."""
        self.catch_up()
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
        self.compare_paths()
        self.sessions.place(self.endpoints)
        self._leaving = [endpoint for endpoint in own.values() if endpoint not in now]
        joined = [endpoint for endpoint in now if endpoint not in before]
        left = [endpoint for endpoint in before if endpoint not in now]
        for endpoint in left:
            endpoint.leave(self)
        if joined:
            self.changed.set()
        return joined, left

    # -- the paths that engines lack -------------------------------------------------------------------------------

    def compare_paths(self) -> None:
        """Find the paths that only some endpoints lack."""
        lacks = [endpoint.lacks for endpoint in self.endpoints]
        self.mixed = frozenset[str]().union(*lacks).difference(frozenset.intersection(*lacks)) if lacks else frozenset()

    def able(self, path: str) -> Sequence[EndpointState]:
        """The endpoints for a request to `path`: those that may have it, or all of them if there is none."""
        if path not in self.mixed:
            return self.endpoints
        return [endpoint for endpoint in self.endpoints if path not in endpoint.lacks]

    # -- slots -----------------------------------------------------------------------------------------------------

    def pick(
        self, tried: Sequence[EndpointState], visit: Visit | None = None, tokens: int = 0, path: str = ""
    ) -> EndpointState | None:
        """The endpoint for the next attempt, one that was not tried yet where there is one; None: none is free for a
        prompt of so many tokens. `path` is the request's; without it no endpoint lacks it.

        The caller begins the attempt (`begin`), and gives the slot back afterwards.
        """
        if not tried and len(self.endpoints) == 1:
            only = self.endpoints[0]
            bound = only.bound
            pending = only.pending
            room = not pending or pending + tokens <= only.most_pending
            if only.up and (bound is None or (room and only.pool.inflight < bound)):
                return only  # nearly always, and without another call
            return only if only.is_free(tokens) else None
        if not tried or not any(endpoint in tried for endpoint in self.endpoints):
            # By request and not by attempt: retries in step with the turns would begin each request at the same one.
            self.turn += 1
        if self.plan.balance == "auto" and path not in self.mixed:
            return self.sessions.choose(tried, visit, self.turn, tokens)
        by_load = self.plan.balance != "round_robin"
        return choose(self.able(path), tried, self.turn, by_load=by_load, tokens=tokens)

    def pick_reserved(self, tried: Sequence[EndpointState], key: Hashable, path: str = "") -> EndpointState | None:
        """As `pick`, among the endpoints whose reserve has room; None if the key is not under its share, too."""
        self.catch_up()
        open_ones = [endpoint for endpoint in self.able(path) if endpoint.has_reserve]
        if not open_ones:
            return None
        slots = sum(endpoint.bound or 0 for endpoint in self.endpoints if endpoint.up)
        if not self.fair.is_under_share(key, slots):
            return None
        return min(open_ones, key=lambda endpoint: (endpoint in tried, endpoint.pool.inflight))

    def begin(
        self,
        endpoint: EndpointState,
        key: Hashable,
        input_tokens: int = 0,
        bound: int | None = None,
        weight: float = 1.0,
    ) -> Grant | None:
        """Take a slot of `endpoint` for an attempt, and charge it if there is a bound; arguments as in Demand."""
        grant = None
        if endpoint.bound is not None:
            reserved = not endpoint.is_free(input_tokens)
            grant = Grant(endpoint, self.fair, key, input_tokens, bound, weight, reserved=reserved)
            grant.charge()
            endpoint.pending += input_tokens
            if reserved:
                endpoint.reserved += 1
                endpoint.pending_reserved += input_tokens
        endpoint.take()
        return grant

    def catch_up(self) -> None:
        """Charge the grants from when nothing waited, and let timers count the prompts whose first byte tells nothing:
        somebody asks for them now."""
        fair = self.fair
        if fair.uncharged:
            grants, fair.uncharged = fair.uncharged, {}
            for grant, began in grants.items():
                grant.charge()
                if began < math.inf:
                    grant.start_timer(began)

    def wait(self, waiter: Waiter) -> bool:
        """Queue the waiter for a slot; False if the queue is full. It may have its slot at once, of the reserve."""
        fair, key, user = self.fair, waiter.demand.key, waiter.demand.user
        self.catch_up()
        if fair.length == fair.size and (crowded := fair.crowded(key, user)) is not None:
            fair.remove(*crowded)
            crowded[1].displace()
        if not fair.put(key, waiter, user):
            return False
        self.rates.begin(key, waiter.now())
        if self.retired:
            for endpoint in self.endpoints:
                endpoint.users += [] if self in endpoint.users else [self]
        waiter.places += 1
        self.hand_over()
        return True

    def forget(self, waiter: Waiter) -> None:
        """Remove the waiter from the queue."""
        self._remove(waiter)
        if self.fair.length:  # the next one may be under its share
            self.hand_over()

    def _remove(self, waiter: Waiter) -> None:
        key = waiter.demand.key
        self.fair.remove(key, waiter)
        if not self.fair.ahead(key):
            self.rates.forget(key)

    def leave(self, waiter: Waiter) -> None:
        """The waiter's client has gone. Pass on the slot that the waiter may have got in the same moment."""
        self.forget(waiter)
        granted = waiter.granted
        endpoint = granted.result() if granted.done() and not granted.cancelled() else None
        if endpoint is not None and waiter.by is self:
            if waiter.grant is not None:
                waiter.grant.settle(0, None)
            endpoint.give_back()

    def hand_over(self) -> None:
        """Give free slots to the requests that are next. If no endpoint is up, end all waits here."""
        fair = self.fair
        for stream in self.resuming:
            self.serve_resumed(stream)
        while (waiter := fair.head()) is not None:
            if waiter.granted.done():  # it has its answer, or was cancelled, and is about to leave
                self._remove(waiter)
                continue
            chosen = None
            able, asked = self.able(waiter.path), waiter.demand
            if any(endpoint.up for endpoint in able):
                chosen = self.pick(waiter.tried, waiter.visit, asked.input_tokens, waiter.path)
                if chosen is None:
                    chosen = self.pick_reserved(waiter.tried, asked.key, waiter.path)
                if chosen is None:
                    return
            if chosen is not None:
                self.rates.granted(waiter.demand.key, waiter.now())
            self._remove(waiter)
            if chosen is not None:
                waiter.grant = self.begin(chosen, asked.key, asked.input_tokens, asked.bound, asked.weight)
                waiter.by = self
            else:
                waiter.places -= 1
            if chosen is not None or not waiter.places:
                waiter.granted.set_result(chosen)

    def serve_resumed(self, waiter: Waiter) -> None:
        """Give a stream that broke off a slot of an endpoint that it has not tried; None if no such one is up."""
        if waiter.granted.done():
            return
        others = [e for e in self.able(waiter.path) if e.up and e not in waiter.tried]
        free = [endpoint for endpoint in others if endpoint.is_free()]
        if free:
            chosen, asked = min(free, key=lambda endpoint: endpoint.pool.inflight), waiter.demand
            waiter.grant = self.begin(chosen, asked.key, asked.input_tokens, asked.bound, asked.weight)
            waiter.granted.set_result(chosen)
        elif not others:
            waiter.granted.set_result(None)

    def close(self) -> None:
        """Drop idle connections; requests in flight go on."""
        for endpoint in self.endpoints:
            endpoint.pool.close()
