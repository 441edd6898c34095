"""A gateway before the engine on a virtual clock (`virtual_engine.py`): aiaas's own queue, and its bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aiaas.proxy.upstream.auto_bound import first_bound, next_bound
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.waiter import Demand, Grant, Waiter
from tests.proxy.conftest import config_of, plan_of
from tests.proxy.upstream.virtual_engine import Request, Site


class Granted(asyncio.Future[EndpointState | None]):
    """A future that notes when it has its result, as its loop never runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, done: Callable[[], None]) -> None:
        super().__init__(loop=loop)
        self.noted = done

    def set_result(self, result: EndpointState | None) -> None:
        """As in Future."""
        super().set_result(result)
        self.noted()


class Fair:
    """The gateway's own queue, as `forward.py` uses it, with `max_inflight: bound`."""

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop, bound: int | str) -> None:
        fields = {"max_inflight": bound, "queue": {"size": 1000}}
        plan = plan_of(config_of(["http://127.0.0.1:1"], fields, {})).backends[0]
        self.site = site
        self.loop = loop
        self.backend = BackendState(plan, lambda _endpoint, _up, _reason: None)
        (self.endpoint,) = self.backend.endpoints
        self.granted: list[tuple[Waiter, Request]] = []
        self.grants: dict[Request, Grant] = {}

    def arrive(self, request: Request) -> None:
        """As in Gateway."""
        demand = Demand(request.key, request.prompt, 4096)
        endpoint = None if self.backend.waiting else self.backend.pick((), None, request.prompt)
        if endpoint is None and not self.backend.waiting:
            endpoint = self.backend.pick_reserved((), request.key)
        if endpoint is not None:
            grant = self.backend.begin(endpoint, request.key, request.prompt, 4096)
            assert grant is not None
            self.begin(request, grant)
            return
        waiter = Waiter(demand, (), None, Granted(self.loop, lambda: self.granted.append((waiter, request))))
        assert self.backend.wait(waiter)
        self.wake()

    def begin(self, request: Request, grant: Grant) -> None:
        """A request has its slot."""
        self.grants[request] = grant
        self.site.send(request)

    def wake(self) -> None:
        """Requests that were granted a slot take it."""
        granted, self.granted = self.granted, []
        for waiter, request in granted:
            assert waiter.grant is not None
            self.begin(request, waiter.grant)

    def prompt_read(self, request: Request) -> None:
        """As in Gateway."""
        self.grants[request].prompt_read()
        self.wake()

    def end(self, request: Request) -> None:
        """As in Gateway."""
        grant = self.grants.pop(request)
        grant.settle(request.prompt, request.output)
        grant.endpoint.give_back()
        self.wake()

    def look(self) -> None:
        """Find the bound from the engine's metrics, as `bound_watch.py` does once a second."""
        load, now, auto = self.site.load(), self.site.now, self.endpoint.auto
        if auto is None:
            state = first_bound(load, now)
        else:
            waits = bool(self.backend.waiting)
            state = next_bound(auto, load, now, own=self.endpoint.pool.inflight, waits=waits)
        self.endpoint.use_bound(state)
        self.wake()


class Several:
    """Gateways that do not know of each other. Each gets requests from one second of the run on until another, in turn
    with the others, and then ends those that it has; `idle`: it looks at the metrics before that, too."""

    def __init__(self, gateways: Sequence[tuple[Fair, float, float]], *, idle: bool = False) -> None:
        self.gateways = gateways
        self.idle = idle
        self.turn = 0
        self.of: dict[Request, Fair] = {}

    def arrive(self, request: Request) -> None:
        """As in Gateway."""
        there = [gateway for gateway, begins, ends in self.gateways if begins <= gateway.site.now < ends]
        self.turn += 1
        self.of[request] = there[self.turn % len(there)]
        self.of[request].arrive(request)

    def prompt_read(self, request: Request) -> None:
        """As in Gateway."""
        self.of[request].prompt_read(request)

    def end(self, request: Request) -> None:
        """As in Gateway."""
        self.of.pop(request).end(request)

    def look(self) -> None:
        """Each finds its own bound."""
        for gateway, begins, _ in self.gateways:
            if self.idle or begins <= gateway.site.now:
                gateway.look()
