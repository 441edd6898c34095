"""aiaas.proxy.backends: which endpoint is chosen, and how endpoints go down and come up."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.plan.model import EnginePlan
from aiaas.proxy.affinity import load_bound
from aiaas.proxy.backends import BackendState, EndpointState, Waiter, choose, choose_by_prefix, fetch
from aiaas.proxy.upstream import Failure, FailureKind
from tests.fakes.vllm import (
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    FakeVllm,
    Flood,
    Hang,
    Send,
    SendSlowly,
    Step,
    Wait,
    answer,
    chunk,
    error_answer,
    json_answer,
    token_event,
)
from tests.proxy.conftest import config_of, plan_of

CHAT = {"model": "m", "messages": []}
STREAM = {**CHAT, "stream": True}
FAST = {"interval": "20ms", "timeout": "50ms"}

Turns = list[tuple[bool, str]]


def state(count: int = 1, **backend: Any) -> tuple[BackendState, Turns]:
    """A backend with so many endpoints, and the turns that its listener was told."""
    turns: Turns = []
    urls = [f"http://127.0.0.1:{port}" for port in range(1, count + 1)]
    plan = plan_of(config_of(urls, backend, {})).backends[0]
    return BackendState(plan, lambda _endpoint, up, reason: turns.append((up, reason))), turns


async def until(condition: Callable[[], bool], timeout: float = 2.0) -> None:
    """Wait for something that happens on another socket or a timer."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.001)


# -- choose --------------------------------------------------------------------------------------------------------

# endpoints as "up, tried, in flight"; turn; by load; the index that is chosen
CHOICES = {
    "the only one": (["up - 9"], 0, True, 0),
    "none is up": (["down - 0", "down - 0"], 0, True, None),
    "no endpoint": ([], 0, True, None),
    "down is never chosen": (["down - 0", "up - 9"], 0, True, 1),
    "down is not chosen though untried": (["down - 0", "up tried 9"], 0, True, 1),
    "least in flight": (["up - 3", "up - 1", "up - 2"], 0, True, 1),
    "ties go round": (["up - 1", "up - 1", "up - 1"], 5, True, 2),
    "ties go round among the least": (["up - 0", "up - 5", "up - 0"], 1, True, 2),
    "untried before less loaded": (["up tried 0", "up - 9"], 0, True, 1),
    "all tried: least in flight": (["up tried 5", "up tried 4"], 0, True, 1),
    "round robin": (["up - 0", "up - 9", "up - 9"], 4, False, 1),
    "round robin skips down": (["up - 0", "down - 0", "up - 9"], 3, False, 2),
    "round robin, untried first": (["up tried 0", "up - 0", "up - 0"], 2, False, 1),
}


@pytest.mark.parametrize(("endpoints", "turn", "by_load", "chosen"), CHOICES.values(), ids=CHOICES)
def test_choose(endpoints: list[str], turn: int, by_load: bool, chosen: int | None) -> None:
    """Up before all, untried before tried, then the least in flight or simply the next in turn."""
    states = state(max(1, len(endpoints)))[0].endpoints[: len(endpoints)]
    tried = []
    for endpoint, described in zip(states, endpoints, strict=True):
        up, was_tried, inflight = described.split()
        endpoint.up, endpoint.pool.inflight = up == "up", int(inflight)
        if was_tried == "tried":
            tried.append(endpoint)
    result = choose(states, tried, turn, by_load=by_load)
    assert result is (None if chosen is None else states[chosen])


def test_even_spread() -> None:
    """Idle endpoints share requests that come one after the other, under either balance."""
    for balance in ("least_inflight", "round_robin"):
        backend, _ = state(3, balance=balance)
        picked = [backend.pick(()) for _ in range(30)]
        assert [picked.count(endpoint) for endpoint in backend.endpoints] == [10, 10, 10]


# -- the same prefix to the same endpoint ---------------------------------------------------------------------------


