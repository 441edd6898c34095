"""aiaas.proxy.upstream.fleet: slots, health, queues and turns outlive a reload."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.plan.model import BackendPlan
from aiaas.proxy.client.handler import with_pauses
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.connection import Failure
from aiaas.proxy.upstream.dial import ClientTls
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.fleet import Fleet
from aiaas.proxy.upstream.waiter import Demand, Grant, Waiter
from tests.certificate import self_signed
from tests.fakes.vllm import DONE, LAST_CHUNK, STREAM_HEAD, FakeVllm, Send, Wait, chunk, error_answer, token_event
from tests.proxy.conftest import Raw, Running, StartFake, StartGateway, config_of, plan_of
from tests.waiting import until

X, Y, Z = (f"http://127.0.0.1:{port}" for port in (1, 2, 3))
STREAM = {"model": "m", "messages": [], "stream": True}


def plans(**backends: Any) -> tuple[BackendPlan, ...]:
    """The backends of a config; each serves a model of its own unless it says otherwise."""
    return compiled(json.dumps({name: {"models": [name], **backend} for name, backend in backends.items()}))


@cache
def compiled(backends: str) -> tuple[BackendPlan, ...]:
    """Each config is compiled once, however often the tests below draw it."""
    return plan_of({"backends": json.loads(backends)}).backends


class Site:
    """A fleet with requests at it, as `forward` makes them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **backends: Any) -> None:
        self.loop = loop
        self.lines: list[bytes] = []
        self.metrics = Metrics()
        self.log = JsonLog(self.lines.append, lambda: 0.0, "debug")
        self.fleet = Fleet(self.log, self.metrics, ClientTls())
        self.running: list[EndpointState] = []
        self.grants: list[Grant] = []
        self.waiting: list[tuple[BackendState, Waiter]] = []
        self.reload(**backends)

    def reload(self, **backends: Any) -> None:
        """Apply another config's backends."""
        self.fleet.follow(plans(**backends))

    def endpoint(self, name: str, place: int = 0) -> EndpointState:
        """An endpoint of a backend in force."""
        return self.fleet.backends[name].endpoints[place]

    def arrive(self, name: str, count: int = 1) -> None:
        """Requests for a backend in force: they run, wait, or are refused."""
        for _ in range(count):
            self.meet(self.fleet.backends[name])

    def meet(self, backend: BackendState) -> None:
        """A request for a backend, of any Plan."""
        endpoint = backend.pick(())
        if endpoint is not None:
            self.begin(endpoint, backend.begin(endpoint, "key"))
            return
        waiter = Waiter(Demand("key"), (), None, self.loop.create_future())
        if any(endpoint.up for endpoint in backend.endpoints) and backend.wait(waiter):
            self.waiting.append((backend, waiter))

    def begin(self, endpoint: EndpointState, grant: Grant | None) -> None:
        """A request has a slot."""
        self.running.append(endpoint)
        self.grants += [grant] if grant is not None else []

    def finish(self, endpoint: EndpointState) -> None:
        """One request ends."""
        self.running.remove(endpoint)
        grant = next((grant for grant in self.grants if grant.endpoint is endpoint), None)
        if grant is not None:
            self.grants.remove(grant)
            grant.settle(1, 1)
        endpoint.give_back()
        self.wake()

    def wake(self) -> None:
        """Requests that got an answer take it."""
        for backend, waiter in list(self.waiting):
            if waiter.granted.done():
                self.waiting.remove((backend, waiter))
                backend.forget(waiter)
                if (endpoint := waiter.granted.result()) is not None:
                    assert waiter.by is backend
                    self.begin(endpoint, waiter.grant)

    def at(self, url: str) -> int:
        """How many requests run at an address."""
        return sum(endpoint.plan.url == url for endpoint in self.running)

    def series(self) -> dict[str, float]:
        """The endpoints that the metrics show, and whether they are up."""
        lines = [line for line in self.metrics.expose().decode().splitlines() if line.startswith("aiaas_endpoint_up{")]
        return {line.split("{")[1].split("}")[0]: float(line.split("} ")[1]) for line in lines}


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop to make futures of; it never runs."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


