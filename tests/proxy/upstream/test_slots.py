"""aiaas.proxy.upstream.slots: who gets a slot at once and who waits, over real sockets; each end settles its charge."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.vllm import (
    BUSY,
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    FakeVllm,
    Hang,
    Reset,
    Send,
    Step,
    Wait,
    chunk,
    error_answer,
    json_answer,
    stream,
    token_event,
    usage_event,
)
from tests.proxy.conftest import Running, StartGateway, config_of, new_key
from tests.waiting import until

CHAT = {"model": "m", "messages": []}
STREAM = {**CHAT, "stream": True}
LONG = {**STREAM, "user": "x" * 20_000}  # about 5,000 tokens by its size
EIGHT = {"max_inflight": 8, "max_retries": 0, "health": {"unhealthy_after": 100}}
USED = {"usage": {"prompt_tokens": 70, "completion_tokens": 30, "total_tokens": 100}}


def charged(running: Running) -> float:
    """The tokens that the test's key was charged. Another key stays busy, so that it is not forgotten."""
    fair = running.backend().fair
    share = next((share for key, share in fair._keys.items() if key != "busy"), None)
    if share is None:  # forgotten, as it owes nothing
        return 0
    assert (share.inflight, share.prompts) == (0, 0)
    return share.finish - fair.base


ENDS: dict[str, tuple[Any, tuple[Step, ...], float]] = {
    "an answer with usage": (CHAT, (Send(json_answer(USED)),), 70 + 4 * 30),
    "a stream with usage": (STREAM, (Send(stream(token_event(), usage_event(9, 2), DONE)),), 9 + 4 * 2),
    "the engine refuses": (CHAT, (Send(error_answer(400, "no")),), 0),
    "the engine is busy": (CHAT, (Send(error_answer(503, BUSY)),), 0),
    "no answer": (CHAT, (Close(),), 0),
    "a reset": (CHAT, (Reset(),), 0),
}


@pytest.mark.parametrize(("body", "script", "tokens"), ENDS.values(), ids=ENDS)
async def test_each_end_is_charged_as_used(
    fake_vllm: FakeVllm, gateway: StartGateway, body: Any, script: tuple[Step, ...], tokens: float
) -> None:
    """Once, with the engine's own counts where there are some; nothing where the engine has not run it."""
    fake_vllm.default = script
    running = await gateway(fake_vllm, backend=EIGHT)
    running.backend().fair.charge("busy", 0.0)
    await (await running.client()).post(body)
    await running.quiet()
    assert charged(running) == tokens
    assert (running.endpoints()[0].pending, running.endpoints()[0].pool.inflight) == (0, 0)


@pytest.mark.parametrize("begun", [False, True], ids=["before its answer", "in its stream"])
async def test_client_that_leaves_is_charged(fake_vllm: FakeVllm, gateway: StartGateway, begun: bool) -> None:
    """For its prompt, and for the tokens that were streamed."""
    text = (Send(STREAM_HEAD + chunk(token_event())), Send(chunk(token_event())))
    fake_vllm.default = (*text, Hang()) if begun else (Hang(),)
    running = await gateway(fake_vllm, backend=EIGHT)
    running.backend().fair.charge("busy", 0.0)
    client = await running.client()
    client.send(client.request(STREAM))
    await until(lambda: len(fake_vllm.posts) == 1)
    if begun:
        await client.head()
        await until(lambda: running.endpoints()[0].pending == 0)
    client.reset()
    await running.quiet()
    assert (charged(running) > 4) == begun or charged(running) > 0
    assert (running.endpoints()[0].pending, running.endpoints()[0].pool.inflight) == (0, 0)


