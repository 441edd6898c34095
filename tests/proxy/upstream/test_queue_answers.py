"""The answers of requests that wait, over real sockets: the place, when to come back, and the hopeless wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from aiaas.proxy.upstream.refusals import overloaded
from aiaas.proxy.upstream.wait_estimate import Prediction
from tests.fakes.vllm import (
    DONE,
    Close,
    FakeVllm,
    Send,
    Step,
    Wait,
    error_answer,
    json_answer,
    stream,
    token_event,
)
from tests.proxy.conftest import Got, Raw, Running, StartGateway, config_of, new_key, plan_of
from tests.waiting import until

CHAT = {"model": "m", "messages": []}
STREAM = {**CHAT, "stream": True}
ONE_AT_ONCE = {"max_inflight": 1, "max_retries": 0, "health": {"unhealthy_after": 100}}
FINE = (Send(json_answer({"fine": True})),)
PLACE = "x-aiaas-queue-position"


async def occupied(running: Running, fake: FakeVllm) -> tuple[Raw, asyncio.Event]:
    """A client whose request has the only slot until the event is set."""
    go = asyncio.Event()
    fake.scripts.appendleft((Wait(go), *FINE))
    client = await running.client()
    client.send(client.request(CHAT))
    await until(lambda: len(fake.posts) == 1)
    return client, go


async def queued(running: Running, *bodies: Any, key: str | None = None) -> list[Raw]:
    """Clients whose requests wait, in this order."""
    clients = []
    for body in bodies:
        client = await running.client()
        longer = running.backend().waiting + 1
        client.send(client.request(body, key=key))
        async with asyncio.timeout(10):
            while running.backend().waiting < longer:
                await asyncio.sleep(0.001)
        clients.append(client)
    return clients


def remember(running: Running, grants: int, seconds: float) -> None:
    """As if the key that waits had so many grants in the last seconds, evenly."""
    rates = running.backend().rates
    (key,) = rates._keys
    now = running.gateway._loop.time()
    rates.forget(key)
    rates.begin(key, now - seconds)
    for count in range(grants):
        rates.granted(key, now - seconds * (1 - (count + 1) / grants))


def places(answers: Sequence[Got]) -> list[str | None]:
    """The header of each answer."""
    return [got.header(PLACE) for got in answers]


ANSWERS: dict[str, tuple[Any, tuple[Step, ...], int]] = {
    "an answer": (CHAT, FINE, 200),
    "a stream": (STREAM, (Send(stream(token_event(), DONE)),), 200),
    "a refusal of vLLM": (CHAT, (Send(error_answer(400, "no")),), 400),
    "an error of ours": (CHAT, (Close(),), 502),
    "one that vLLM claims itself": (CHAT, (Send(json_answer({}, headers=f"{PLACE}: 99\r\n")),), 200),
}


@pytest.mark.parametrize(("body", "script", "status"), ANSWERS.values(), ids=ANSWERS)
async def test_answer_after_a_wait_has_its_place(
    fake_vllm: FakeVllm, gateway: StartGateway, body: Any, script: tuple[Step, ...], status: int
) -> None:
    """Counted from 1 among the key's own requests, once in the head; no place where the request did not wait."""
    bob = new_key("bob")
    fake_vllm.default = script
    running = await gateway(fake_vllm, backend=ONE_AT_ONCE, keys=(bob,))
    first, go = await occupied(running, fake_vllm)
    waiting = [*await queued(running, body, body), *await queued(running, body, key=bob.text)]
    go.set()
    answers = [await client.answer() for client in (first, *waiting)]
    assert [got.status for got in answers] == [200, *[status] * 3]
    assert places(answers) == [None, "1", "2", "1"]
    assert all(sum(name.lower() == PLACE for name, _ in got.headers) == 1 for got in answers[1:])
    again = await running.client()
    assert (await again.post(body)).header(PLACE) is None
    assert running.metric('aiaas_queue_wait_seconds_count{class="default"}') == 3
    assert 0 < running.metric('aiaas_queue_wait_seconds_sum{class="default"}') < 30