# -- slots ---------------------------------------------------------------------------------------------------------

FOUR: dict[str, Any] = {"url": X, "max_inflight": 4, "models": ["m"]}
# The result of a reload of {"a": FOUR}, with 4 requests at X; then 8 more for `name`; how many may run at X.
RELOADS: dict[str, tuple[dict[str, Any], str, int]] = {
    "another timeout": ({"a": FOUR | {"timeout": "9s"}}, "a", 4),
    "another connect_timeout": ({"a": FOUR | {"connect_timeout": "9s"}}, "a", 4),
    "another health check": ({"a": FOUR | {"health": {"path": "/v1/models", "interval": "1s"}}}, "a", 4),
    "another balance": ({"a": FOUR | {"balance": "round_robin"}}, "a", 4),
    "another queue": ({"a": FOUR | {"queue": {"size": 3, "max_wait": "1s"}}}, "a", 4),
    "another path": ({"a": FOUR | {"endpoints": ["/v1/completions"]}}, "a", 4),
    "other models": ({"a": FOUR | {"models": ["n"]}}, "a", 4),
    "one more model": ({"a": FOUR | {"models": [{"name": "m"}, {"name": "n"}]}}, "a", 4),
    "a smaller bound": ({"a": FOUR | {"max_inflight": 2}}, "a", 4),
    "a larger bound": ({"a": FOUR | {"max_inflight": 6}}, "a", 6),
    "no bound": ({"a": FOUR | {"max_inflight": None}}, "a", 12),
    "another name": ({"b": FOUR}, "b", 4),
    "another name with another bound": ({"b": FOUR | {"max_inflight": 5}}, "b", 5),
    "moved to a backend that was there": ({"a": FOUR | {"url": Z}, "b": FOUR | {"url": X}}, "b", 4),
    "moved to a backend above": ({"b": FOUR | {"url": X}, "a": FOUR | {"url": Z}}, "b", 4),
    "swapped": ({"a": FOUR | {"url": Y}, "b": FOUR | {"url": X}}, "b", 4),
}


@pytest.mark.parametrize(("after", "name", "most"), RELOADS.values(), ids=RELOADS)
def test_slots_survive_a_reload(loop: asyncio.AbstractEventLoop, after: dict[str, Any], name: str, most: int) -> None:
    """The engine behind an address never gets more than the bound, whatever else of its backend changes."""
    site = Site(loop, a=FOUR, b=FOUR | {"url": Y, "models": ["other"]})
    site.arrive("a", 4)
    before = site.endpoint("a")
    site.reload(**after)
    assert site.endpoint(name) is before
    site.arrive(name, 8)
    assert site.at(X) == before.pool.inflight == most
    while site.running:
        site.finish(site.running[0])
        assert site.at(X) <= max(most - 1, before.bound or most)
    assert (site.waiting, before.pool.inflight) == ([], 0)


def test_two_backends_of_one_address_have_slots_of_their_own(loop: asyncio.AbstractEventLoop) -> None:
    """A backend that is added beside the first one counts for itself."""
    site = Site(loop, a=FOUR)
    site.arrive("a", 4)
    site.reload(a=FOUR, b=FOUR)
    site.arrive("b", 8)
    assert site.at(X) == 8
    assert site.endpoint("a") is not site.endpoint("b")


def test_an_address_that_is_back_has_its_slots(loop: asyncio.AbstractEventLoop) -> None:
    """While the address is away its requests go on; once they have ended it is forgotten."""
    both = {"urls": [X, Y], "max_inflight": 1, "models": ["m"]}
    site = Site(loop, a=both)
    site.arrive("a", 2)
    x = next(endpoint for endpoint in site.running if endpoint.plan.url == X)
    site.reload(a=both | {"urls": [Y]})
    assert list(site.fleet.backends["a"].leaving) == [x]
    site.reload(a=both)
    assert site.endpoint("a") is x
    site.arrive("a")
    assert (site.at(X), len(site.waiting)) == (1, 1)
    site.reload(a=both | {"urls": [Y]})
    site.finish(x)
    site.reload(a=both)
    assert site.endpoint("a") is not x