async def test_first_text_lets_the_next_prompt_in(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """A second long prompt of the key waits, with slots free, until the first one's answer begins."""
    go, end = asyncio.Event(), asyncio.Event()
    begun = Send(STREAM_HEAD + chunk(token_event()))
    fake_vllm.default = (Wait(go), begun, Wait(end), Send(chunk(DONE) + LAST_CHUNK))
    running = await gateway(fake_vllm, backend=EIGHT)
    clients = [await running.client() for _ in range(2)]
    for client in clients:
        client.send(client.request(LONG))
    await until(lambda: running.backend().waiting == 1 and len(fake_vllm.posts) == 1)
    go.set()
    await until(lambda: len(fake_vllm.posts) == 2)
    assert running.endpoints()[0].pool.inflight == 2
    end.set()
    assert [(await client.answer()).status for client in clients] == [200, 200]
    assert running.endpoints()[0].pending == 0


async def test_prompt_of_a_whole_answer_counts_for_a_moment(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """Its first byte comes at its end; the next long prompt goes on long before that."""
    go = asyncio.Event()
    fake_vllm.default = (Wait(go), Send(json_answer(USED)))
    running = await gateway(fake_vllm, backend=EIGHT)
    clients = [await running.client() for _ in range(2)]
    for client in clients:
        client.send(client.request({**LONG, "stream": False}))
    await until(lambda: len(fake_vllm.posts) == 2)
    go.set()
    assert [(await client.answer()).status for client in clients] == [200, 200]
    assert running.endpoints()[0].pending == 0


async def test_key_that_asks_for_little_is_not_kept_waiting(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """All slots are another key's, and its queue is full: the first requests of a new key are sent at once; a place in
    the queue costs that key's newest request its own."""
    bob, go = new_key("bob"), asyncio.Event()
    fake_vllm.default = (Wait(go), Send(json_answer(USED)))
    fields = {**EIGHT, "queue": {"size": 3}, "fair": {"credit": 2000}}
    running = await gateway(fake_vllm, backend=fields, keys=(bob,))
    heavy = [await running.client() for _ in range(11)]
    for client in heavy:
        client.send(client.request(CHAT))
    await until(lambda: running.backend().waiting == 3)
    light = [await running.client() for _ in range(3)]
    for count, client in enumerate(light):
        client.send(client.request({**CHAT, "user": "bob"}, key=bob.text))
        await until(lambda count=count: running.gateway.in_flight + len(running.log_lines()) == 12 + count)
    await until(lambda: len(fake_vllm.posts) == 10)
    assert [post.json.get("user") for post in fake_vllm.posts[8:]] == ["bob", "bob"]
    lines = running.log_lines()
    assert [(line["status"], line["user"]) for line in lines] == [(503, "alice")]
    assert running.backend().waiting == 3
    go.set()
    statuses = sorted([(await client.answer()).status for client in (*heavy, *light)])
    assert statuses == [200] * 13 + [503]
    assert running.endpoints()[0].pool.inflight == 0
    assert running.backend().fair.active == 0


async def test_jam_charges_what_began_before_it(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """Requests that came while nothing waited are charged when the first one has to wait, each once; then as used."""
    go = asyncio.Event()
    fake_vllm.default = (Wait(go), Send(json_answer(USED)))
    running = await gateway(fake_vllm, backend={**EIGHT, "max_inflight": 3})
    fair = running.backend().fair
    fair.charge("busy", 0.0)
    clients = [await running.client() for _ in range(4)]
    for client in clients[:3]:
        client.send(client.request(CHAT))
    await until(lambda: len(fake_vllm.posts) == 3)
    assert (len(fair.uncharged), fair.active) == (3, 1)
    clients[3].send(clients[3].request(CHAT))
    await until(lambda: fair.length == 1)
    share = next(share for key, share in fair._keys.items() if key != "busy")
    assert (len(fair.uncharged), fair.active, share.inflight) == (0, 2, 3)
    go.set()
    assert [(await client.answer()).status for client in clients] == [200] * 4
    await running.quiet()
    assert charged(running) == pytest.approx(4 * (70 + 4 * 30))
    assert (running.endpoints()[0].pending, fair.active, len(fair.uncharged)) == (0, 1, 0)


async def test_request_that_waits_at_two_is_charged_at_one(fake_vllms: Any, gateway: StartGateway) -> None:
    """Where it got its slot; the other backend keeps nothing of it."""
    fakes, go = [await fake_vllms(), await fake_vllms()], asyncio.Event()
    config = config_of([fakes[0].url], {"max_inflight": 1}, {})
    config["backends"]["other"] = {"url": fakes[1].url, "models": ["m"], "max_inflight": 1}
    for fake in fakes:
        fake.default = (Wait(go), Send(json_answer(USED)))
    running = await gateway(config=config)
    clients = [await running.client() for _ in range(3)]
    for client in clients:
        client.send(client.request(CHAT))
    await until(lambda: [running.backend(name).waiting for name in ("vllm", "other")] == [1, 1])
    go.set()
    assert [(await client.answer()).status for client in clients] == [200] * 3
    await running.quiet()
    assert [running.backend(name).fair.active for name in ("vllm", "other")] == [0, 0]


async def test_short_prompt_does_not_overtake_a_long_one(fake_vllm: FakeVllm, gateway: StartGateway) -> None:
    """A long prompt waits for others to be read; a key that is not under its share cannot pass it, with slots free."""
    go = asyncio.Event()
    begun = Send(STREAM_HEAD + chunk(token_event()))
    fake_vllm.default = (Wait(go), begun, Send(chunk(DONE) + LAST_CHUNK))
    running = await gateway(fake_vllm, backend={**EIGHT, "max_pending_prefill": 1000})
    clients = [await running.client() for _ in range(3)]
    bodies = {"first": {**STREAM, "user": "x" * 1600}, "long": LONG, "short": STREAM}
    for count, (client, body) in enumerate(zip(clients, bodies.values(), strict=True)):
        client.send(client.request(body))
        await until(lambda count=count: running.gateway.in_flight == 1 + count)
    await until(lambda: (running.backend().waiting, len(fake_vllm.posts)) == (2, 1))
    go.set()
    assert [(await client.answer()).status for client in clients] == [200] * 3
    assert [len(post.json.get("user", "")) for post in fake_vllm.posts] == [1600, 20_000, 0]
    assert running.endpoints()[0].pending == 0
