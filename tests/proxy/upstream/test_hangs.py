"""aiaas.proxy.upstream.hangs: streams of an engine that hangs end, others do not, and it comes back once it writes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from aiaas.plan.model import EnginePlan
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.hangs import end_if_hung, watch_hangs
from tests.fakes.vllm import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    FakeVllm,
    Flood,
    Hang,
    Send,
    Wait,
    answer,
    chunk,
    json_answer,
    token_event,
)
from tests.proxy.conftest import Raw, Running, StartGateway, config_of, plan_of
from tests.waiting import until

STREAM = {"model": "m", "messages": [], "stream": True}
BEGUN = Send(STREAM_HEAD + chunk(token_event()))
RULE = {"silent_after": "10s"}


class Line:
    """A stream whose last byte came at `at`; None: it waits for its first token, or its client is slow."""

    def __init__(self, at: float | None) -> None:
        self.at = at
        self.ended: list[str] = []

    def last_byte(self) -> float | None:
        """As a relay's."""
        return self.at

    def end_if_silent(self, since: float, why: str) -> None:
        """As a relay's; all of these are read."""
        assert self.at is not None
        assert self.at <= since
        self.ended.append(why)
        self.at = None


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands where it is put."""

    now = 0.0

    def time(self) -> float:
        """As put."""
        return self.now


def endpoint_with(*lines: Line, **backend: Any) -> EndpointState:
    """The one endpoint of a backend with these streams under way."""
    plan = plan_of(config_of(["http://127.0.0.1:1"], {"health": RULE, **backend}, {})).backends[0]
    [endpoint] = BackendState(plan, lambda _endpoint, _up, _reason: None).endpoints
    endpoint.streams.update(lines)
    return endpoint


# -- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last_bytes", "now", "ended"),
    [
        ([0.0, 0.0], 10.0, [True, True]),
        ([0.0, 0.0], 9.999, [False, False]),
        ([0.0, 0.001], 10.0, [False, False]),
        ([0.0, 0.001], 10.001, [True, True]),
        ([0.0], 1000.0, [False]),
        ([0.0, None], 1000.0, [False, False]),
        ([None, None, None], 1000.0, [False, False, False]),
        ([0.0, None, 0.0], 10.0, [True, False, True]),
        ([0.0, 0.0, 0.0, 999.0], 1000.0, [False, False, False, False]),
        ([], 1000.0, []),
    ],
)
def test_rule_ends_streams_that_all_stand_still(
    last_bytes: Sequence[float | None], now: float, ended: list[bool]
) -> None:
    """At least two begun streams, all silent for `silent_after`: they end, and only they; else none does."""
    lines = [Line(at) for at in last_bytes]
    endpoint = endpoint_with(*lines)
    end_if_hung(endpoint, now)
    assert [bool(line.ended) for line in lines] == ended
    assert endpoint.up == (not any(ended))


def test_stream_that_ends_in_between_leaves_the_other_alone() -> None:
    """Two streams are silent; one ends before the time is over: the other is alone, which proves nothing."""
    first, second = Line(0.0), Line(0.0)
    endpoint = endpoint_with(first, second)
    end_if_hung(endpoint, 9.0)
    endpoint.streams.discard(first)
    end_if_hung(endpoint, 11.0)
    assert second.ended == []
    endpoint.streams.add(third := Line(5.0))
    end_if_hung(endpoint, 14.9)
    assert second.ended == third.ended == []
    end_if_hung(endpoint, 15.0)
    assert second.ended == third.ended == ["no stream of its address had a byte for 10 s"]


def test_hung_endpoint_is_down_at_once() -> None:
    """It does not take `unhealthy_after` failures: no new request goes there."""
    endpoint = endpoint_with(Line(0.0), Line(0.0), Line(None), health={**RULE, "unhealthy_after": 5})
    end_if_hung(endpoint, 10.0)
    assert (endpoint.up, endpoint.hangs, endpoint.reason) == (False, True, "its 2 streams had no byte for 10 s")


def test_started_engine_is_left_to_its_supervisor() -> None:
    """Its streams end, and only its supervisor takes it down."""
    line, other, suspected = Line(0.0), Line(0.0), []
    endpoint = endpoint_with(line, other)
    backend = endpoint.backend
    backend.plan = dataclasses.replace(backend.plan, engine=EnginePlan("vllm", "m", "m", (), {}, 1, 1.0))
    endpoint.suspect = lambda: suspected.append(1)
    end_if_hung(endpoint, 10.0)
    assert (len(line.ended), len(other.ended), suspected, endpoint.up, endpoint.hangs) == (1, 1, [1], True, False)


def test_look_that_comes_late_does_not_count() -> None:
    """After a stop of this process (SIGSTOP, a suspended machine) the bytes of the time between are still unread."""
    loop = VirtualLoop()
    line, other = Line(0.0), Line(0.0)

    async def looks() -> None:
        task = asyncio.create_task(watch_hangs(endpoint_with(line, other).backend))
        await asyncio.sleep(0)
        for seconds, ended in ((100.0, 0), (101.0, 1)):
            loop.now = seconds
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(line.ended) == len(other.ended) == ended
        task.cancel()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(looks())


# -- over sockets ----------------------------------------------------------------------------------------------------


async def streams_of(running: Running, fake: FakeVllm, count: int) -> list[Raw]:
    """Clients that have each had one token of a stream that stands still from then on."""
    clients = []
    for _ in range(count):
        fake.play(BEGUN, Hang())
        client = await running.client()
        client.send(client.request(STREAM))
        await client.head()
        assert await client.chunk() == token_event()
        clients.append(client)
    return clients


def watched(running: Running) -> asyncio.Task[None]:
    """The task that looks for hung endpoints of the gateway's one backend."""
    [backend] = running.gateway.active.backends.values()
    return asyncio.create_task(watch_hangs(backend))