def test_a_backend_that_is_back_is_the_same(loop: asyncio.AbstractEventLoop) -> None:
    """While the backend has requests; otherwise it begins anew."""
    other = {"url": Y}
    site = Site(loop, a=FOUR, b=other)
    site.arrive("a", 5)
    before = site.fleet.backends["a"]
    site.reload(b=other)
    assert (before.retired, before.is_busy) == (True, True)
    site.reload(a=FOUR, b=other)
    assert site.fleet.backends["a"] is before
    assert not before.retired
    site.arrive("a")
    assert (site.at(X), len(site.waiting)) == (4, 2)
    while site.running:
        site.finish(site.running[0])
    site.reload(a=FOUR | {"timeout": "9s"}, b=other)
    assert (site.endpoint("a").users, site.endpoint("a").pool.closed) == ([before], False)
    site.reload(b=other)
    site.reload(b=other)  # the first that finds nobody there
    site.reload(a=FOUR, b=other)
    assert site.fleet.backends["a"] is not before


def test_requests_wait_on_through_a_reload(loop: asyncio.AbstractEventLoop) -> None:
    """In their order, under the new limit of the queue; a smaller limit sends no request away."""
    one = FOUR | {"max_inflight": 1, "queue": {"size": 3}}
    site = Site(loop, a=one)
    site.arrive("a", 4)
    waiting = [waiter for _, waiter in site.waiting]
    site.reload(a=one | {"queue": {"size": 1}})
    assert not any(waiter.granted.done() for waiter in waiting)
    site.arrive("a")
    assert len(site.waiting) == 3
    for count in range(3):
        site.finish(site.running[0])
        assert [waiter for _, waiter in site.waiting] == waiting[count + 1 :]
    site.reload(a=one | {"queue": {"size": 5}})
    site.arrive("a", 9)
    assert len(site.waiting) == 5


@pytest.mark.parametrize(
    ("after", "running"),
    [({"max_inflight": 3}, 3), ({"max_inflight": None}, 5), ({"urls": [X, Y]}, 2), ({"urls": [Y]}, 2)],
    ids=["a larger bound", "no bound", "one more address", "another address"],
)
def test_waiting_request_gets_slots_added_by_a_reload(
    loop: asyncio.AbstractEventLoop, after: dict[str, Any], running: int
) -> None:
    """Before any later request."""
    one = {"urls": [X], "max_inflight": 1, "models": ["m"]}
    site = Site(loop, a=one)
    site.arrive("a", 5)
    site.reload(a=one | after)
    site.wake()
    assert (len(site.running), len(site.waiting)) == (running, 5 - running)


@pytest.mark.parametrize("after", [{"b": FOUR | {"max_inflight": 1}}, {"a": FOUR | {"models": ["n"]}}])
def test_request_at_a_retired_backend_gets_its_turn(loop: asyncio.AbstractEventLoop, after: dict[str, Any]) -> None:
    """At the address that it began with, before requests that wait at the backend that took the address over."""
    site = Site(loop, a=FOUR | {"max_inflight": 1})
    site.arrive("a", 3)
    retired = site.fleet.backends["a"]
    (name,) = after
    site.reload(**{name: after[name] | {"max_inflight": 1}})
    assert retired.retired
    site.arrive(name, 2)
    order = []
    while site.waiting:
        before = list(site.waiting)
        site.finish(site.running[0])
        assert site.at(X) == 1
        (got,) = [one for one in before if one not in site.waiting]
        order.append(got[0] is retired)
    assert order == [True, True, False, False]


def test_late_request_at_a_dissolved_backend_gets_a_new_bound(loop: asyncio.AbstractEventLoop) -> None:
    """A reload that lifts the bound of the endpoint that it waits for wakes it, although its backend is gone."""
    one = {"urls": [X], "max_inflight": 1, "models": ["m"]}
    site = Site(loop, a=one)
    old = site.fleet.backends["a"]
    site.reload(b=one | {"models": ["n"]})
    site.reload(b=one | {"models": ["n"], "timeout": "9s"})
    site.arrive("b")
    site.meet(old)
    assert [backend for backend, _ in site.waiting] == [old]
    site.reload(b=one | {"models": ["n"], "max_inflight": 2})
    site.wake()
    assert (site.at(X), site.waiting) == (2, [])


