"""Nothing is left behind: hundreds of requests that go wrong in every way, then everything is counted."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from typing import Any

import pytest

from aiaas.proxy.upstream.connection import IDLE_LIMIT, UpstreamConnection
from aiaas.proxy.upstream.relay import Relay
from aiaas.proxy.upstream.waiter import Waiter
from tests.fakes.faults import FAULTS
from tests.proxy.conftest import Raw, Running
from tests.waiting import until

REQUESTS = 500
AT_ONCE = 25


async def misbehave(running: Running, random: random.Random) -> None:
    """One client: asks, waits a while or for the answer, and leaves in one way or another."""
    client = await Raw.connect(running.port, running.key)
    body = {"model": random.choice(["m", "alias"]), "messages": [], "stream": random.random() < 0.7}
    client.send(client.request(body, version=random.choice(["1.1", "1.1", "1.0"])))
    try:
        way = random.random()
        if way < 0.5:
            await client.answer()
        elif way < 0.7:
            await client.head()
        else:
            await asyncio.sleep(random.random() * 0.03)
    except asyncio.IncompleteReadError:
        pass
    leave = random.choice([client.reset, client.close, client.half_close])
    leave()
    if leave == client.half_close:
        await client.ended()
        client.close()


def tasks() -> set[str]:
    """Coroutines that are under way, by name, but for the fakes' own."""
    names = {getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks()}
    return {name for name in names if not name.startswith(("_Connection.live", "test_"))}


def living(kind: type) -> int:
    """The number of objects of a class."""
    return sum(type(thing) is kind for thing in gc.get_objects())


@pytest.mark.parametrize("max_inflight", [None, 3], ids=["no bound", "through the queue"])
async def test_nothing_is_left_behind(fake_vllms: Any, gateway: Any, max_inflight: int | None) -> None:
    """After 500 requests with random faults on both sides no connection, slot, timer, task or file is left."""
    fakes = [await fake_vllms() for _ in range(2)]
    dice = random.Random(20261123)
    for fake in fakes:
        fake.scripts.extend(dice.choice(FAULTS) for _ in range(2 * REQUESTS))
    health = {"unhealthy_after": 100_000}
    running = await gateway(
        *fakes,
        backend={
            "timeout": "60ms",
            "health": health,
            "max_inflight": max_inflight,
            "queue": {"size": AT_ONCE // 3, "max_wait": "10s"},
        },
        server={"heartbeat": "20ms"},
        rate_limit={"requests_per_minute": 100_000, "max_concurrent": AT_ONCE * 2},
    )
    files, before = len(os.listdir("/proc/self/fd")), tasks()
    room = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with room:
            await misbehave(running, dice)

    await asyncio.gather(*[one() for _ in range(REQUESTS)])
    await running.quiet()

    assert running.gateway.in_flight == running.backend().waiting == 0
    assert not any(connection.listener for connection in running.open_side.connections)
    assert [(endpoint.pool.inflight, len(endpoint.streams)) for endpoint in running.endpoints()] == [(0, 0), (0, 0)]
    assert len(running.log_lines()) == REQUESTS
    assert not any(line["status"] == 429 for line in running.log_lines())
    later = asyncio.get_running_loop().time() + IDLE_LIMIT
    for endpoint in running.endpoints():
        assert endpoint.pool.take_idle(later) is None
    await until(lambda: not any(fake.open_connections for fake in fakes))
    await until(lambda: not running.open_side.connections)
    await until(lambda: tasks() <= before)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= files)
    gc.collect()
    assert (living(Relay), living(UpstreamConnection), living(Waiter)) == (0, 0, 0)
