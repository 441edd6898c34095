"""The wall clock jumps by hours, forward and back (NTP, a suspended machine, an operator): only facts in wall
time follows it. Limits on rates, silence, health and connections go by the monotonic clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from aiaas.keys.model import KeyLimits
from tests.fakes.vllm import DONE, LAST_CHUNK, STREAM_HEAD, FakeVllm, Send, Wait, chunk, token_event
from tests.proxy.conftest import KnownKey, StartGateway, new_key

BODY = {"model": "m", "messages": []}
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0


class Wall:
    """A wall clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("jump", [5 * HOUR, -5 * HOUR, 40 * 24 * HOUR, -40 * 24 * HOUR])
async def test_a_rate_limit_is_neither_lifted_nor_prolonged(
    gateway: StartGateway, fake_vllm: FakeVllm, jump: float
) -> None:
    """An empty bucket stays empty, and Retry-After is as long as before."""
    wall, key = Wall(), new_key("bob", limits=KeyLimits(requests_per_minute=2))
    running = await gateway(fake_vllm, keys=(key,), wall=wall)
    client = await running.client()
    waits = []
    for number in range(4):
        got = await client.post(BODY, key=key.text)
        assert got.status == (200 if number < 2 else 429)
        waits.append(int(got.header("retry-after") or 0))
        wall.now += jump if number == 2 else 0
    assert 0 < waits[3] <= waits[2] <= 30


async def test_an_expiry_follows_the_clock_both_ways(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """A key that was verified once ends when its time has come, and is good again when the clock is set right."""
    wall, made = Wall(), new_key("carol")
    expires = datetime.fromtimestamp(NOON, UTC) + timedelta(hours=1)
    key = KnownKey(made.text, replace(made.record, expires=expires))
    running = await gateway(fake_vllm, keys=(key,), wall=wall)
    client = await running.client()
    statuses = []
    for hours in (0, 2, 0, -100, 1.001, 0.999):
        wall.now = NOON + hours * HOUR
        statuses.append((await client.post(BODY, key=key.text)).status)
    assert statuses == [200, 401, 200, 200, 401, 200]


@pytest.mark.parametrize("jump", [5 * HOUR, -5 * HOUR])
async def test_a_stream_lives_through_it(gateway: StartGateway, fake_vllm: FakeVllm, jump: float) -> None:
    """Its silence, its connection and its endpoint's health are timed otherwise; its line has its true length."""
    wall, finish = Wall(), asyncio.Event()
    fake_vllm.play(Send(STREAM_HEAD + chunk(token_event())), Wait(finish), Send(chunk(DONE) + LAST_CHUNK))
    health = {"interval": "20ms", "unhealthy_after": 1}
    running = await gateway(fake_vllm, backend={"health": health}, wall=wall, probes=True)
    client = await running.client()
    client.send(client.request(BODY | {"stream": True}))
    await client.head()
    assert await client.chunk() == token_event()
    wall.now += jump
    probed = len(fake_vllm.got)
    async with asyncio.timeout(2):
        while len(fake_vllm.got) < probed + 3:
            await asyncio.sleep(0.005)
    finish.set()
    assert (await client.chunk(), await client.chunk()) == (DONE, b"")
    assert (await client.post(BODY)).status == 200
    first, second = running.log_lines()
    assert 0 < first["duration_seconds"] < 5
    said = datetime.fromtimestamp(wall.now, UTC).strftime("%Y-%m-%dT%H")
    assert first["time"].startswith(said)
    assert second["time"].startswith(said)
    assert all(endpoint.up for endpoint in running.endpoints())


async def test_the_date_of_an_answer_follows_the_clock(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Its line is kept for a second of the clock, whichever way that goes."""
    wall = Wall()
    client = await (await gateway(fake_vllm, wall=wall)).client()
    for hours, said in ((0, "12:00:00"), (-3, "09:00:00"), (0, "12:00:00"), (5, "17:00:00")):
        wall.now = NOON + hours * HOUR
        date = (await client.get("/nothing")).header("date")
        assert date is not None
        assert said in date
