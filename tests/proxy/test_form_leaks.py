"""Nothing is left behind by forms: hundreds of uploads that go wrong on either side, then everything is counted."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest

from aiaas.openai.paths import TRANSCRIPTIONS
from tests.fakes.faults import FAULTS
from tests.proxy.conftest import Raw, Running
from tests.proxy.forms import AUDIO, BOUNDARY, LARGE, SMALL, TYPE, file_first, model_first
from tests.proxy.test_leaks import tasks
from tests.waiting import until

UPLOADS = 200
AT_ONCE = 10
FORMS = (
    model_first(SMALL),
    file_first(SMALL, "alias"),
    model_first(LARGE[: 2 * 1024**2]),
    file_first(LARGE[: 2 * 1024**2], "alias"),
    file_first(LARGE[: 2 * 1024**2], "nope"),
    model_first(LARGE[: 2 * 1024**2], "m", ("stream", b"true")),
    model_first(LARGE[: 2 * 1024**2]).replace(f"--{BOUNDARY}--".encode(), b"--wrong--"),
)


async def misbehave(running: Running, dice: random.Random) -> None:
    """One client: sends a form or a part of it, waits a while or for the answer, and leaves."""
    client = await Raw.connect(running.port, running.key)
    body = dice.choice(FORMS)
    head = client.request(None, path=TRANSCRIPTIONS, headers={"Content-Type": TYPE, "Content-Length": str(len(body))})
    client.send(head + body[: len(body) if dice.random() < 0.7 else dice.randrange(len(body))])
    try:
        if dice.random() < 0.6:
            await client.answer()
        else:
            await asyncio.sleep(dice.random() * 0.03)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    dice.choice([client.reset, client.close])()


@pytest.mark.parametrize("max_inflight", [None, 3], ids=["no bound", "through the queue"])
async def test_forms_leave_nothing_behind(fake_vllms: Any, gateway: Any, max_inflight: int | None) -> None:
    """After 200 uploads no connection, slot, task, file or byte of the budget is left."""
    fakes = [await fake_vllms() for _ in range(2)]
    dice = random.Random(20261127)
    for fake in fakes:
        fake.scripts.extend(dice.choice(FAULTS) for _ in range(2 * UPLOADS))
    backend = {**AUDIO, "timeout": "100ms", "health": {"unhealthy_after": 100_000}, "max_inflight": max_inflight,
               "queue": {"size": AT_ONCE, "max_wait": "10s"}}  # fmt: skip
    running = await gateway(*fakes, backend=backend, server={"body_timeout": "100ms"})
    files, before = len(os.listdir("/proc/self/fd")), tasks()
    room = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with room:
            await misbehave(running, dice)

    await asyncio.gather(*[one() for _ in range(UPLOADS)])
    await until(lambda: running.gateway.in_flight == 0, 10)
    assert running.backend().waiting == 0
    assert [(endpoint.pool.inflight, len(endpoint.streams)) for endpoint in running.endpoints()] == [(0, 0), (0, 0)]
    assert len(running.log_lines()) == UPLOADS
    assert running.gateway.bodies.held == 0
    assert repr(running.gateway.bodies).endswith(" 0 keys>")
    for endpoint in running.endpoints():
        endpoint.pool.drop_idle()
    await until(lambda: tasks() <= before and len(os.listdir("/proc/self/fd")) <= files, 5)