def test_a_late_retry_at_a_dissolved_backend_is_heard(loop: asyncio.AbstractEventLoop) -> None:
    """The request paused before its retry while nobody used the backend, and waits there now."""
    one = FOUR | {"max_inflight": 1}
    site = Site(loop, a=one)
    retired = site.fleet.backends["a"]
    site.reload(b=one)
    site.reload(b=one | {"timeout": "9s"})
    assert retired not in site.endpoint("b").users
    site.arrive("b")
    site.meet(retired)
    assert len(site.waiting) == 1
    site.finish(site.running[0])
    assert (len(site.waiting), site.at(X)) == (0, 1)


def test_a_retired_backend_is_busy_while_somebody_is_there(loop: asyncio.AbstractEventLoop) -> None:
    """While a request waits, or is at an endpoint that the backend has or had, unless another one has it now."""
    both = {"urls": [X, Y], "max_inflight": 1, "models": ["m"]}
    site = Site(loop, a=both)
    backend = site.fleet.backends["a"]
    assert not backend.is_busy
    site.arrive("a", 2)
    site.reload(a=both | {"urls": [Y]})
    y, x = sorted(site.running, key=lambda endpoint: endpoint.plan.url, reverse=True)
    site.finish(y)
    assert backend.is_busy  # by x, which has left it
    site.arrive("a")
    site.finish(x)
    assert backend.is_busy  # by y
    site.reload(b=both | {"urls": [Y]})
    assert (backend.retired, backend.is_busy, site.endpoint("b") is y) == (True, False, True)
    site.meet(backend)
    assert (len(site.waiting), backend.is_busy) == (1, True)


def test_an_endpoint_that_moved_is_no_longer_the_others(loop: asyncio.AbstractEventLoop) -> None:
    """Its first backend neither probes it nor takes it back while the second one names it."""
    site = Site(loop, a=FOUR, b={"url": Y})
    site.arrive("a", 5)
    x = site.endpoint("a")
    site.reload(a=FOUR | {"url": Z}, b=FOUR | {"url": X})
    assert site.endpoint("b") is x
    assert list(site.fleet.backends["a"].leaving) == []
    site.reload(a=FOUR, b=FOUR | {"url": X})
    assert site.endpoint("b") is x
    assert site.endpoint("a") is not x
    assert (x.backend, x.pool.closed, x.users) == (site.fleet.backends["b"], False, [site.fleet.backends["b"]])


def test_backend_that_returns_takes_nothing_from_another(loop: asyncio.AbstractEventLoop) -> None:
    """Another backend has its endpoint by then."""
    site = Site(loop, a=FOUR)
    site.arrive("a", 5)
    a, x = site.fleet.backends["a"], site.endpoint("a")
    site.reload(b=FOUR)
    site.reload(a=FOUR, b=FOUR)
    assert site.fleet.backends["a"] is a
    assert site.endpoint("b") is x
    assert site.endpoint("a") is not x
    assert (x.backend, x.pool.closed) == (site.fleet.backends["b"], False)


# -- health and turns ----------------------------------------------------------------------------------------------


def test_draining_replica_gets_no_new_request(loop: asyncio.AbstractEventLoop) -> None:
    """From the reload on; what it has goes on, waiting requests go to the other, and the end of the drain undoes it."""
    both = {"urls": [X, Y], "max_inflight": 1}
    site = Site(loop, a=both)
    site.arrive("a", 3)
    assert (site.at(X), site.at(Y), len(site.waiting)) == (1, 1, 1)
    x = site.endpoint("a")
    site.reload(a={**both, "urls": [{"url": X, "drain": True}, Y]})
    assert (site.endpoint("a"), x.up, x.healthy, x.draining) == (x, False, True, True)
    site.finish(x)
    assert (site.at(X), site.at(Y), len(site.waiting)) == (0, 1, 1)
    site.finish(site.endpoint("a", 1))
    assert (site.at(X), site.at(Y), len(site.waiting)) == (0, 1, 0)
    site.reload(a=both)
    assert (x.up, x.draining) == (True, False)
    site.arrive("a")
    assert site.at(X) == 1


