"""aiaas.proxy.upstream.backends: slots and those who wait for them, and how endpoints go down and come up."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.plan.model import EnginePlan
from aiaas.proxy.request.visit import Visit
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.waiter import Demand, Grant, Waiter
from tests.fakes.vllm import (
    Close,
    FakeVllm,
    Hang,
    Send,
    Step,
    error_answer,
    json_answer,
)
from tests.proxy.conftest import config_of, plan_of
from tests.waiting import until

CHAT = {"model": "m", "messages": []}
STREAM = {**CHAT, "stream": True}
FAST = {"interval": "20ms", "timeout": "50ms"}

Turns = list[tuple[bool, str]]


def state(count: int = 1, **backend: Any) -> tuple[BackendState, Turns]:
    """A backend with `count` endpoints, and the turns that its listener heard of."""
    turns: Turns = []
    urls = [f"http://127.0.0.1:{port}" for port in range(1, count + 1)]
    plan = plan_of(config_of(urls, backend, {})).backends[0]
    return BackendState(plan, lambda _endpoint, up, reason: turns.append((up, reason))), turns


# -- picking -------------------------------------------------------------------------------------------------------


def test_even_spread() -> None:
    """Idle endpoints share requests that come one after the other, under either balance."""
    for balance in ("least_inflight", "round_robin"):
        for count in (2, 3):
            backend, _ = state(count, balance=balance)
            picked = [backend.pick(()) for _ in range(10 * count)]
            assert [picked.count(endpoint) for endpoint in backend.endpoints] == [10] * count


def test_balance_by_load_or_by_turn() -> None:
    """Of two endpoints one is busy: it gets nothing, or every second request."""
    for balance, expected in (("least_inflight", 0), ("round_robin", 5)):
        backend, _ = state(2, balance=balance)
        backend.endpoints[0].pool.inflight = 9
        picked = [backend.pick(()) for _ in range(10)]
        assert picked.count(backend.endpoints[0]) == expected


def test_balance_by_session() -> None:
    """A backend picks by the session, also under the old name of this rule."""
    for balance in ("auto", "prefix_hash"):
        backend, _ = state(3, balance=balance)
        visits = [Visit("key", "m", f"{number}", None, b"", 10, 0.0, stream=True) for number in range(31)]
        first = [backend.pick((), visit) for visit in visits]
        assert [backend.pick((), visit) for visit in visits] == first
        assert set(first) == set(backend.endpoints)


# -- slots ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop to make futures of; it never runs."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


class Requests:
    """Requests at a backend, as `forward` makes them: each has a slot, waits for one, or was refused."""

    def __init__(self, backend: BackendState, loop: asyncio.AbstractEventLoop) -> None:
        self.backend = backend
        self.loop = loop
        self.running: list[EndpointState] = []
        self.grants: list[Grant] = []
        self.waiting: list[Waiter] = []
        self.leaving: list[Waiter] = []
        self.refused = 0

    def arrive(self, key: str) -> None:
        """A new request."""
        endpoint = self.backend.pick(())
        if endpoint is not None:
            # Only where nobody waits may a new request have a slot.
            assert self.backend.waiting == 0
            self.begin(endpoint, self.backend.begin(endpoint, key))
            return
        waiter = Waiter(Demand(key), (), None, self.loop.create_future())
        if any(endpoint.up for endpoint in self.backend.endpoints) and self.backend.wait(waiter):
            self.waiting.append(waiter)
        else:
            self.refused += 1

    def begin(self, endpoint: EndpointState, grant: Grant | None) -> None:
        """A request has a slot."""
        self.running.append(endpoint)
        self.grants += [grant] if grant is not None else []

    def finish(self, endpoint: EndpointState) -> None:
        """One of the endpoint's requests ends."""
        self.running.remove(endpoint)
        grant = next((grant for grant in self.grants if grant.endpoint is endpoint), None)
        if grant is not None:
            self.grants.remove(grant)
            grant.settle(1, 1)
        endpoint.give_back()

    def cancel(self, place: int) -> None:
        """A client goes away; its task learns of it a moment later."""
        if place < len(self.waiting):
            waiter = self.waiting.pop(place)
            waiter.granted.cancel()
            self.leaving.append(waiter)

    def wake(self) -> None:
        """Tasks run: those that were cancelled leave, those that have an answer take it."""
        while self.leaving:
            self.backend.leave(self.leaving.pop())
        for waiter in [waiter for waiter in self.waiting if waiter.granted.done()]:
            self.waiting.remove(waiter)
            self.backend.forget(waiter)
            endpoint = waiter.granted.result()
            if endpoint is not None:
                self.begin(endpoint, waiter.grant)
            else:
                self.refused += 1

    def cancel_granted(self) -> None:
        """A client goes away in the moment in which it got its slot."""
        for waiter in self.waiting:
            if waiter.granted.done():
                self.waiting.remove(waiter)
                self.leaving.append(waiter)
                return


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "finish", "cancel", "cancel granted", "expire", "down", "up", "wake"]),
        st.integers(0, 3),
    ),
    min_size=15,
    max_size=60,
)