def test_prefix_stays_while_others_go_and_come() -> None:
    """An endpoint's own prefixes come back with it, and no other prefix ever moves."""
    endpoints = state(4)[0].endpoints
    prefixes = [b"prompt %d" % number for number in range(200)]
    before = [choose_by_prefix(endpoints, (), prefix) for prefix in prefixes]
    assert set(before) == set(endpoints)
    endpoints[1].up = False
    during = [choose_by_prefix(endpoints, (), prefix) for prefix in prefixes]
    assert endpoints[1] not in during
    assert all(now is then for now, then in zip(during, before, strict=True) if then is not endpoints[1])
    endpoints[1].up = True
    assert [choose_by_prefix(endpoints, (), prefix) for prefix in prefixes] == before


def test_prefix_that_everybody_uses_buries_nobody() -> None:
    """One prefix alone keeps each endpoint within its share, and stays where it was while nothing else runs."""
    endpoints = state(4)[0].endpoints
    own = choose_by_prefix(endpoints, (), b"popular")
    for count in range(200):
        share = load_bound([endpoint.pool.inflight for endpoint in endpoints])
        chosen = choose_by_prefix(endpoints, (), b"popular")
        assert chosen is not None
        assert chosen.pool.inflight <= share
        assert (chosen is own) == (own is not None and own.pool.inflight <= share), count
        chosen.pool.inflight += 1
    assert max(endpoint.pool.inflight for endpoint in endpoints) <= 1.25 * 50 + 2


def test_prefix_next_in_its_order() -> None:
    """A retry goes to the prefix's second endpoint, and so does a request whose first one is full; all full is None."""
    endpoints = state(3)[0].endpoints
    first = choose_by_prefix(endpoints, (), b"x")
    assert first is not None
    second = choose_by_prefix(endpoints, (first,), b"x")
    assert second is not None
    assert second is not first
    first.pool.inflight = 2
    assert choose_by_prefix(endpoints, (), b"x", 2) is second
    assert choose_by_prefix(endpoints, (second,), b"x", 2) not in (first, second)
    assert choose_by_prefix(endpoints, endpoints, b"x", 2) is second
    for endpoint in endpoints:
        endpoint.pool.inflight = 2
    assert choose_by_prefix(endpoints, (), b"x", 2) is None
    assert choose_by_prefix(endpoints, (), b"x", 3) is first


def test_untried_endpoint_over_its_share() -> None:
    """Where whoever is within the share was tried, the least loaded of the others is asked."""
    endpoints = state(3)[0].endpoints
    endpoints[0].pool.inflight, endpoints[1].pool.inflight = 20, 19
    assert choose_by_prefix(endpoints, (endpoints[2],), b"x") is endpoints[1]


def test_balance_by_prefix() -> None:
    """A backend picks by what the request's body begins with."""
    backend, _ = state(3, balance="prefix_hash")
    bodies = [b'{"prompt":"%d"}' % number for number in range(30)]
    first = [backend.pick((), body) for body in bodies]
    assert [backend.pick((), body) for body in bodies] == first
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
        self.waiting: list[Waiter] = []
        self.leaving: list[Waiter] = []
        self.refused = 0

    def arrive(self, key: str) -> None:
        """A new request."""
        endpoint = self.backend.pick(())
        if endpoint is not None:
            # Only where nobody waits may somebody who just came have a slot.
            assert self.backend.waiting == 0
            endpoint.pool.inflight += 1
            self.running.append(endpoint)
            return
        waiter = Waiter(key, (), b"", self.loop.create_future())
        if any(endpoint.up for endpoint in self.backend.endpoints) and self.backend.wait(waiter):
            self.waiting.append(waiter)
        else:
            self.refused += 1

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
                self.running.append(endpoint)
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


@given(STEPS, st.integers(1, 2), st.sampled_from(["least_inflight", "round_robin", "prefix_hash"]))
def test_slots(loop: asyncio.AbstractEventLoop, steps: list[tuple[str, int]], bound: int, balance: str) -> None:
    """Whatever happens in whatever order: no endpoint over its bound, no slot lost, and nobody waits for a free one."""
    backend, _ = state(2, max_inflight=bound, queue={"size": 4}, balance=balance, health={"unhealthy_after": 1})
    requests = Requests(backend, loop)
    for step, number in steps:
        match step:
            case "arrive":
                requests.arrive("abcd"[number])
            case "finish" if number < len(requests.running):
                backend.give_back(requests.running.pop(number))
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
        backend.give_back(requests.running.pop())
        requests.wake()
    assert (backend.waiting, requests.waiting) == (0, [])
    assert [endpoint.pool.inflight for endpoint in backend.endpoints] == [0, 0]