def test_request_waits_nowhere_once_all_replicas_drain(loop: asyncio.AbstractEventLoop) -> None:
    """Those that wait get the answer of a backend without a healthy endpoint."""
    one = {"urls": [X], "max_inflight": 1}
    site = Site(loop, a=one)
    site.arrive("a", 2)
    [(_, waiter)] = site.waiting
    site.reload(a={**one, "urls": [{"url": X, "drain": True}]})
    assert waiter.granted.result() is None
    assert site.endpoint("a").backend.pick(()) is None


def test_draining_replica_that_fails_is_not_a_fault(loop: asyncio.AbstractEventLoop) -> None:
    """It is followed in silence: no `endpoint_down`, and no series of its health. Later it counts as it is."""
    config = {"urls": [X, Y], "health": {"unhealthy_after": 1}}
    site = Site(loop, a=config)
    drained = {**config, "urls": [{"url": X, "drain": True}, Y]}
    for _ in range(2):
        site.reload(a=drained)
    x = site.endpoint("a")
    x.report_failure("its pod is gone")
    assert list(site.series()) == [f'backend="a",endpoint="{Y}"']
    site.log.flush()
    events = [json.loads(line) for line in site.lines]
    assert [(line["event"], line["upstream"], line["streams"]) for line in events] == [("endpoint_draining", X, 0)]
    site.reload(a=config)
    assert (x.up, x.reason, site.series()[f'backend="a",endpoint="{X}"']) == (False, "its pod is gone", 0.0)
    x.report_success(probe=True)
    site.log.flush()
    assert (x.up, json.loads(site.lines[-1])["event"]) == (True, "endpoint_up")


@pytest.mark.parametrize("after", ["a", "b"], ids=["another timeout", "another name"])
def test_health_survives_a_reload(loop: asyncio.AbstractEventLoop, after: str) -> None:
    """Down stays down, and failures in a row are counted on, by the new settings; metrics show what is in force."""
    config = {"urls": [X, Y], "models": ["m"], "health": {"unhealthy_after": 3}}
    site = Site(loop, a=config)
    x, y = site.fleet.backends["a"].endpoints
    x.set_up(False, "test")
    y.report_failure("reset")
    site.reload(**{after: config | {"timeout": "9s", "health": {"unhealthy_after": 2, "healthy_after": 2}}})
    assert site.fleet.backends[after].endpoints == (x, y)
    assert (x.up, y.up) == (False, True)
    y.report_failure("reset")
    x.report_success(probe=True)
    assert (x.up, y.up) == (False, False)
    x.report_success(probe=True)
    assert x.up
    assert site.series() == {f'backend="{after}",endpoint="{url}"': float(up) for url, up in ((X, True), (Y, False))}
    site.log.flush()
    last = json.loads(site.lines[-1].splitlines()[-2])
    assert (last["level"], last["event"], last["backend"], last["upstream"]) == ("warning", "endpoint_down", after, Y)
    last = json.loads(site.lines[-1].splitlines()[-1])
    assert (last["level"], last["event"], last["upstream"]) == ("info", "endpoint_up", X)


def test_the_turn_goes_on(loop: asyncio.AbstractEventLoop) -> None:
    """A reload between any two requests does not send all of them to the first endpoint."""
    config = {"urls": [X, Y, Z], "models": ["m"], "balance": "round_robin"}
    site = Site(loop, a=config)
    for count in range(9):
        site.arrive("a")
        site.reload(a=config | {"timeout": f"{count + 1}s"})
    assert [site.at(url) for url in (X, Y, Z)] == [3, 3, 3]


