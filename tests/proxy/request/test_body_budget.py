"""aiaas.proxy.request.body_budget: limits on the bytes of all bodies, and on the requests of one key that are read at
once."""

from __future__ import annotations

import asyncio

import pytest

from aiaas.errors import LimitError, UpstreamError
from aiaas.keys.model import KeyLimits
from aiaas.plan.model import ServerPlan
from aiaas.proxy.client.places import Places
from aiaas.proxy.request.body_budget import SMALL_BODY, BodyBudget
from aiaas.proxy.telemetry.record import NO_KEY, Record
from tests.fakes.vllm import FakeVllm, Hang, Send, Wait, chunk, json_answer
from tests.proxy.conftest import CHAT, Raw, Running, StartGateway, config_of, new_key, plan_of
from tests.proxy.request.test_body import padded


def server(**fields: object) -> ServerPlan:
    """The section `server` of a Plan."""
    return plan_of(config_of(["http://vllm"], {}, {"server": fields})).server


def budget_for(max_body_size: str) -> BodyBudget:
    """A budget of its own, with room for connections beside it."""
    plan = server(max_body_size=max_body_size)
    return BodyBudget(plan, Places(plan, lambda _reason: None))


def record(key_id: str = "id", user: str = "x") -> Record:
    """The record of a request with this key that has just begun."""
    return Record(request_id="r", path=CHAT, started=0.0, client_address="x", user=user, key_id=key_id)


def test_budget_is_eight_of_the_largest_bodies_or_64_mib() -> None:
    """A reload changes the budget too."""
    budget = budget_for("1KiB")
    assert budget.most == 64 * 1024**2
    budget.follow(server(max_body_size="10MiB"))
    assert budget.most == 80 * 1024**2


def test_a_body_without_room_is_refused_and_changes_nothing() -> None:
    """A body that grows takes the difference; released bytes are free at once."""
    budget = budget_for("1KiB")
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
        budget.leave(done)
    budget.take(late, 1)
    assert repr(budget) == f"<BodyBudget 1 of {budget.most} bytes, 1 keys>"


def test_one_key_takes_half_of_the_budget() -> None:
    """By any number of requests; a key may take again the bytes that it released, and others have the other half."""
    budget = budget_for("1KiB")
    mine = [record("a") for _ in range(5)]
    quarter = budget.most // 4
    for one in mine[:2]:
        budget.take(one, quarter)
    with pytest.raises(UpstreamError, match="You are sending") as caught:
        budget.take(mine[2], 1)
    assert (caught.value.status, mine[2].body_held, budget.held) == (503, 0, 2 * quarter)
    budget.take(record("b"), quarter)
    budget.leave(mine[0])
    budget.take(mine[2], quarter)
    with pytest.raises(UpstreamError):
        budget.take(mine[3], 1)


def test_a_body_counts_in_the_memory_of_all_connections() -> None:
    """One budget: where connections have spent it, a body finds no room."""
    plan = server()
    places = Places(plan, lambda _reason: None)
    budget = BodyBudget(plan, places)
    assert places.hold(places.most_bytes - 1000)
    budget.take(first := record(), 1000)
    with pytest.raises(UpstreamError, match="Too many large"):
        budget.take(record("b"), 1)
    assert places.held == places.most_bytes
    budget.leave(first)
    assert places.held == places.most_bytes - 1000


def test_a_small_body_counts_only_while_it_is_read() -> None:
    """A large body counts until its request has ended."""
    budget = budget_for("1MiB")
    small, large = record("a"), record("b")
    for one, size in ((small, SMALL_BODY), (large, SMALL_BODY + 1)):
        budget.start_reading(one, size)
        budget.take(one, size)
    assert budget.held == 2 * SMALL_BODY + 1
    budget.stop_reading(small)
    budget.stop_reading(large)
    assert budget.held == SMALL_BODY + 1
    budget.leave(small)
    budget.leave(large)
    assert (budget.held, repr(budget)) == (0, f"<BodyBudget 0 of {budget.most} bytes, 0 keys>")