@given(STEPS, st.integers(1, 2), st.sampled_from(["auto", "least_inflight", "round_robin"]))
def test_slots(loop: asyncio.AbstractEventLoop, steps: list[tuple[str, int]], bound: int, balance: str) -> None:
    """Whatever happens in whatever order: no endpoint over its bound, no slot lost, and nobody waits for a free one."""
    backend, _ = state(2, max_inflight=bound, queue={"size": 4}, balance=balance, health={"unhealthy_after": 1})
    requests = Requests(backend, loop)
    for step, number in steps:
        match step:
            case "arrive":
                requests.arrive("abcd"[number])
            case "finish" if number < len(requests.running):
                requests.finish(requests.running[number])
            case "cancel":
                requests.cancel(number)
            case "cancel granted":
                requests.cancel_granted()
            case "expire" if number < len(requests.waiting):
                requests.waiting[number].expire()
            case "down":
                backend.endpoints[number % 2].report_failure("reset")
            case "up":
                backend.endpoints[number % 2].report_success(probe=True)
            case "wake":
                requests.wake()
        up = [endpoint for endpoint in backend.endpoints if endpoint.up]
        unanswered = [waiter for waiter in requests.waiting if not waiter.granted.done()]
        assert all(endpoint.pool.inflight <= bound for endpoint in backend.endpoints)
        assert not unanswered or (up and all(endpoint.pool.inflight == bound for endpoint in up)), step
        assert backend.waiting <= 4
    requests.wake()
    for endpoint in backend.endpoints:
        assert endpoint.pool.inflight == requests.running.count(endpoint)
    assert backend.waiting == len(requests.waiting)
    for endpoint in backend.endpoints:
        endpoint.report_success(probe=True)
    while requests.running:
        requests.finish(requests.running[-1])
        requests.wake()
    assert (backend.waiting, requests.waiting) == (0, [])
    assert [endpoint.pool.inflight for endpoint in backend.endpoints] == [0, 0]


def test_slot_goes_to_the_next_in_turn(loop: asyncio.AbstractEventLoop) -> None:
    """The key that was served less is next; a slot passes on in the step that releases it, so nobody sees it free."""
    backend, _ = state(1, max_inflight=1)
    requests = Requests(backend, loop)
    for key in ("a", "a", "a", "b"):
        requests.arrive(key)
    assert (len(requests.running), [waiter.demand.key for waiter in requests.waiting]) == (1, ["a", "a", "b"])
    order = []
    for _ in range(3):
        before = list(requests.waiting)
        requests.finish(requests.running[-1])
        assert backend.endpoints[0].pool.inflight == 1
        requests.wake()
        (got,) = [waiter for waiter in before if waiter not in requests.waiting]
        order.append(got.demand.key)
    assert order == ["b", "a", "a"]