def test_an_endpoint_that_nobody_names_is_silent(loop: asyncio.AbstractEventLoop) -> None:
    """Its series are removed, and later events are not logged; the same where its backend is retired."""
    site = Site(loop, a={"urls": [X, Y]}, b={"url": Z})
    x, z = site.endpoint("a"), site.endpoint("b")
    site.reload(a={"urls": [Y]})
    for gone in (x, z):
        gone.set_up(False, "test")
    site.log.flush()
    assert site.lines == []
    assert site.series() == {f'backend="a",endpoint="{Y}"': 1.0}
    assert [gone.pool.closed for gone in (x, z, site.endpoint("a"))] == [True, True, False]


def test_an_unchanged_backend_is_left_alone(loop: asyncio.AbstractEventLoop) -> None:
    """Its Plan stays the same object, so its probes go on in their rhythm."""
    site = Site(loop, a=FOUR, b={"url": Y})
    plan = site.fleet.backends["a"].plan
    site.reload(a=FOUR, b={"url": Y, "timeout": "9s"})
    assert site.fleet.backends["a"].plan is plan


def test_closing_reaches_retired_backends(loop: asyncio.AbstractEventLoop) -> None:
    """At the end no idle connection is left open."""
    site = Site(loop, a=FOUR, b={"url": Y})
    site.arrive("a")
    site.reload(b={"url": Y})
    (x,) = site.running
    x.pool.closed = False
    site.fleet.close()
    assert (x.pool.closed, site.endpoint("b").pool.closed) == (True, True)


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_renewed_name_finds_the_slots_of_its_addresses(loop: asyncio.AbstractEventLoop) -> None:
    """A `dns` backend that is renamed learns of its addresses later, and they still have their requests."""
    named = {"dns": "vllm.test:8000", "max_inflight": 2, "models": ["m"]}
    site = Site(loop, a=named)
    site.fleet.backends["a"].resolved(["10.0.0.1", "10.0.0.2"])
    site.arrive("a", 4)
    site.reload(b=named)
    assert site.fleet.backends["b"].endpoints == ()
    site.fleet.backends["b"].resolved(["10.0.0.1", "10.0.0.2"])
    site.arrive("b", 4)
    assert [endpoint.pool.inflight for endpoint in site.fleet.backends["b"].endpoints] == [2, 2]


def test_between_url_and_dns_an_address_is_the_same(loop: asyncio.AbstractEventLoop) -> None:
    """In both directions; until the name is resolved the old addresses stay."""
    site = Site(loop, a={"url": "http://10.0.0.1:8000"})
    before = site.endpoint("a")
    site.reload(a={"dns": "vllm.test:8000", "max_inflight": 3})
    assert site.endpoint("a") is before
    assert before.bound == 3  # though its name is not known yet
    site.fleet.backends["a"].resolved(["10.0.0.1"])
    assert site.endpoint("a") is before
    assert b"Host: vllm.test:8000" in before.plan.heads["/health"]
    site.reload(a={"url": "http://10.0.0.1:8000"})
    assert site.endpoint("a") is before
    assert b"Host: 10.0.0.1:8000" in before.plan.heads["/health"]


# -- anything, in any order ----------------------------------------------------------------------------------------

BACKEND = st.fixed_dictionaries(
    {
        "urls": st.sampled_from([[X], [Y], [X, Y]]),
        "max_inflight": st.sampled_from([1, 2, 4, None]),
        "models": st.sampled_from([["m"], ["n"]]),
        "balance": st.sampled_from(["auto", "least_inflight", "round_robin"]),
        "queue": st.just({"size": 3}),
    }
)
BACKENDS = st.dictionaries(st.sampled_from("ab"), BACKEND, min_size=1)
STEPS = st.lists(
    st.one_of(
        BACKENDS,
        st.tuples(st.sampled_from(["arrive", "arrive", "late", "finish", "down", "up"]), st.integers(0, 5)),
    ),
    min_size=10,
    max_size=50,
)