def test_slot_goes_to_the_next_in_turn(loop: asyncio.AbstractEventLoop) -> None:
    """Keys take turns, and a slot has its next owner before its last one has let go of it for others to see."""
    backend, _ = state(1, max_inflight=1)
    requests = Requests(backend, loop)
    for key in ("a", "a", "a", "b"):
        requests.arrive(key)
    assert (len(requests.running), [waiter.key for waiter in requests.waiting]) == (1, ["a", "a", "b"])
    order = []
    for _ in range(3):
        before = list(requests.waiting)
        backend.give_back(requests.running.pop())
        assert backend.endpoints[0].pool.inflight == 1
        requests.wake()
        (got,) = [waiter for waiter in before if waiter not in requests.waiting]
        order.append(got.key)
    assert order == ["a", "b", "a"]


def test_nothing_up_sends_everybody_away(loop: asyncio.AbstractEventLoop) -> None:
    """With the last endpoint all that wait look elsewhere; while another is up they wait on."""
    backend, _ = state(2, max_inflight=1, health={"unhealthy_after": 1})
    requests = Requests(backend, loop)
    for _ in range(4):
        requests.arrive("a")
    backend.endpoints[0].report_failure("reset")
    requests.running.remove(backend.endpoints[0])
    backend.give_back(backend.endpoints[0])
    requests.wake()
    assert (len(requests.waiting), requests.refused) == (2, 0)
    backend.endpoints[1].report_failure("reset")
    requests.wake()
    assert (len(requests.waiting), requests.refused) == (0, 2)


def waiting_at_both(loop: asyncio.AbstractEventLoop) -> tuple[BackendState, BackendState, Waiter]:
    """Two backends whose only slot is taken, and one who waits for either."""
    one, other = (state(1, max_inflight=1, health={"unhealthy_after": 1})[0] for _ in range(2))
    waiter = Waiter("a", (), b"", loop.create_future())
    for backend in (one, other):
        backend.endpoints[0].pool.inflight = 1
        assert backend.wait(waiter)
    return one, other, waiter


def test_who_waits_at_two_keeps_its_place_at_one(loop: asyncio.AbstractEventLoop) -> None:
    """It is sent away only when neither is up."""
    one, other, waiter = waiting_at_both(loop)
    one.endpoints[0].report_failure("reset")
    assert (one.waiting, other.waiting, waiter.granted.done()) == (0, 1, False)
    other.endpoints[0].report_failure("reset")
    assert (other.waiting, waiter.granted.result()) == (0, None)


def test_who_leaves_two_gives_back_the_slot_of_one(loop: asyncio.AbstractEventLoop) -> None:
    """The slot that it got in the moment of leaving goes back to where it came from, once."""
    one, other, waiter = waiting_at_both(loop)
    other.give_back(other.endpoints[0])
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
    """Each turn is told once, with its reason."""
    backend, turns = state(health={"unhealthy_after": 2})
    play(backend.endpoints[0], "ffffpp")
    assert turns == [(False, "reset"), (True, "its health check answers again")]


def test_managed_engine_is_its_supervisors() -> None:
    """An engine of ours starts down, and neither failures nor probes turn it: nothing else would turn it back."""
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
async def test_who_is_blamed(fake_vllm: FakeVllm, gateway: Any, step: Step, failures: int) -> None:
    """Resets and dying engines count against an endpoint; what clients do wrong never does, and silence is no proof."""
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


# -- fetch and probes ----------------------------------------------------------------------------------------------


