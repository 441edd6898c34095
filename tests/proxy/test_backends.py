"""aiaas.proxy.backends: which endpoint is chosen, and how endpoints go down and come up."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from aiaas.plan.model import EnginePlan
from aiaas.proxy.backends import BackendState, EndpointState, choose, fetch
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