@given(BACKENDS, STEPS)
def test_no_slot_is_lost_or_given_twice(loop: asyncio.AbstractEventLoop, first: Any, steps: Any) -> None:
    """Whatever reloads and requests do: no endpoint gets a request over its bound, and nobody waits for a free one."""
    site = Site(loop, **first)
    seen: list[BackendState] = []
    endpoints: set[EndpointState] = set()
    for step in steps:
        before = {endpoint: endpoint.pool.inflight for endpoint in endpoints}
        if isinstance(step, dict):
            site.reload(**step)
        else:
            act(site, seen, *step)
        site.wake()
        seen += [backend for backend in site.fleet.backends.values() if backend not in seen]
        endpoints |= {endpoint for backend in seen for endpoint in backend.endpoints}
        for endpoint in endpoints:
            assert endpoint.pool.inflight == site.running.count(endpoint)
            bound = endpoint.bound
            assert bound is None or endpoint.pool.inflight <= max(bound + endpoint.reserve, before.get(endpoint, 0))
        for backend, waiter in site.waiting:
            up = [endpoint for endpoint in backend.endpoints if endpoint.up]
            assert not waiter.granted.done()
            assert up, step
            assert not any(endpoint.is_free() for endpoint in up), step
    for endpoint in endpoints:
        endpoint.set_up(True, "test")
    site.wake()
    while site.running:
        site.finish(site.running[0])
    assert site.waiting == []


def act(site: Site, seen: list[BackendState], what: str, number: int) -> None:
    """One step of the above. A late request uses a backend of an earlier Plan."""
    backends = list(site.fleet.backends.values())
    backend = backends[number % len(backends)]
    if what == "arrive":
        site.meet(backend)
    elif what == "late" and seen:
        site.meet(seen[number % len(seen)])
    elif what == "finish" and site.running:
        site.finish(site.running[number % len(site.running)])
    elif what in ("down", "up"):
        backend.endpoints[number % len(backend.endpoints)].set_up(what == "up", "test")


# -- TLS -----------------------------------------------------------------------------------------------------------


async def test_all_https_endpoints_share_one_context() -> None:
    """A reload makes none, and the first connection of all has it made in a thread, so no stream stands still."""
    made_in: list[threading.Thread] = []

    def make(_ca_file: Path | None) -> ssl.SSLContext:
        made_in.append(threading.current_thread())
        return ssl.create_default_context()

    fleet = Fleet(JsonLog(lambda _: True, lambda: 0.0, "debug"), Metrics(), ClientTls(make))
    many = {"urls": [f"https://127.0.0.{last}:1" for last in range(1, 21)], "models": ["m"]}
    endpoints: list[EndpointState] = []
    for timeout in ("8s", "9s"):
        fleet.follow(plans(a=many | {"timeout": timeout}, b={"url": f"https://127.0.0.{timeout[0]}:2"}))
        assert made_in == []
        endpoints += [*fleet.backends["a"].endpoints, *fleet.backends["b"].endpoints]
    failures = await asyncio.gather(*[with_pauses(endpoint.pool.connect()) for endpoint in endpoints])
    assert all(isinstance(failure, Failure) and failure.refused for failure in failures)
    assert len(made_in) == 1
    assert made_in[0] is not threading.current_thread()


async def test_another_trust_begins_with_new_connections(fake_vllms: StartFake, tmp_path: Path) -> None:
    """A reload that changes whom an address has to be drops its idle connections; another change keeps them."""
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    fake = await fake_vllms(context)
    fleet = Fleet(JsonLog(lambda _: True, lambda: 0.0, "debug"), Metrics(), ClientTls())
    site = {"url": fake.url.replace("http:", "https:"), "tls": {"ca_file": str(certificate)}}
    fleet.follow(plans(a=site))
    [endpoint] = fleet.backends["a"].endpoints
    connection = await with_pauses(endpoint.pool.connect())
    assert not isinstance(connection, Failure)
    endpoint.pool.give_back(connection)
    fleet.follow(plans(a=site | {"timeout": "9s"}))
    assert connection.is_open()
    fleet.follow(plans(a=site | {"tls": {"ca_file": str(certificate), "server_name": "other"}}))
    assert not connection.is_open()
    assert [endpoint] == list(fleet.backends["a"].endpoints)
    failure = await with_pauses(endpoint.pool.connect())
    assert isinstance(failure, Failure)
    assert "Hostname mismatch" in failure.detail
    fleet.close()