async def test_fetch(fake_vllm: FakeVllm) -> None:
    """A small resource comes with its status, on a connection of its own, with the backend's own key."""
    config = config_of([fake_vllm.url], {"api_key_env": "KEY"}, {})
    plan = plan_of(config, env={"KEY": "backend-secret"}).backends[0]
    (endpoint,) = BackendState(plan, lambda *_: None).endpoints
    fake_vllm.gets["/v1/models"] = (SendSlowly(json_answer({"data": [1]}), size=30),)
    assert await fetch(endpoint, "/v1/models", 1.0) == (200, b'{"data":[1]}')
    assert fake_vllm.got[0].headers["authorization"] == "Bearer backend-secret"
    await until(lambda: fake_vllm.open_connections == 0)


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Hang(), FailureKind.TIMEOUT),
        (Close(), FailureKind.RESET),
        (Flood(chunk(b"x" * 65536), 1000), FailureKind.MALFORMED),
    ],
    ids=["hangs", "closes", "never ends"],
)
async def test_fetch_that_fails(fake_vllm: FakeVllm, step: Step, kind: FailureKind) -> None:
    """It is a Failure, within the timeout and in bounded memory, and no connection is left."""
    plan = plan_of(config_of([fake_vllm.url], {}, {})).backends[0]
    (endpoint,) = BackendState(plan, lambda *_: None).endpoints
    fake_vllm.gets["/health"] = (Send(STREAM_HEAD), step) if isinstance(step, Flood) else (step,)
    result = await fetch(endpoint, "/health", 0.3)
    assert isinstance(result, Failure)
    assert result.kind is kind
    await until(lambda: fake_vllm.open_connections == 0)


SICK = {
    "refuses": None,
    "hangs": Hang(),
    "says 503": Send(answer(503, b"")),
    "closes": Close(),
    "speaks nonsense": Send(b"nonsense\r\n\r\n"),
}


@pytest.mark.parametrize("sickness", SICK.values(), ids=SICK)
async def test_sick_endpoint_goes_down_and_comes_back(fake_vllms: Any, gateway: Any, sickness: Step | None) -> None:
    """Probes take one endpoint out, leave the other alone, and bring the first back when it is well."""
    sick, well = await fake_vllms(), await fake_vllms()
    healthy = sick.gets["/health"]
    if sickness is None:
        await sick.down()
    else:
        sick.gets["/health"] = (sickness,)
    greeted: list[str] = []
    running = await gateway(
        sick, well, backend={"health": FAST}, probes=True, on_recovered=lambda _b, e: greeted.append(e.plan.url)
    )
    first, second = running.endpoints()
    await until(lambda: not first.up)
    assert second.up
    client = await running.client()
    for _ in range(3):
        assert (await client.post(CHAT)).status == 200
    assert (len(sick.posts), len(well.posts)) == (0, 3)
    assert greeted == [well.url]
    (down,) = running.log_lines("endpoint_down")
    assert down["upstream"] == sick.url
    assert down["reason"].startswith("health check: ")
    sample = f'aiaas_endpoint_up{{backend="vllm",endpoint="{sick.url}"}}'
    assert running.metric(sample) == 0
    sick.gets["/health"] = healthy
    if sickness is None:
        await sick.up()
    await until(lambda: first.up)
    await until(lambda: greeted == [well.url, sick.url])
    assert running.metric(sample) == 1
    assert len(running.log_lines("endpoint_up")) == 1


async def test_hanging_probe_holds_up_no_other(fake_vllms: Any, gateway: Any) -> None:
    """Endpoints are probed side by side: one that hangs does not keep the others from being seen."""
    hanging, sick = await fake_vllms(), await fake_vllms()
    hanging.gets["/health"] = (Hang(),)
    sick.gets["/health"] = (Send(answer(503, b"")),)
    health = {"interval": "10ms", "timeout": "1s", "unhealthy_after": 1}
    running = await gateway(hanging, sick, backend={"health": health}, probes=True)
    await until(lambda: not running.endpoints()[1].up, 0.5)


async def test_backend_that_does_not_exist_delays_nobody(fake_vllm: FakeVllm, gateway: Any) -> None:
    """An endpoint counts as up until it is known to be down: the first request waits for no probe."""
    fake_vllm.gets["/health"] = (Hang(),)
    running = await gateway(fake_vllm, probes=True)
    assert (await (await running.client()).post(CHAT)).status == 200