def test_an_eighth_of_the_connections_may_be_read_for_one_key() -> None:
    """However small their bodies are; other keys do not notice."""
    budget = budget_for("1MiB")
    mine = [record("a") for _ in range(2048 // 8)]
    for one in mine:
        budget.start_reading(one, 10)
    with pytest.raises(UpstreamError, match="You are sending too many requests"):
        budget.start_reading(record("a"), 10)
    budget.start_reading(record("b"), 10)
    budget.stop_reading(mine[0])
    budget.start_reading(record("a"), 10)


def test_a_request_counts_as_read_once_however_it_ends() -> None:
    """Its body was whole, or its client left in the middle; afterwards the full number may be read again."""
    budget = budget_for("1MiB")
    most = 2048 // 8
    budget.start_reading(record("a"), 10)
    for number in range(most):
        one = record("a")
        budget.start_reading(one, 10)
        if number % 2:
            budget.stop_reading(one)
        budget.leave(one)
    for _ in range(most - 1):
        budget.start_reading(record("a"), 10)
    with pytest.raises(UpstreamError, match="You are sending too many requests"):
        budget.start_reading(record("a"), 10)


def test_without_keys_a_network_counts_as_one_key() -> None:
    """An IPv6 client has 2^64 addresses."""
    budget = budget_for("1MiB")
    for number in range(2048 // 8):
        budget.start_reading(record(NO_KEY, f"2001:db8::{number:x}"), 10)
    with pytest.raises(UpstreamError, match="You are sending too many requests"):
        budget.start_reading(record(NO_KEY, "2001:db8::ffff"), 10)
    budget.start_reading(record(NO_KEY, "2001:db8:0:1::1"), 10)


def test_requests_beyond_max_concurrent_are_not_read() -> None:
    """A request whose body is there is refused later, in its order; its end does not free another's slot."""
    budget = budget_for("1MiB")
    first, second = record(), record()
    budget.begin(first, 1)
    budget.begin(second, 1)
    budget.refuse_beyond(first)
    budget.start_reading(first, 10)
    with pytest.raises(LimitError) as caught:
        budget.start_reading(second, 10)
    assert (caught.value.status, caught.value.code) == (429, "concurrency_limit_exceeded")
    assert ("Retry-After", "1") in caught.value.headers
    with pytest.raises(LimitError):
        budget.refuse_beyond(second)
    budget.leave(second)
    third = record()
    budget.begin(third, 1)
    assert third.beyond == 1
    budget.leave(first)
    fourth = record()
    budget.begin(fourth, 1)
    assert not fourth.beyond


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


async def test_uploads_that_drip_take_no_room_for_what_they_announce(
    gateway: StartGateway, fake_vllm: FakeVllm
) -> None:
    """Eight of the largest that send a byte now and then once refused everybody's large requests."""
    running = await gateway(fake_vllm)
    announced = {"Content-Type": "application/json", "Content-Length": str(10 * 1024**2)}
    drips = [await running.client() for _ in range(8)]
    for drip in drips:
        drip.send(drip.request(None, headers=announced) + b"{")
    await until_held(running, 8)
    client = await running.client()
    assert (await client.post(LARGE)).status == 200
    assert (await client.post(padded(5_000_000))).status == 200


def held_back(client: Raw, sent: int, length: int) -> bytes:
    """A request that announces `length` bytes of body and brings `sent`."""
    headers = {"Content-Type": "application/json", "Content-Length": str(length)}
    return client.request(None, headers=headers) + b"x" * sent


async def test_small_bodies_held_back_by_one_key_are_bounded(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """8,000 connections with 65,000 of 65,536 bytes once killed the pod; another key is served meanwhile."""
    other = new_key("bob")
    running = await gateway(fake_vllm, keys=(other,), server={"max_connections": 80})
    clients = [await running.client() for _ in range(12)]
    for client in clients:
        client.send(held_back(client, 65_000, 65_536))
    refused = [await client.answer() for client in clients[10:]]
    assert {(got.status, got.json["error"]["code"]) for got in refused} == {(503, "overloaded")}
    await until_held(running, 10 * 65_000)
    bob = await Raw.connect(running.port, other.text)
    bob.send(held_back(bob, 65_000, 65_536))
    await until_held(running, 11 * 65_000)
    bob.send(b"x" * 536)
    assert (await bob.answer()).status == 400
    assert (await bob.post(LARGE)).status == 200
    bob.close()
    for client in clients:
        client.reset()
    await until_held(running, 0)


async def test_a_small_body_that_is_whole_counts_no_more(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """While its request is being answered, its key may have others read."""
    running = await gateway(fake_vllm, server={"max_connections": 80})
    fake_vllm.default = (Hang(),)
    clients = [await running.client() for _ in range(12)]
    for client in clients:
        body = padded(60_000)
        client.send(client.request(body)[:-10])
        await until_held(running, 60_000 - 10)
        client.send(body[-10:])
        await until_held(running, 0)
    assert running.gateway.in_flight == 12


async def test_a_request_being_read_counts_for_max_concurrent(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Others of its key get 429, those whose body is there as well; a refusal of ours costs nothing."""
    limited = new_key("carol", limits=KeyLimits(max_concurrent=1))
    running = await gateway(fake_vllm, keys=(limited,))
    reading, held, whole = [await Raw.connect(running.port, limited.text) for _ in range(3)]
    reading.send(held_back(reading, 10, 100))
    await until_held(running, 10)
    held.send(held_back(held, 10, 100))
    for got in (await held.answer(), await whole.post({"model": "m"})):
        assert (got.status, got.json["error"]["code"]) == (429, "concurrency_limit_exceeded")
        assert got.header("x-ratelimit-remaining-requests") == "100000"
    assert (await whole.post({"model": "unknown"})).status == 404
    reading.send(b"x" * 90)
    assert (await reading.answer()).status == 400
    assert (await whole.post({"model": "m"})).status == 200
    for client in (reading, held, whole):
        client.close()


async def test_chunked_body_is_refused_when_it_exceeds_the_budget(tight: Running, fake_vllm: FakeVllm) -> None:
    """The body takes from the budget as it comes, and gives everything back."""
    _, finish = await waiting_clients(tight, fake_vllm, LARGE, 2)
    await until_held(tight, 400_000)
    late = await tight.client()
    late.send(late.request(None, headers=CHUNKED) + chunk(b"x" * 60_000))
    await until_held(tight, 460_000)
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
    """Each of these ways had taken from it."""
    whole = len(sent) == 200_000
    if status is None:
        fake_vllm.default = (Hang(),)
    client = await tight.client()
    if announced:
        client.send(client.request(sent, headers={"Content-Length": "200000"}))
    else:
        client.send(client.request(None, headers=CHUNKED) + chunk(sent) + (b"0\r\n\r\n" if whole else b""))
    if status is None:
        await until_held(tight, len(sent))
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