async def test_streams_of_a_hung_engine_end_with_the_error_event(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """Three have begun, one waits for its first token, one is read slowly: the three end, the other two go on."""
    running = await gateway(fake_vllm, backend={"health": {"silent_after": "1s"}})
    go = asyncio.Event()
    fake_vllm.play(Send(STREAM_HEAD), Flood(chunk(token_event("x" * 4000)), 3000), Send(chunk(DONE) + LAST_CHUNK))
    slow = await running.client(receive_buffer=4096)
    slow.send(slow.request(STREAM))
    await slow.head()
    fake_vllm.play(Send(STREAM_HEAD), Wait(go), Send(chunk(token_event()) + chunk(DONE) + LAST_CHUNK))
    waiting = await running.client()
    waiting.send(waiting.request(STREAM))
    await until(lambda: len(fake_vllm.posts) == 2)
    clients = await streams_of(running, fake_vllm, 3)
    [endpoint] = running.endpoints()
    await until(lambda: sum(stream.last_byte() is not None for stream in endpoint.streams) == 3)
    task, began = watched(running), asyncio.get_running_loop().time()
    for client in clients:
        assert b'"code":"upstream_error"' in await client.chunk()
        assert await client.chunk() == b""
    assert asyncio.get_running_loop().time() - began < 2.5
    assert (endpoint.up, len(endpoint.streams)) == (False, 2)
    go.set()
    await waiting.head()
    late = b""
    while data := await waiting.chunk():
        late += data
    assert late == token_event() + DONE
    size = 0
    while data := await slow.chunk():
        size += len(data)
    assert size == 3000 * len(token_event("x" * 4000)) + len(DONE)
    task.cancel()


async def test_hung_engine_is_up_again_once_it_writes_a_token(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """Its `/health` is 200 all the time and does not bring it back, as the API server alone answers it."""
    health = {"silent_after": "50ms", "interval": "20ms", "timeout": "60ms"}
    running = await gateway(fake_vllm, backend={"health": health}, probes=True)
    await streams_of(running, fake_vllm, 2)
    fake_vllm.play(Hang())
    task = watched(running)
    [endpoint] = running.endpoints()
    await until(lambda: not endpoint.up)
    await until(lambda: len(fake_vllm.posts) == 3)
    asked = fake_vllm.posts[2]
    assert (asked.path, asked.json) == ("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": 1})
    assert not endpoint.up
    fake_vllm.play(Send(answer(500, b"{}")))
    fake_vllm.play(Send(json_answer({"choices": []})))
    await until(lambda: endpoint.up)
    assert len(fake_vllm.posts) == 5
    assert [line["reason"] for line in running.log_lines("endpoint_down")] == ["its 2 streams had no byte for 0.05 s"]
    task.cancel()