# -- a server that refuses and goes silent (capture 131) -----------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds of silence after a refused probe, shortened."""
    monkeypatch.setattr("aiaas.proxy.backends.SILENT_AFTER_REFUSAL", 0.1)
    return 0.1


REFUSING = {"health": {"interval": "50ms", "timeout": "50ms", "unhealthy_after": 1}}


async def test_silent_streams_of_a_refusing_address_are_ended(fake_vllm: FakeVllm, gateway: Any, soon: float) -> None:
    """After SIGTERM a vLLM refuses connections and leaves its streams hanging: they end with an error event."""
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Hang())
    running = await gateway(fake_vllm, backend=REFUSING, probes=True)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    assert await client.chunk() == token_event()
    await fake_vllm.down()
    started = asyncio.get_running_loop().time()
    last = await client.chunk()
    assert soon < asyncio.get_running_loop().time() - started < 1
    assert b'"code":"upstream_error"' in last
    assert await client.chunk() == b""
    line = running.log_lines()[-1]
    assert (line["status"], line["error_code"]) == (200, "upstream_error")


async def test_silent_request_before_its_first_event(fake_vllm: FakeVllm, gateway: Any, soon: float) -> None:
    """A stream that has not begun gets a 502; it may have run, so it is not sent again."""
    fake_vllm.play(Send(STREAM_HEAD), Hang())
    running = await gateway(fake_vllm, backend=REFUSING, probes=True)
    client = await running.client()
    client.send(client.request(STREAM))
    await until(lambda: bool(fake_vllm.posts))
    await fake_vllm.down()
    got = await client.answer()
    assert (got.status, got.header("x-should-retry"), len(fake_vllm.posts)) == (502, "false", 1)


async def test_stream_that_delivers_is_left_alone(fake_vllm: FakeVllm, gateway: Any, soon: float) -> None:
    """Behind a ClusterIP the refused probe may have met another pod: what still comes still counts."""
    events = chunk(token_event()) * 10
    fake_vllm.play(Send(STREAM_HEAD), SendSlowly(events, size=len(events) // 10, pause=0.04), Send(LAST_CHUNK))
    running = await gateway(fake_vllm, backend=REFUSING, probes=True)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    await fake_vllm.down()
    got = b""
    while data := await client.chunk():
        got += data
    assert got == token_event() * 10
    assert not running.endpoints()[0].up


async def test_what_is_no_silent_stream_is_left_alone(fake_vllm: FakeVllm, gateway: Any, soon: float) -> None:
    """An answer that is not streamed is silent by nature, and a stream whose client reads slowly is not read."""
    go = asyncio.Event()
    fake_vllm.play(Wait(go), Send(json_answer({"late": True})))
    fake_vllm.play(Send(STREAM_HEAD), Flood(chunk(token_event("x" * 4000)), 3000), Send(LAST_CHUNK))
    running = await gateway(fake_vllm, backend=REFUSING, probes=True)
    plain, slow = await running.client(), await running.client(receive_buffer=4096)
    plain.send(plain.request(CHAT))
    await until(lambda: len(fake_vllm.posts) == 1)
    slow.send(slow.request(STREAM))
    await slow.head()
    await fake_vllm.down()
    await until(lambda: not running.endpoints()[0].up)
    await asyncio.sleep(4 * soon)
    go.set()
    assert (await plain.answer()).json == {"late": True}
    size = 0
    while data := await slow.chunk():
        size += len(data)
    assert size == 3000 * len(token_event("x" * 4000))


async def test_probe_that_times_out_ends_nothing(fake_vllm: FakeVllm, gateway: Any, soon: float) -> None:
    """A hanging health check takes the endpoint down; its streams may go on (capture 133: frozen, then back)."""
    fake_vllm.gets["/health"] = (Hang(),)
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(go := asyncio.Event()), Send(LAST_CHUNK))
    running = await gateway(fake_vllm, backend=REFUSING, probes=True)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    await until(lambda: not running.endpoints()[0].up)
    await asyncio.sleep(3 * soon)
    go.set()
    assert [await client.chunk(), await client.chunk()] == [token_event(), b""]
