"""aiaas.proxy.upstream.bound_watch: an endpoint's bound follows its own metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiaas.proxy.tasks import end_tasks
from aiaas.proxy.upstream.bound_watch import BoundWatch
from aiaas.proxy.upstream.endpoint import EndpointState
from tests.fakes.vllm import FakeVllm, Hang, Send, Step, answer
from tests.proxy.conftest import Running, config_of, plan_of
from tests.waiting import until

AUTO = {"max_inflight": "auto"}
SOON = 0.01
TEXT = """\
process_start_time_seconds {started}
vllm:num_requests_running{{engine="0"}} {running}
vllm:num_requests_waiting{{engine="0"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0"}} {kv}
vllm:num_preemptions_total{{engine="0"}} {preemptions}
vllm:cache_config_info{{engine="0",kv_cache_size_tokens="20480"}} 1.0
"""
BEGUN = 10  # places: 20,480 tokens of cache for requests of 2,048


def says(running: int = 0, waiting: int = 0, kv: float = 0.1, preemptions: int = 0, started: float = 5) -> tuple[Step]:
    text = TEXT.format(running=running, waiting=waiting, kv=kv, preemptions=preemptions, started=started)
    return (Send(answer(200, text.encode(), content_type="text/plain")),)


@asynccontextmanager
async def watched(running: Running) -> AsyncIterator[EndpointState]:
    """Watch its backend, and yield the first endpoint."""
    (state,) = running.gateway.active.backends.values()
    watch = BoundWatch(state, running.gateway.log, running.metrics, SOON, SOON)
    task = asyncio.create_task(watch.run(), name="bounds")
    yield state.endpoints[0]
    assert not task.done()
    await end_tasks([task])


def shown(running: Running, fake: FakeVllm) -> float | None:
    """The metric; None if it is missing."""
    sample = f'aiaas_endpoint_max_inflight{{backend="vllm",endpoint="{fake.url}"}} '
    lines = running.metrics.expose().decode().splitlines()
    return next((float(line.removeprefix(sample)) for line in lines if line.startswith(sample)), None)


async def test_the_bound_comes_from_the_metrics(fake_vllm: FakeVllm, gateway: Any) -> None:
    """No bound before the first look; then what surely fits, and less once the cache is full."""
    fake_vllm.gets["/metrics"] = says()
    running = await gateway(fake_vllm, backend=AUTO)
    async with watched(running) as endpoint:
        assert endpoint.bound is None
        await until(lambda: endpoint.bound == BEGUN)
        assert shown(running, fake_vllm) == BEGUN
        fake_vllm.gets["/metrics"] = says(running=10, kv=0.99)
        await until(lambda: endpoint.bound == 2)


async def test_a_waiting_request_gets_a_place_when_the_bound_grows(fake_vllm: FakeVllm, gateway: Any) -> None:
    """It does not wait until another one ends."""
    fake_vllm.gets["/metrics"] = says(running=2, kv=0.99)
    running = await gateway(fake_vllm, backend=AUTO | {"fair": {"reserve": 0}})
    async with watched(running) as endpoint:
        await until(lambda: endpoint.bound == 2)
        for _ in range(3):
            fake_vllm.play(Hang())
        clients = [await running.client() for _ in range(3)]
        posts = [asyncio.create_task(client.post({"model": "m", "messages": []})) for client in clients[:2]]
        await until(lambda: len(fake_vllm.posts) == 2)
        posts.append(asyncio.create_task(clients[2].post({"model": "m", "messages": []})))
        await until(lambda: endpoint.backend.waiting == 1)
        fake_vllm.gets["/metrics"] = (Send(answer(404, b"", content_type="text/plain")),)
        await until(lambda: len(fake_vllm.posts) == 3)
        await end_tasks(posts)


@pytest.mark.parametrize("steps", [(Hang(),), (Send(answer(500, b"busy")),)], ids=["hangs", "fails"])
async def test_metrics_that_cannot_be_read_leave_the_bound(
    fake_vllm: FakeVllm, gateway: Any, steps: tuple[Step, ...]
) -> None:
    """A busy vLLM is the one that needs its bound."""
    fake_vllm.gets["/metrics"] = says()
    running = await gateway(fake_vllm, backend=AUTO)
    async with watched(running) as endpoint:
        await until(lambda: endpoint.bound == BEGUN)
        fake_vllm.gets["/metrics"] = steps
        seen = len(fake_vllm.got)
        await until(lambda: len(fake_vllm.got) > seen)
        await asyncio.sleep(3 * SOON)
        assert endpoint.bound == BEGUN
    assert running.log_lines("bound_unknown") == []


@pytest.mark.parametrize(
    "text", [answer(404, b"no"), answer(200, b"<html>", content_type="text/html")], ids=["none", "a page"]
)
async def test_an_endpoint_without_vllms_metrics_is_not_bounded(fake_vllm: FakeVllm, gateway: Any, text: bytes) -> None:
    """It is said once, and a server that has them later is bounded."""
    fake_vllm.gets["/metrics"] = (Send(text),)
    running = await gateway(fake_vllm, backend=AUTO)
    async with watched(running) as endpoint:
        await until(lambda: len(fake_vllm.got) > 2)
        assert endpoint.bound is None
        assert shown(running, fake_vllm) is None
        (line,) = running.log_lines("bound_unknown")
        assert "max_inflight: N" in line["problem"]
        fake_vllm.gets["/metrics"] = says()
        await until(lambda: endpoint.bound == BEGUN)


async def test_several_servers_at_one_address_are_noticed(fake_vllm: FakeVllm, gateway: Any) -> None:
    """The older one answers after the newer one: no restart does that."""
    fake_vllm.gets["/metrics"] = says(started=5)
    running = await gateway(fake_vllm, backend=AUTO)
    async with watched(running) as endpoint:
        await until(lambda: endpoint.bound == BEGUN)
        fake_vllm.gets["/metrics"] = says(started=9)
        seen = len(fake_vllm.got)
        await until(lambda: len(fake_vllm.got) > seen + 1)
        assert endpoint.bound == BEGUN  # perhaps it was restarted
        fake_vllm.gets["/metrics"] = says(started=5)
        await until(lambda: endpoint.bound is None)
        seen = len(fake_vllm.got)
        await until(lambda: len(fake_vllm.got) > seen + 2)
        assert endpoint.bound is None
    (line,) = running.log_lines("bound_unknown")
    assert "`dns:` or `urls:`" in line["problem"]


async def test_a_reload_keeps_the_bound(fake_vllm: FakeVllm, gateway: Any) -> None:
    """Nothing is found anew because a timeout was changed; a fixed bound holds at once, and so does none."""
    fake_vllm.gets["/metrics"] = says()
    running = await gateway(fake_vllm, backend=AUTO)
    async with watched(running) as endpoint:
        await until(lambda: endpoint.bound == BEGUN)
    for changed, bound in (({"timeout": "9s"}, BEGUN), ({"max_inflight": 3}, 3), ({"max_inflight": None}, None)):
        running.gateway.replace_plan(plan_of(config_of([fake_vllm.url], AUTO | changed, {})))
        assert endpoint.bound == bound
