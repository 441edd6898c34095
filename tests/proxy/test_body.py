"""aiaas.proxy.body: bounds on what one request may ask for, and on what all may hold together, over real sockets.

How single bodies arrive is tested in test_app."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest

from aiaas.errors import ClientError, UpstreamError
from aiaas.openai import paths
from aiaas.openai.peek import peek
from aiaas.plan.model import RequestPlan, Route
from aiaas.proxy.body import SMALL_BODY, BodyBudget, bound_output, refuse_harm
from aiaas.proxy.examine import ON_LOOP
from aiaas.proxy.record import Record
from tests.fakes.vllm import FakeVllm, Hang, Send, Wait, chunk, json_answer
from tests.proxy.conftest import CHAT, Raw, Running, StartGateway, new_key

URL = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x"}}
DATA = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def route(
    path: str, most: int | None, over: Literal["reject", "clamp"] = "reject", default: int | None = None
) -> Route:
    """A model's entry."""
    return Route(path, "m", (), most, default, over)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (paths.CHAT, {"n": 8}, None),
        (paths.CHAT, {"n": 9}, "n"),
        (paths.COMPLETIONS, {"prompt": ["a"] * 8}, None),
        (paths.COMPLETIONS, {"prompt": ["a"] * 9}, "prompt"),
        (paths.COMPLETIONS, {"prompt": ["a"] * 4, "n": 2}, None),
        (paths.COMPLETIONS, {"prompt": ["a"] * 5, "n": 2}, "prompt"),
        (paths.COMPLETIONS, {"prompt": "a", "best_of": 9}, "n"),
        (paths.COMPLETIONS, {"prompt": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}, None),
        (paths.EMBEDDINGS, {"input": ["a"] * 1000}, None),
        (paths.RESPONSES, {"background": True}, "background"),
        (paths.RESPONSES, {"background": False}, None),
        (paths.CHAT, {"messages": [{"content": [URL]}]}, "messages"),
        (paths.CHAT, {"messages": [{"content": [DATA]}]}, None),
        (paths.RESPONSES, {"input": [{"content": [{"type": "input_image", "image_url": "http://x/"}]}]}, "input"),
    ],
    ids=[
        "n at the bound", "n", "prompts at the bound", "prompts", "n times prompts at the bound", "n times prompts",
        "best_of", "one prompt as token ids", "a batch to embed", "background", "no background", "media by URL",
        "media inside", "media by URL in responses",
    ],
)  # fmt: skip
def test_what_would_hurt_others_is_refused(path: str, body: dict[str, Any], param: str | None) -> None:
    """And names the field."""
    peeked = peek(json.dumps({"model": "m"} | body).encode(), path)
    rules = RequestPlan(media_urls="deny", max_choices=8)
    if param is None:
        refuse_harm(peeked, rules, path)
    else:
        with pytest.raises(ClientError) as caught:
            refuse_harm(peeked, rules, path)
        assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_request", param)


def test_media_by_url_may_be_allowed() -> None:
    """By the config, knowingly."""
    peeked = peek(json.dumps({"model": "m", "messages": [{"content": [URL]}]}).encode(), paths.CHAT)
    refuse_harm(peeked, RequestPlan(media_urls="allow", max_choices=8), paths.CHAT)


@pytest.mark.parametrize(
    ("entry", "body", "sent", "bound"),
    [
        (route(paths.CHAT, None), b'{"a":1}', b'{"a":1}', None),
        (route(paths.CHAT, None, default=7), b'{"a":1}', b'{"a":1}', 7),
        (route(paths.CHAT, None, default=7), b'{"max_tokens":9}', b'{"max_tokens":9}', 9),
        (route(paths.CHAT, 5), b'{"a":1}', b'{"max_tokens":5,"a":1}', 5),
        (route(paths.CHAT, 5), b'{"max_tokens":null}', b'{"max_tokens":5}', 5),
        (route(paths.CHAT, 5), b'{"max_tokens":3}', b'{"max_tokens":3}', 3),
        (route(paths.CHAT, 5), b'{"max_completion_tokens":3}', b'{"max_completion_tokens":3}', 3),
        (route(paths.CHAT, 5, "clamp"), b'{"max_tokens":9}', b'{"max_tokens":5}', 5),
        (
            route(paths.CHAT, 5, "clamp"),
            b'{"max_tokens":1,"max_completion_tokens":9}',
            b'{"max_tokens":1,"max_completion_tokens":5}',
            5,
        ),
        (route(paths.RESPONSES, 5), b'{"a":1}', b'{"max_output_tokens":5,"a":1}', 5),
        (route(paths.EMBEDDINGS, 5), b'{"a":1}', b'{"a":1}', None),
    ],
    ids=[
        "no bound", "default reserves only", "asked", "spliced in", "null is absent", "asked less",
        "asked less in the new field", "clamped", "clamped in the field that vLLM obeys", "responses", "no output",
    ],
)  # fmt: skip
def test_the_output_is_bounded(entry: Route, body: bytes, sent: bytes, bound: int | None) -> None:
    """The request is changed only where it must be."""
    assert bound_output(body, peek(body, entry.path), entry) == (sent, bound)


