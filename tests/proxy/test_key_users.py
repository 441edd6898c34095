"""Users behind one key, end to end: their limits within the key's, and where their names never appear."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from aiaas.keys.model import KeyLimits
from aiaas.keys.ring import KeyRing
from aiaas.keys.users import NO_USER, user_of
from aiaas.limits.fallback import FallbackStore
from aiaas.limits.usage_sqlite import SqliteUsage
from tests.fakes.redis import RedisServer
from tests.fakes.vllm import FakeVllm, Hang, Send, json_answer
from tests.limits.stores import running as connected
from tests.proxy.conftest import KnownKey, Raw, Running, StartGateway, new_key

HEADER = "X-OpenWebUI-User-Id"
BODY = {"model": "m", "messages": [], "max_tokens": 5}
USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}


def app_key(limits: KeyLimits, user_limits: KeyLimits) -> KnownKey:
    return new_key("app", limits=limits, users_header=HEADER, user_limits=user_limits)


async def client_of(running: Running, key: KnownKey) -> Raw:
    client = await running.client()
    client.key = key.text
    return client


async def test_exhausted_user_is_refused_and_others_are_served(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """429 with a code of its own, in the same form; the sum of all users is bound by the key."""
    key = app_key(KeyLimits(requests_per_minute=3), KeyLimits(requests_per_minute=1))
    running = await gateway(fake_vllm, keys=(key,), backend={"forward_headers": [HEADER]})
    client = await client_of(running, key)
    fake_vllm.default = (Send(json_answer(USAGE)),)
    got = await client.post(BODY, headers={HEADER: "ann@example.com"})
    assert (got.status, got.header("x-ratelimit-limit-requests"), got.header("x-ratelimit-remaining-requests")) == (
        200, "1", "0",
    )  # fmt: skip
    got = await client.post(BODY, headers={HEADER: "ann@example.com"})
    error = got.json["error"]
    assert (got.status, error["code"], error["type"]) == (429, "user_rate_limit_exceeded", "rate_limit_error")
    assert error["message"].startswith("The limit of each user of this key is 1 requests a minute. Try again in ")
    assert (got.header("x-ratelimit-limit-requests"), got.header("retry-after")) == ("1", "60")
    assert (await client.post(BODY, headers={HEADER: "bob"})).status == 200
    assert (await client.post(BODY)).status == 200
    got = await client.post(BODY, headers={HEADER: "cat"})
    assert (got.status, got.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert (got.header("x-ratelimit-limit-requests"), got.header("retry-after")) == ("3", "20")
    assert running.metric('aiaas_refused_total{limit="user_requests"}') == 1
    assert running.metric('aiaas_refused_total{limit="requests"}') == 1
    await running.quiet()
    told = running.metrics.expose().decode() + str(running.lines)
    for post in fake_vllm.posts:
        told += str(post.headers)
    for name in ("ann", "bob"):
        assert user_of(key.record.id, name) not in told
    assert "ann@example.com" not in told
    assert user_of(key.record.id, "ann@example.com") not in told
    assert HEADER.lower() not in {name.lower() for post in fake_vllm.posts for name in post.headers}


async def test_tokens_come_back_to_the_user(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The reservation is settled to what vLLM reports, and what the user has left is told where it is the least."""
    key = app_key(KeyLimits(tokens_per_minute=1000), KeyLimits(tokens_per_minute=100))
    running = await gateway(fake_vllm, keys=(key,))
    client = await client_of(running, key)
    fake_vllm.default = (Send(json_answer(USAGE)),)
    for number in range(3):
        got = await client.post({**BODY, "max_tokens": 70}, headers={HEADER: "ann"})
        assert got.status == 200, number
        await running.quiet()
    got = await client.post(b"{", headers={HEADER: "ann"})
    assert (got.header("x-ratelimit-limit-tokens"), got.header("x-ratelimit-remaining-tokens")) == ("100", "79")
    got = await client.post({**BODY, "max_tokens": 200}, headers={HEADER: "ann"})
    assert (got.status, got.json["error"]["code"], got.json["error"]["param"]) == (400, "invalid_request", "max_tokens")
    assert "the 100 tokens that a user of this key may use" in got.json["error"]["message"]
    got = await client.post({**BODY, "max_tokens": 75}, headers={HEADER: "ann"})
    assert (got.status, got.json["error"]["code"]) == (429, "user_tokens_limit_exceeded")