async def test_request_that_waits_twice_keeps_its_first_place(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """A further attempt waits again; the answer has one place, and the metric both waits."""
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, "max_retries": 1})
    first, go = await occupied(running, fake_vllm)
    end = asyncio.Event()
    busy = Send(error_answer(503, "busy", headers="retry-after: 0\r\n"))
    fake_vllm.scripts.extend([FINE, (busy,), (Wait(end), *FINE), FINE])
    waiting = await queued(running, CHAT, CHAT, CHAT)
    go.set()
    await until(lambda: len(fake_vllm.posts) == 4 and running.backend().waiting == 1)
    end.set()
    answers = [await client.answer() for client in (first, *waiting)]
    assert [got.status for got in answers] == [200] * 4
    assert places(answers) == [None, "1", "2", "3"]
    assert running.metric('aiaas_queue_wait_seconds_count{class="default"}') == 4


async def test_second_wait_in_vain_has_its_place(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """The answer of the first attempt, which did not wait, says where the request waited then."""
    fields = {**ONE_AT_ONCE, "max_retries": 1, "queue": {"max_wait": "50ms"}}
    running = await gateway(fake_vllm, backend=fields)
    go = asyncio.Event()
    fake_vllm.scripts.append((Wait(go), Send(error_answer(503, "busy", headers="retry-after: 0\r\n"))))
    client = await running.client()
    client.send(client.request(CHAT))
    await until(lambda: len(fake_vllm.posts) == 1)
    running.endpoints()[0].pool.inflight += 1  # somebody's request that does not end
    go.set()
    got = await client.answer()
    assert (got.status, got.header(PLACE)) == (503, "1")


TOO_LATE = {"max_wait": ({"queue": {"max_wait": "30ms"}}, 503), "total_timeout": ({"total_timeout": "30ms"}, 504)}


@pytest.mark.parametrize(("fields", "status"), TOO_LATE.values(), ids=TOO_LATE)
async def test_wait_in_vain_has_its_place(
    fake_vllm: FakeVllm, gateway: StartGateway, fields: dict[str, Any], status: int
) -> None:
    """So does the error of a request that nobody served; it is a wait as any other."""
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, **fields})
    running.endpoints()[0].pool.inflight += 1  # somebody's request that does not end
    got = await (await running.client()).post(CHAT)
    assert (got.status, got.header(PLACE)) == (status, "1")
    assert running.metric('aiaas_queue_wait_seconds_count{class="default"}') == 1


async def test_client_that_leaves_the_queue_has_waited(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """Its wait counts, too: a queue that nobody stands is not a short one."""
    running = await gateway(fake_vllm, backend=ONE_AT_ONCE)
    await occupied(running, fake_vllm)
    (leaver,) = await queued(running, CHAT)
    leaver.reset()
    await until(lambda: running.backend().waiting == 0)
    assert running.metric('aiaas_queue_wait_seconds_count{class="default"}') == 1
    assert len(running.backend().rates) == 0


# what is remembered of the last seconds, and the Retry-After: two requests wait, so the next one is the third
KNOWN: dict[str, tuple[int, float, str]] = {
    "nothing": (0, 9, "5"),
    "too little": (2, 9, "5"),
    "a slow queue": (3, 30, "30"),
    "a part of a second": (100, 9, "1"),
    "more than a minute": (3, 58, "58"),
}


@pytest.mark.parametrize(("grants", "seconds", "told"), KNOWN.values(), ids=KNOWN)
async def test_full_queue_says_when_to_come_back(
    fake_vllm: FakeVllm, gateway: StartGateway, grants: int, seconds: float, told: str
) -> None:
    """As long as the request would have waited, and 5 s where nothing is known; it did not wait, so it has no place."""
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, "queue": {"size": 2}})
    first, go = await occupied(running, fake_vllm)
    waiting = await queued(running, CHAT, CHAT)
    remember(running, grants, seconds)
    got = await (await running.client()).post(CHAT)
    assert (got.status, got.json["error"]["code"], got.header(PLACE)) == (503, "overloaded", None)
    assert abs(int(got.header("retry-after") or 0) - int(told)) <= (told not in "15")
    go.set()
    assert [(await client.answer()).status for client in (first, *waiting)] == [200] * 3