def test_more_than_the_model_allows_is_refused_by_name() -> None:
    """Unless the entry says clamp."""
    body = b'{"max_completion_tokens":9}'
    with pytest.raises(ClientError, match="at most 5") as caught:
        bound_output(body, peek(body, paths.CHAT), route(paths.CHAT, 5))
    assert caught.value.param == "max_completion_tokens"


# -- what all bodies hold together -----------------------------------------------------------------------------------


def record(user: str = "x") -> Record:
    """Of a request of `user` that has just begun."""
    return Record(request_id="r", path=CHAT, started=0.0, client_address="x", user=user)


def test_the_budget_is_eight_of_the_largest_bodies_and_64_mib_at_least() -> None:
    """Whatever a reload makes of it."""
    budget = BodyBudget(1024)
    assert budget.most == 64 * 1024**2
    budget.resize(10 * 1024**2)
    assert budget.most == 80 * 1024**2


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    """A body that grows takes the difference; what is given back is free at once."""
    budget = BodyBudget(1024)
    first, other, late = record("a"), record("b"), record("c")
    half = budget.most // 2
    budget.take(first, 1000)
    budget.take(first, half)
    budget.take(other, half)
    with pytest.raises(UpstreamError) as caught:
        budget.take(late, 1)
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert ("retry-after", "2") in caught.value.headers
    assert (budget.held, late.body_held) == (budget.most, 0)
    for done in (first, other, late):
        budget.give_back(done)
    budget.take(late, 1)
    assert budget.held == 1


def test_one_key_takes_half_of_the_budget_and_no_more() -> None:
    """By any number of requests; what one of them gives back it may take again, and others have the other half."""
    budget = BodyBudget(1024)
    mine = [record("a") for _ in range(5)]
    quarter = budget.most // 4
    for one in mine[:2]:
        budget.take(one, quarter)
    with pytest.raises(UpstreamError, match="You are sending") as caught:
        budget.take(mine[2], 1)
    assert (caught.value.status, mine[2].body_held, budget.held) == (503, 0, 2 * quarter)
    budget.take(record("b"), quarter)
    budget.give_back(mine[0])
    budget.take(mine[2], quarter)
    with pytest.raises(UpstreamError):
        budget.take(mine[3], 1)


def padded(size: int, **fields: Any) -> bytes:
    """A chat request of `size` bytes."""
    body = json.dumps({"model": "m", "messages": [], "pad": ""} | fields).encode()
    return body.replace(b'"pad": "', b'"pad": "' + b"x" * (size - len(body)))


LARGE = padded(200_000)
CHUNKED = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}


@pytest.fixture
async def tight(gateway: StartGateway, fake_vllm: FakeVllm) -> Running:
    """A gateway in which two bodies of 200,000 bytes of a key fit at once, and none beyond 300,000."""
    running = await gateway(fake_vllm, server={"max_body_size": "300kB", "body_timeout": "200ms"})
    running.gateway.bodies.most = 1_000_000
    return running


async def until_held(running: Running, size: int) -> None:
    """Wait until large bodies hold `size` bytes."""
    async with asyncio.timeout(2):
        while running.gateway.bodies.held != size:
            await asyncio.sleep(0.005)


async def waiting_clients(running: Running, fake: FakeVllm, body: bytes, count: int) -> tuple[list[Raw], asyncio.Event]:
    """Clients whose requests wait for the backend until the event is set."""
    finish = asyncio.Event()
    clients = []
    for _ in range(count):
        fake.play(Wait(finish), Send(json_answer({"id": 1})))
        clients.append(await running.client())
        clients[-1].send(clients[-1].request(body))
    return clients, finish


