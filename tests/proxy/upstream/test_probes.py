"""aiaas.proxy.upstream.probes: the effect of probes on endpoints, and which endpoints are watched."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiaas.proxy.tasks import Keeper
from aiaas.proxy.upstream.probes import Probes
from aiaas.proxy.upstream.resolve import Resolver
from tests.fakes.vllm import (
    DONE,
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
    json_answer,
    token_event,
)
from tests.proxy.conftest import plan_of
from tests.waiting import until

CHAT = {"model": "m", "messages": []}
STREAM = {**CHAT, "stream": True}
FAST = {"interval": "20ms", "timeout": "50ms"}


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
    running = await gateway(sick, well, backend={"health": FAST}, probes=True)
    first, second = running.endpoints()
    await until(lambda: not first.up)
    assert second.up
    client = await running.client()
    for _ in range(3):
        assert (await client.post(CHAT)).status == 200
    assert (len(sick.posts), len(well.posts)) == (0, 3)
    (down,) = running.log_lines("endpoint_down")
    assert down["upstream"] == sick.url
    assert down["reason"].startswith("health check: ")
    sample = f'aiaas_endpoint_up{{backend="vllm",endpoint="{sick.url}"}}'
    assert running.metric(sample) == 0
    sick.gets["/health"] = healthy
    if sickness is None:
        await sick.up()
    await until(lambda: first.up)
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


# -- a server that refuses and goes silent (transcript 131) -----------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds of silence after a refused probe, shortened."""
    monkeypatch.setattr("aiaas.proxy.upstream.endpoint.SILENT_AFTER_REFUSAL", 0.1)
    return 0.1


END = Send(chunk(DONE) + LAST_CHUNK)
REFUSING = {"health": {"interval": "50ms", "timeout": "2s", "unhealthy_after": 1}}
LOST = {"interval": "50ms", "timeout": "50ms"}


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
    assert soon < asyncio.get_running_loop().time() - started < 4  # its `timeout` is 5 s
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


async def test_stream_that_delivers_is_left_alone(
    fake_vllm: FakeVllm, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a ClusterIP the refused probe may have met another pod: later events still count."""
    monkeypatch.setattr("aiaas.proxy.upstream.endpoint.SILENT_AFTER_REFUSAL", 0.6)  # a busy machine pauses as well
    events = chunk(token_event()) * 10
    fake_vllm.play(Send(STREAM_HEAD), SendSlowly(events, size=len(events) // 10, pause=0.1), END)
    running = await gateway(fake_vllm, backend=REFUSING, probes=True)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    await fake_vllm.down()
    got = b""
    while data := await client.chunk():
        got += data
    assert got == token_event() * 10 + DONE
    assert not running.endpoints()[0].up


async def test_request_other_than_a_silent_stream_is_left_alone(fake_vllm: FakeVllm, gateway: Any, soon: float) -> None:
    """An answer that is not streamed is silent by nature, and a stream whose client reads slowly is not read."""
    go = asyncio.Event()
    fake_vllm.play(Wait(go), Send(json_answer({"late": True})))
    fake_vllm.play(Send(STREAM_HEAD), Flood(chunk(token_event("x" * 4000)), 3000), END)
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
    assert size == 3000 * len(token_event("x" * 4000)) + len(DONE)


async def test_lost_probes_end_streams_that_are_silent_since_before(
    fake_vllm: FakeVllm, gateway: Any, soon: float
) -> None:
    """A machine that is gone answers nothing: after `unhealthy_after` probes its silent streams end."""
    fake_vllm.gets["/health"] = (Hang(),)
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Hang())
    running = await gateway(fake_vllm, backend={"health": {**LOST, "unhealthy_after": 3}}, probes=True)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    assert await client.chunk() == token_event()
    assert b'"code":"upstream_error"' in await client.chunk()
    assert len(fake_vllm.got) >= 4  # the request and three probes
    assert not running.endpoints()[0].up


async def test_slow_health_check_ends_no_stream_that_delivers(fake_vllm: FakeVllm, gateway: Any) -> None:
    """A busy vLLM answers its probes too late: no new request goes there, and a stream of a moment ago goes on."""
    fake_vllm.gets["/health"] = (Hang(),)
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(go := asyncio.Event()), END)
    running = await gateway(fake_vllm, backend={"health": {**LOST, "unhealthy_after": 1}}, probes=True)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    [endpoint] = running.endpoints()
    await until(lambda: not endpoint.up and len(fake_vllm.got) >= 4)
    go.set()
    assert [await client.chunk() for _ in range(3)] == [token_event(), DONE, b""]


@pytest.mark.parametrize("shows", ["refused", "503"])
async def test_endpoint_that_shuts_down_is_reported_once(fake_vllm: FakeVllm, gateway: Any, shows: str) -> None:
    """While streams are under way there, for they may be moved: a probe that is refused, or gets 503."""
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(go := asyncio.Event()), END)
    running = await gateway(fake_vllm, backend={"health": {"interval": "20ms"}}, probes=True)
    client = await running.client()
    client.send(client.request(STREAM))
    await client.head()
    if shows == "refused":
        await fake_vllm.down()
    else:
        fake_vllm.gets["/health"] = (Send(answer(503, b"")),)
    await until(lambda: not running.endpoints()[0].up)
    [line] = running.log_lines("endpoint_draining")
    assert (line["upstream"], line["streams"]) == (fake_vllm.url, 1)
    assert shows in line["reason"]
    go.set()
    assert [await client.chunk() for _ in range(3)] == [token_event(), DONE, b""]


# -- what is watched -----------------------------------------------------------------------------------------------


async def test_watching_follows_the_plan(gateway: Any) -> None:
    """Another Plan of a backend restarts its watching, by its settings; an unchanged one is left in its rhythm."""
    rule = {"silent_after": "10s"}
    first = {"urls": ["http://127.0.0.1:1", "http://name.test:2"], "models": ["m"], "health": rule}
    second = {"dns": "other.test:3", "models": ["n"]}
    engine = {"engine": {"kind": "simulator"}, "models": ["e"]}
    running = await gateway(config={"backends": {"first": first, "second": second, "e": engine}})
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    log = running.gateway.log
    watching = Probes(log, running.metrics, Resolver(log, running.metrics, resolve), Keeper(log))

    def follow(**backends: Any) -> set[str]:
        running.gateway.replace_plan(plan_of({"backends": backends}))
        watching.follow(running.gateway.active.backends)
        return {task.get_name() for task in asyncio.all_tasks() if not task.cancelling()} & names

    names = {"probe first", "probe second", "probe e", "resolve name.test", "resolve other.test"}
    names |= {"models first", "models second", "models e", "hangs first", "hangs second", "hangs e"}
    names -= {"probe e", "hangs second", "hangs e"}
    assert follow(first=first, second=second, e=engine) == names
    await until(lambda: sorted(asked) == ["name.test", "other.test"])
    assert follow(first=first | {"timeout": "7s"}, second=second, e=engine) == names
    await until(lambda: sorted(asked) == ["name.test", "name.test", "other.test"])
    assert follow(second=second, e=engine) == {"probe second", "resolve other.test", "models second", "models e"}
    await watching.close()
    assert {task.get_name() for task in asyncio.all_tasks()} & names == set()