# -- real sockets --------------------------------------------------------------------------------------------------


async def streams(running: Running, count: int) -> list[Raw]:
    """`count` clients that ask for a stream."""
    clients = [await running.client() for _ in range(count)]
    for client in clients:
        client.send(client.request(STREAM))
    return clients


async def test_a_reload_gives_the_engine_no_more_than_it_takes(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """4 of 4 run; another timeout; 8 more wait, and each gets its answer in its turn."""
    go_on = asyncio.Event()
    fake_vllm.default = (Send(STREAM_HEAD + chunk(token_event())), Wait(go_on), Send(chunk(DONE) + LAST_CHUNK))
    running = await gateway(fake_vllm, backend={"max_inflight": 4})
    clients = await streams(running, 4)
    await until(lambda: len(fake_vllm.posts) == 4)
    running.gateway.replace_plan(plan_of(config_of([fake_vllm.url], {"max_inflight": 4, "timeout": "9s"}, {})))
    clients += await streams(running, 8)
    await until(lambda: running.backend().waiting == 8)
    assert len(fake_vllm.posts) == 4
    go_on.set()
    for client in clients:
        assert (await client.answer()).body == token_event() + DONE
    assert running.endpoints()[0].pool.inflight == 0


async def test_request_waiting_through_a_rename_is_served(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The request's Plan is gone by then: another backend, another model, another path."""
    go_on = asyncio.Event()
    fake_vllm.default = (Send(STREAM_HEAD + chunk(token_event())), Wait(go_on), Send(chunk(DONE) + LAST_CHUNK))
    running = await gateway(fake_vllm, backend={"max_inflight": 1})
    clients = await streams(running, 3)
    await until(lambda: running.backend().waiting == 2)
    new = {"url": fake_vllm.url, "models": ["new"], "endpoints": ["/v1/completions"], "max_inflight": 1}
    running.gateway.replace_plan(plan_of({"backends": {"new": new}}))
    go_on.set()
    for client in clients:
        assert (await client.answer()).body == token_event() + DONE
    assert running.backend("new").endpoints[0].pool.inflight == 0


async def test_a_backend_that_is_back_keeps_its_connections(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A reload after its return does not close those that are idle by then."""
    go_on = asyncio.Event()
    fake_vllm.default = (Send(STREAM_HEAD + chunk(token_event())), Wait(go_on), Send(chunk(DONE) + LAST_CHUNK))
    running = await gateway(fake_vllm)
    (client,) = await streams(running, 1)
    await until(lambda: len(fake_vllm.posts) == 1)
    running.gateway.replace_plan(plan_of({"backends": {"other": {"url": X, "models": ["other"]}}}))
    running.gateway.replace_plan(plan_of(config_of([fake_vllm.url], {}, {})))
    go_on.set()
    assert (await client.answer()).body == token_event() + DONE
    await running.quiet()
    running.gateway.replace_plan(plan_of(config_of([fake_vllm.url], {"timeout": "9s"}, {})))
    assert (await client.post(STREAM)).body == token_event() + DONE
    assert len(fake_vllm.connections) == 1


async def test_retries_are_those_of_the_plan_that_a_request_began_with(
    gateway: StartGateway, fake_vllm: FakeVllm
) -> None:
    """Also where another Plan allows more by the time that the request is refused."""
    go_on = asyncio.Event()
    fake_vllm.default = (Wait(go_on), Send(error_answer(503, "busy")))
    running = await gateway(fake_vllm, backend={"max_retries": 0})
    (client,) = await streams(running, 1)
    await until(lambda: len(fake_vllm.posts) == 1)
    running.gateway.replace_plan(plan_of(config_of([fake_vllm.url], {"max_retries": 2}, {})))
    go_on.set()
    assert (await client.answer()).status == 503
    assert len(fake_vllm.posts) == 1