async def test_a_body_that_finds_the_budget_spent_is_refused_unread(tight: Running, fake_vllm: FakeVllm) -> None:
    """By its announced length alone; once the others have ended there is room again."""
    clients, finish = await waiting_clients(tight, fake_vllm, LARGE, 2)
    await until_held(tight, 400_000)
    late = await tight.client()
    late.send(late.request(None, headers={"Content-Type": "application/json", "Content-Length": "200000"}))
    got = await late.answer()
    assert (got.status, got.json["error"]["code"], got.header("retry-after")) == (503, "overloaded", "2")
    assert got.header("connection") == "close"
    assert (await (await tight.client()).post(padded(SMALL_BODY))).status == 200
    finish.set()
    assert [(await client.answer()).status for client in clients] == [200, 200]
    await until_held(tight, 0)
    assert (await (await tight.client()).post(LARGE)).status == 200


async def test_uploads_of_one_key_that_never_end_leave_room_for_other_keys(
    gateway: StartGateway, fake_vllm: FakeVllm
) -> None:
    """Eight of the largest that drip a byte now and then would else refuse everybody's large requests."""
    other = new_key("bob")
    running = await gateway(fake_vllm, keys=(other,))
    announced = {"Content-Type": "application/json", "Content-Length": str(10 * 1024**2)}
    drips = [await running.client() for _ in range(8)]
    for drip in drips:
        drip.send(drip.request(None, headers=announced) + b"{")
    refused = [await drip.answer() for drip in drips[4:]]
    assert {got.status for got in refused} == {503}
    assert running.gateway.bodies.held == 40 * 1024**2
    bob = await Raw.connect(running.port, other.text)
    assert (await bob.post(LARGE)).status == 200
    bob.close()


async def test_a_chunked_body_is_refused_when_it_has_grown_too_large_for_the_rest(
    tight: Running, fake_vllm: FakeVllm
) -> None:
    """It takes as it comes, and what it took is given back."""
    _, finish = await waiting_clients(tight, fake_vllm, LARGE, 2)
    await until_held(tight, 400_000)
    late = await tight.client()
    late.send(late.request(None, headers=CHUNKED) + chunk(b"x" * 60_000))
    await asyncio.sleep(0.02)
    assert tight.gateway.bodies.held == 400_000
    late.send(chunk(b"x" * 30_000))
    await until_held(tight, 490_000)
    late.send(chunk(b"x" * 30_000))
    assert (await late.answer()).json["error"]["code"] == "overloaded"
    await until_held(tight, 400_000)
    finish.set()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (LARGE, 200),
        (padded(200_000, model="other"), 404),
        (b"x" * 200_000, 400),
        (LARGE[:100_000], 408),
        (LARGE[:100_000], None),
        (LARGE, None),
    ],
    ids=["finished", "refused", "no JSON", "stopped", "left while sending", "left while waiting"],
)
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_the_budget_is_given_back_on_every_way_out(
    tight: Running, fake_vllm: FakeVllm, sent: bytes, status: int | None, announced: bool
) -> None:
    """And was taken before."""
    whole = len(sent) == 200_000
    if status is None:
        fake_vllm.default = (Hang(),)
    client = await tight.client()
    if announced:
        client.send(client.request(sent, headers={"Content-Length": "200000"}))
    else:
        client.send(client.request(None, headers=CHUNKED) + chunk(sent) + (b"0\r\n\r\n" if whole else b""))
    if status is None:
        await until_held(tight, 200_000 if announced else len(sent))
        client.reset()
    else:
        assert (await client.answer()).status == status
    await tight.quiet()
    assert tight.gateway.bodies.held == 0


async def test_413_gives_back_what_was_taken(tight: Running) -> None:
    """A chunked body passes the bound only after it has taken most of the budget."""
    client = await tight.client()
    client.send(client.request(None, headers=CHUNKED) + chunk(b"x" * 290_000))
    await until_held(tight, 290_000)
    client.send(chunk(b"x" * 20_000))
    assert (await client.answer()).status == 413
    await tight.quiet()
    assert tight.gateway.bodies.held == 0


@pytest.mark.parametrize("model", ["m", "alias"])
@pytest.mark.parametrize("size", [SMALL_BODY, SMALL_BODY + 1, ON_LOOP, ON_LOOP + 1, 3_000_000])
async def test_a_body_of_any_size_goes_through_whole(
    gateway: StartGateway, fake_vllm: FakeVllm, size: int, model: str
) -> None:
    """Whether it is sent in one part or two, and read on the loop or beside it."""
    client = await (await gateway(fake_vllm)).client()
    body = padded(size, model=model)
    assert (await client.post(body)).status == 200
    assert fake_vllm.posts[0].body == body.replace(b'"alias"', b'"m"')
    assert (await client.post(body[:-1])).json["error"]["code"] == "invalid_json"