CLAMPED = ((0.01, "1"), (1, "1"), (1.2, "2"), (59.5, "60"), (61, "60"), (1e12, "60"), (None, "5"))


@pytest.mark.parametrize(("seconds", "told"), CLAMPED)
def test_retry_after_is_1_to_60_seconds(seconds: float | None, told: str) -> None:
    """Rounded up; the SDKs do not wait for longer than a minute."""
    expected = None if seconds is None else Prediction(seconds, own=True)
    assert overloaded("", expected).headers == (("retry-after", told),)


async def test_hopeless_wait_is_refused_at_once(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """Over twice `max_wait` by the key's own grants: 503 that names the wait; it costs nothing, and others may wait.

    A reload's `max_wait` holds from then on.
    """
    bob = new_key("bob")
    fields = {**ONE_AT_ONCE, "queue": {"max_wait": "9s"}}
    limits = {"requests_per_minute": 9}
    running = await gateway(fake_vllm, backend=fields, keys=(bob,), rate_limit=limits)
    first, go = await occupied(running, fake_vllm)
    waiting = await queued(running, CHAT, CHAT)
    remember(running, 3, 20)
    for _ in range(10):
        got = await (await running.client()).post(CHAT)
        assert (got.status, got.json["error"]["code"], got.header(PLACE)) == (503, "overloaded", None)
    assert got.json["error"]["message"] == "Requests of this key would wait for about 21 s; try again later."
    assert got.header("retry-after") == "21"
    waiting += await queued(running, CHAT, key=bob.text)
    changed = {**fields, "queue": {"max_wait": "15s"}}
    running.gateway.replace_plan(plan_of(config_of([fake_vllm.url], changed, {"rate_limit": limits})))
    waiting += await queued(running, CHAT)
    assert running.metric('aiaas_queue_wait_seconds_count{class="default"}') == 0
    go.set()
    assert [(await client.answer()).status for client in (first, *waiting)] == [200] * 5


async def test_slow_key_is_not_refused_by_the_rate_of_others(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """A key without grants of its own may have credit: it waits, however slow all are."""
    running = await gateway(fake_vllm, backend={**ONE_AT_ONCE, "queue": {"max_wait": "1s"}})
    await occupied(running, fake_vllm)
    await queued(running, CHAT)
    remember(running, 2, 50)
    rates = running.backend().rates
    rates.begin("other", 0)
    for _ in range(3):
        rates.granted("other", running.gateway._loop.time())
    await queued(running, CHAT)
    rates.forget("other")


async def test_reserve_gives_no_place(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """A request that the reserve lets in at once, past others that wait, did not wait."""
    bob, go = new_key("bob"), asyncio.Event()
    fake_vllm.default = (Wait(go), *FINE)
    fields = {**ONE_AT_ONCE, "max_inflight": 8, "fair": {"credit": 2000}}
    running = await gateway(fake_vllm, backend=fields, keys=(bob,))
    heavy = [await running.client() for _ in range(10)]
    for client in heavy:
        client.send(client.request(CHAT))
    await until(lambda: running.backend().waiting == 2)
    light = await running.client()
    light.send(light.request(CHAT, key=bob.text))
    await until(lambda: len(fake_vllm.posts) == 9)
    go.set()
    assert (await light.answer()).header(PLACE) is None
    assert sorted(places([await client.answer() for client in heavy]), key=str) == ["1", "2", *[None] * 8]
    assert running.metric('aiaas_queue_wait_seconds_count{class="default"}') == 2