async def test_slot_of_a_user_is_free_when_its_client_leaves(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Another user is served meanwhile."""
    key = app_key(KeyLimits(), KeyLimits(max_concurrent=1))
    running = await gateway(fake_vllm, keys=(key,))
    fake_vllm.play(Hang())
    first = await client_of(running, key)
    asked = asyncio.create_task(first.post(BODY, headers={HEADER: "ann"}))
    async with asyncio.timeout(20):
        while not fake_vllm.posts:
            await asyncio.sleep(0.005)
    client = await client_of(running, key)
    got = await client.post(BODY, headers={HEADER: "ann"})
    assert (got.status, got.json["error"]["code"]) == (429, "user_concurrency_limit_exceeded")
    assert (await client.post(BODY, headers={HEADER: "bob"})).status == 200
    asked.cancel()
    first.reset()
    await running.quiet()
    assert (await client.post(BODY, headers={HEADER: "ann"})).status == 200


async def test_two_gateways_count_a_user_together(
    gateway: StartGateway, fake_vllm: FakeVllm, redis_server: RedisServer
) -> None:
    """In the shared store; its keys have the user's hash, and never the name."""
    key = app_key(KeyLimits(requests_per_minute=100), KeyLimits(requests_per_minute=2, max_concurrent=1))
    async with connected(redis_server.url) as store, connected(redis_server.url) as other:
        await store.command("FLUSHALL")
        stores = [FallbackStore(each, "local", 2) for each in (store, other)]
        clients = [await client_of(await gateway(fake_vllm, keys=(key,), store=each), key) for each in stores]
        for client in clients:
            assert (await client.post(BODY, headers={HEADER: "ann@example.com"})).status == 200
        for client in clients:
            got = await client.post(BODY, headers={HEADER: "ann@example.com"})
            assert (got.status, got.json["error"]["code"]) == (429, "user_rate_limit_exceeded")
            assert got.header("x-ratelimit-limit-requests") == "2"
        got = await clients[0].post(BODY, headers={HEADER: "bob"})
        assert (got.status, got.header("x-ratelimit-remaining-requests")) == (200, "1")
        names = str(await store.command("KEYS", "*"))
        assert user_of(key.record.id, "ann@example.com") in names
        assert "example.com" not in names


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        pytest.param(b"ann", b"bob", False, id="two names"),
        pytest.param(b"ann\r\n%b: bob" % HEADER.encode(), b"ann", True, id="header twice: the first counts"),
        pytest.param(b"J\xf6rg", b"J\xf6rg", True, id="bytes that are no UTF-8"),
        pytest.param(b"J\xf6rg", b"J\xc3\xb6rg", False, id="other bytes"),
        pytest.param(b"x" * 256, b"x" * 256 + b"y", True, id="the first 256 bytes count"),
        pytest.param(b"x" * 255, b"x" * 256, False, id="within 256 bytes"),
        pytest.param(b"", b"", True, id="empty"),
    ],
)
async def test_user_is_what_the_header_says(
    gateway: StartGateway, fake_vllm: FakeVllm, first: bytes, second: bytes, same: bool
) -> None:
    """Any bytes name one."""
    key = app_key(KeyLimits(), KeyLimits(requests_per_minute=1))
    client = await client_of(await gateway(fake_vllm, keys=(key,)), key)
    statuses = []
    for name in (first, second):
        head, _, body = client.request(BODY, headers={HEADER: "NAME"}).partition(b"\r\n\r\n")
        client.send(head.replace(b"NAME", name) + b"\r\n\r\n" + body)
        statuses.append((await client.answer()).status)
    assert statuses == [200, 429 if same else 200]


async def test_reload_adds_and_removes_limits_of_users(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """The key's own counts go on."""
    key = app_key(KeyLimits(requests_per_minute=4), KeyLimits(requests_per_minute=1))
    plain = replace(key.record, users_header=None, user_limits=KeyLimits())
    running = await gateway(fake_vllm, keys=(KnownKey(key.text, plain),))
    client = await client_of(running, key)
    codes = []
    for record in (plain, key.record, plain, key.record):
        running.gateway.verifier.swap(KeyRing.from_records([record]))
        got = await client.post(BODY, headers={HEADER: "ann"})
        codes.append(got.json["error"]["code"] if got.status == 429 else str(got.status))
    assert codes == ["200", "200", "200", "user_rate_limit_exceeded"]
    got = await client.post(BODY, headers={HEADER: "bob"})
    assert (got.status, got.header("x-ratelimit-remaining-requests")) == (200, "0")
    got = await client.post(BODY, headers={HEADER: "cat"})
    assert (got.status, got.json["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_usage_is_kept_by_user(gateway: StartGateway, fake_vllm: FakeVllm, tmp_path: Path) -> None:
    """Under the hash of its name, with the tokens that were settled; a key without users has none."""
    key, plain, file = app_key(KeyLimits(), KeyLimits()), new_key("plain"), tmp_path / "usage.db"
    running = await gateway(fake_vllm, keys=(key, plain), usage=SqliteUsage(file))
    client = await client_of(running, key)
    fake_vllm.default = (Send(json_answer(USAGE)),)
    for user, model in (("ann@example.com", "m"), ("ann@example.com", "alias"), ("bob", "m"), (None, "m")):
        headers = {} if user is None else {HEADER: user}
        assert (await client.post({**BODY, "model": model}, headers=headers)).status == 200
    assert (await client.post(BODY, key=plain.text, headers={HEADER: "ann@example.com"})).status == 200
    await running.quiet()
    await running.usage.close()
    reader = SqliteUsage(file)
    kept = await reader.read(0, by_user=True)
    await reader.close()
    used = {at.user: (sums.name, sums.requests, sums.input_tokens, sums.output_tokens) for at, sums in kept.items()}
    ann, bob = (user_of(key.record.id, name) for name in ("ann@example.com", "bob"))
    assert used == {ann: ("app", 2, 6, 8), bob: ("app", 1, 3, 4), NO_USER: ("app", 1, 3, 4)}
    assert b"ann@example.com" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


async def test_counting_tokens_has_a_bucket_of_each_user(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """Larger by `cheap_factor`, as that of the key."""
    key = app_key(KeyLimits(), KeyLimits(requests_per_minute=1))
    running = await gateway(fake_vllm, keys=(key,), rate_limit={"cheap_factor": 2})
    client = await client_of(running, key)
    path = "/v1/messages/count_tokens"
    statuses = [(await client.post(BODY, path=path, headers={HEADER: "ann"})).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert (await client.post(BODY, headers={HEADER: "ann"})).status == 200
    assert (await client.post(BODY, path=path, headers={HEADER: "bob"})).status == 200