def test_nothing_up_sends_everybody_away(loop: asyncio.AbstractEventLoop) -> None:
    """With the last endpoint all that wait look elsewhere; while another is up they wait on."""
    backend, _ = state(2, max_inflight=1, health={"unhealthy_after": 1})
    requests = Requests(backend, loop)
    for _ in range(4):
        requests.arrive("a")
    backend.endpoints[0].report_failure("reset")
    requests.finish(backend.endpoints[0])
    requests.wake()
    assert (len(requests.waiting), requests.refused) == (2, 0)
    backend.endpoints[1].report_failure("reset")
    requests.wake()
    assert (len(requests.waiting), requests.refused) == (0, 2)


def waiting_at_both(loop: asyncio.AbstractEventLoop) -> tuple[BackendState, BackendState, Waiter]:
    """Two backends whose only slots are taken, and a request that waits for either."""
    one, other = (state(1, max_inflight=1, health={"unhealthy_after": 1})[0] for _ in range(2))
    waiter = Waiter(Demand("a"), (), None, loop.create_future())
    for backend in (one, other):
        backend.endpoints[0].pool.inflight = 1
        assert backend.wait(waiter)
    return one, other, waiter


def test_request_waiting_at_two_keeps_its_place_at_one(loop: asyncio.AbstractEventLoop) -> None:
    """The request is sent away only when neither is up."""
    one, other, waiter = waiting_at_both(loop)
    one.endpoints[0].report_failure("reset")
    assert (one.waiting, other.waiting, waiter.granted.done()) == (0, 1, False)
    other.endpoints[0].report_failure("reset")
    assert (other.waiting, waiter.granted.result()) == (0, None)


def test_leaving_two_queues_returns_one_slot(loop: asyncio.AbstractEventLoop) -> None:
    """The slot that it got in the moment of leaving goes back to its backend, once."""
    one, other, waiter = waiting_at_both(loop)
    other.endpoints[0].give_back()
    assert waiter.granted.result() is other.endpoints[0]
    for backend in (one, other):
        backend.leave(waiter)
    assert [backend.endpoints[0].pool.inflight for backend in (one, other)] == [1, 0]
    assert (one.waiting, other.waiting) == (0, 0)


# -- up and down ---------------------------------------------------------------------------------------------------


def play(endpoint: EndpointState, reports: str) -> None:
    """f: a failure, s: a request's success, p: a good probe."""
    for report in reports:
        if report == "f":
            endpoint.report_failure("reset")
        else:
            endpoint.report_success(probe=report == "p")


