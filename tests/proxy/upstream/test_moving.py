"""aiaas.proxy.upstream.moving: streams leave an endpoint that drains."""

from __future__ import annotations

import asyncio

from aiaas.proxy.upstream import moving
from tests.fakes.vllm import DONE, LAST_CHUNK, Send, Wait, chunk
from tests.proxy.conftest import config_of, plan_of
from tests.proxy.upstream.test_resume import CHAT, PIECES, WITH_USAGE, event, first, replicas, rest, resuming, whole
from tests.waiting import until

__all__ = ["replicas"]

RESUME = {"resume": "exact", "balance": "least_inflight"}


LIMITED = {"max_inflight": 4, "fair": {"reserve": 0}}


def urls_of(replicas):
    return [replicas[1].url, {"url": replicas[0].url, "drain": True}]


def draining(replicas):
    """The Plan in which the first replica drains."""
    return plan_of(config_of([], RESUME | {"urls": urls_of(replicas)}, {}))


async def test_streams_move_a_few_at_a_time_and_the_others_finish(gateway, replicas, monkeypatch):
    """No client sees more than a pause; the endpoint is not at fault."""
    monkeypatch.setattr(moving, "MOVED_AT_ONCE", 2)
    monkeypatch.setattr(moving, "MOVE_INTERVAL", 0.02)
    go = asyncio.Event()
    last = chunk(event({"content": ""}, "stop")) + chunk(DONE) + LAST_CHUNK
    running = await resuming(gateway, replicas)
    for endpoint in running.endpoints():
        endpoint.pool.inflight += 10 * (endpoint.plan.url == replicas[1].url)
    tasks = []
    for request in (*[WITH_USAGE] * 3, CHAT | {"frequency_penalty": 1}):
        replicas[0].play(Send(first(PIECES[:9])), Wait(go), Send(last))
        tasks.append(asyncio.ensure_future((await running.client()).post(request)))
    await until(lambda: [record.events for record in running.gateway.live] == [9] * 4)
    replicas[1].default = (Send(rest(PIECES[9:], 9)),)
    running.gateway.replace_plan(draining(replicas))
    await until(lambda: sum(task.done() for task in tasks) == 3)
    assert [(await task).body for task in tasks[:3]] == [whole()] * 3
    assert not tasks[3].done()
    go.set()
    assert (await tasks[3]).body.endswith(DONE)
    drained = next(endpoint for endpoint in running.endpoints() if endpoint.plan.url == replicas[0].url)
    assert (drained.failures, drained.healthy) == (0, True)
    assert running.backend().no_resume_until < 0
    assert [line["resume_outcome"] for line in running.log_lines() if "resume_outcome" in line] == ["resumed"] * 3


async def test_stream_that_has_just_begun_leaves_later(gateway, replicas, monkeypatch):
    """As soon as it has had its eight events."""
    monkeypatch.setattr(moving, "MOVE_INTERVAL", 0.02)
    go = asyncio.Event()
    more = b"".join(chunk(event({"content": piece})) for piece in PIECES[3:9])
    replicas[0].play(Send(first(PIECES[:3])), Wait(go), Send(more), Wait(asyncio.Event()))
    replicas[1].play(Send(rest(PIECES[9:], 9)))
    running = await resuming(gateway, replicas)
    answering = asyncio.ensure_future((await running.client()).post(WITH_USAGE))
    await until(lambda: bool(running.gateway.live) and running.gateway.live[0].events == 3)
    running.gateway.replace_plan(draining(replicas))
    go.set()
    assert (await answering).body == whole()


async def test_no_more_streams_leave_than_find_a_slot(gateway, replicas, monkeypatch):
    """One that had left would have nowhere to go, and end."""
    monkeypatch.setattr(moving, "MOVE_INTERVAL", 0.02)
    running = await resuming(gateway, replicas, **LIMITED)
    other = next(endpoint for endpoint in running.endpoints() if endpoint.plan.url == replicas[1].url)
    replicas[0].play(Send(first(PIECES[:9])), Wait(asyncio.Event()))
    answering = asyncio.ensure_future((await running.client()).post(WITH_USAGE))
    await until(lambda: bool(running.gateway.live) and running.gateway.live[0].events == 9)
    other.pool.inflight += 4
    running.gateway.replace_plan(plan_of(config_of([], RESUME | LIMITED | {"urls": urls_of(replicas)}, {})))
    await asyncio.sleep(0.1)
    assert not running.backend().resuming
    replicas[1].default = (Send(rest(PIECES[9:], 9)),)
    other.pool.inflight -= 4
    assert (await answering).body == whole()