@pytest.mark.parametrize(
    ("reports", "up"),
    [
        ("", True),
        ("ff", True),
        ("fff", False),
        ("ffsff", True),
        ("ffpff", True),
        ("ffsfff", False),
        ("fffp", False),
        ("fffpp", True),
        ("fffss", False),
        ("fffpfp", False),
        ("fffpfpp", True),
        ("fffffffpp", True),
        ("fffppff", True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_turns(reports: str, up: bool) -> None:
    """Three failures in a row take it down, two good probes in a row bring it up, a request's success only resets."""
    backend, turns = state(health={"unhealthy_after": 3, "healthy_after": 2})
    (endpoint,) = backend.endpoints
    play(endpoint, reports)
    assert endpoint.up == up
    assert [turn for turn, _ in turns] == [False, True][: len(turns)]
    assert repr(endpoint).startswith(f"<EndpointState vllm http://127.0.0.1:1 {'up' if up else 'down'} <Pool")


def test_listener_is_told_why_and_once() -> None:
    """The listener hears of each turn once, with its reason."""
    backend, turns = state(health={"unhealthy_after": 2})
    play(backend.endpoints[0], "ffffpp")
    assert turns == [(False, "reset"), (True, "its health check answers again")]


class Told:
    """A stream that keeps what it is told."""

    def __init__(self) -> None:
        self.since: list[float] = []

    def last_byte(self) -> None:
        """It waits for its first token."""

    def end_if_silent(self, since: float, _why: str) -> None:
        """As a relay's."""
        self.since.append(since)


def test_lost_probes_end_streams_silent_since_the_first_of_them() -> None:
    """Only `unhealthy_after` lost probes in a row count; a stream must be silent since the first of the last ones."""
    backend, _ = state(health={"unhealthy_after": 3})
    [endpoint], stream = backend.endpoints, Told()
    endpoint.streams.add(stream)
    for began in (0.0, 7.0):
        endpoint.report_lost_probe(began, began + 2)
    endpoint.lost.clear()  # an answer, whatever it is
    for began in (14.0, 21.0):
        endpoint.report_lost_probe(began, began + 2)
    assert stream.since == []
    endpoint.report_lost_probe(28.0, 30.0)
    endpoint.report_lost_probe(35.0, 37.0)
    assert stream.since == [14.0, 21.0]


def test_one_lost_probe_is_not_enough_for_a_short_silence() -> None:
    """Where one failure takes the endpoint down, its streams have still 5 s, as after a refused probe."""
    backend, _ = state(health={"unhealthy_after": 1})
    [endpoint], stream = backend.endpoints, Told()
    endpoint.streams.add(stream)
    endpoint.report_lost_probe(9.0, 11.0)
    assert stream.since == [6.0]


def test_managed_engine_is_its_supervisors() -> None:
    """The supervisor's engine starts down, and neither failures nor probes turn it: nothing else would turn it back."""
    plain, _ = state()
    engine = EnginePlan("simulator", "m", "m", (), {}, 1, 1.0)
    turns: Turns = []
    backend = BackendState(
        dataclasses.replace(plain.plan, engine=engine), lambda _endpoint, up, reason: turns.append((up, reason))
    )
    (endpoint,) = backend.endpoints
    assert not endpoint.up
    endpoint.set_up(True, "healthy")
    endpoint.set_up(True, "healthy")
    play(endpoint, "ffffff")
    assert (endpoint.up, turns) == (True, [(True, "healthy")])
    endpoint.set_up(False, "it died")
    assert (endpoint.up, turns[1:]) == (False, [(False, "it died")])


# -- what requests report ------------------------------------------------------------------------------------------

BLAME = {
    "a good answer": (Send(json_answer({})), 0),
    "the client's 400": (Send(error_answer(400, "no")), 0),
    "the client's 404": (Send(error_answer(404, "no")), 0),
    "the client's 422": (Send(error_answer(422, "no")), 0),
    "busy": (Send(error_answer(503, "busy")), 0),
    "silence": (Hang(), 1),
    "reset": (Close(), 2),
    "a dead engine": (Send(error_answer(500, "EngineCore encountered an issue.")), 2),
}


@pytest.mark.parametrize(("step", "failures"), BLAME.values(), ids=BLAME)
async def test_blame_goes_to_the_faulty_side(fake_vllm: FakeVllm, gateway: Any, step: Step, failures: int) -> None:
    """Resets and dying engines count against an endpoint; clients' mistakes never do, and silence proves nothing."""
    fake_vllm.default = (step,)
    backend = {"timeout": "30ms", "max_retries": 0, "health": {"unhealthy_after": 10}}
    running = await gateway(fake_vllm, backend=backend)
    (endpoint,) = running.endpoints()
    endpoint.report_failure("before")
    await (await running.client()).post(CHAT)
    assert endpoint.failures == failures


async def test_leaving_clients_are_never_blamed_on_the_backend(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A hundred clients that leave take nothing down."""
    fake_vllm.default = (Hang(),)
    running = await gateway(fake_vllm, backend={"health": {"unhealthy_after": 1}})
    for count in range(20):
        client = await running.client()
        client.send(client.request(STREAM))
        await until(lambda count=count: len(fake_vllm.posts) == count + 1)
        client.reset()
    await running.quiet()
    assert (running.endpoints()[0].up, running.endpoints()[0].failures) == (True, 0)
