"""Usage in a real Redis: the conformance suite, and outages at the wrong moment."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aiaas.limits.connection import StoreConnection, connect
from aiaas.limits.redis_url import parse_redis_url
from aiaas.limits.usage import DAY, UsageKey, UsageStoreError, day_text
from aiaas.limits.usage_redis import FIELDS_A_READ, PART, RETENTION_DAYS, RedisUsage
from tests.fakes.redis import RedisServer
from tests.limits.usage_conformance import ALICE, TODAY, UsageConformance, sums


@asynccontextmanager
async def opened(server: RedisServer) -> AsyncIterator[RedisUsage]:
    store = RedisUsage(parse_redis_url(server.url))
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[StoreConnection]:
    """A connection to the server, which is empty."""
    url = parse_redis_url(redis_server.url)
    connection = await connect(url, url.places[0], None, 5.0)
    await connection.call("FLUSHALL")
    yield connection
    await connection.close()


@pytest.fixture
async def store(redis_server: RedisServer, redis: StoreConnection) -> AsyncIterator[RedisUsage]:
    async with opened(redis_server) as store:
        yield store


class TestRedisUsage(UsageConformance):
    """The suite that all stores of usage share."""

    @pytest.fixture
    async def other(self, redis_server: RedisServer) -> AsyncIterator[RedisUsage]:
        async with opened(redis_server) as store:
            yield store


@pytest.mark.parametrize("answered", [0, 1, 2, 3], ids=["no answer", "one part's", "two parts'", "all but the end's"])
async def test_an_answer_that_was_lost_makes_nothing_count_twice(
    store: RedisUsage, redis: StoreConnection, answered: int
) -> None:
    """Whatever part of a batch had arrived, the next attempt adds the rest."""
    usage = {ALICE._replace(model=f"m{number}"): sums(number + 1) for number in range(2 * PART + 1)}
    connection = await store._connected()
    calls = 0
    send = connection.call

    def call(*arguments: bytes | str | int | float) -> asyncio.Future[object]:
        nonlocal calls
        calls += 1
        sent = send(*arguments)
        if calls > answered:
            connection._transport.write_eof()  # the server does what it got, and then there is nobody to tell
            connection.lose("the network broke")
        return sent

    connection.call = call  # type: ignore[assignment, method-assign]
    try:
        await store.add("1", usage)
    except UsageStoreError:
        assert answered < 3
        await store.add("1", usage)
    assert await store.read(0) == usage


async def test_a_server_that_is_away_is_an_error_until_it_is_back(redis_server: RedisServer, store: RedisUsage) -> None:
    """The error has its address; the same store object recovers by itself."""
    await store.add("1", {ALICE: sums()})
    redis_server.kill()
    for attempt in (lambda: store.add("2", {ALICE: sums()}), lambda: store.read(0), store.last_used):
        with pytest.raises(UsageStoreError, match=rf"redis://127\.0\.0\.1:{redis_server.port}/0"):
            await attempt()
    redis_server.start()
    await store.add("2", {ALICE: sums()})
    assert (await store.read(0))[ALICE].requests == 1  # this server keeps nothing on a disk


async def test_days_end_after_their_retention(store: RedisUsage, redis: StoreConnection) -> None:
    """Each day expires by itself, and the list of days with them."""
    old, new = TODAY, TODAY + RETENTION_DAYS + 1
    await store.add("1", {UsageKey(old, "k", "m"): sums()})
    left = await redis.call("TTL", "aiaas:{usage}:" + day_text(old))
    assert isinstance(left, int)
    assert RETENTION_DAYS * DAY - 60 < left <= RETENTION_DAYS * DAY
    await store.add("2", {UsageKey(new, "k", "m"): sums()})
    assert [key.day for key in await store.read(0)] == [new]


async def test_added_batch_leaves_no_trace(store: RedisUsage, redis: StoreConnection) -> None:
    """No key for each batch stays: two a second would be millions."""
    for batch in range(5):
        await store.add(str(batch), {ALICE: sums()})
    assert await redis.call("DBSIZE") == 3


async def test_all_keys_lie_in_one_place_of_a_cluster(store: RedisUsage, redis: StoreConnection) -> None:
    """By their hash tag."""
    await store.add("1", {ALICE: sums()})
    keys = await redis.call("KEYS", "*")
    assert isinstance(keys, list)
    assert {bytes(key).startswith(b"aiaas:{usage}:") for key in keys if isinstance(key, bytes)} == {True}


async def calls_of(redis: StoreConnection) -> dict[str, int]:
    """How often the server was asked for each command, since its statistics were reset."""
    found = await redis.call("INFO", "commandstats")
    assert isinstance(found, bytes)
    return {name.decode(): int(calls) for name, calls in re.findall(rb"cmdstat_(\w+):calls=(\d+)", found)}


async def test_large_batches_and_days_go_in_parts(store: RedisUsage, redis: StoreConnection) -> None:
    """Everybody's admissions wait behind a script and behind a reply; one of PART sums takes a millisecond."""
    await redis.call("CONFIG", "RESETSTAT")
    usage = {UsageKey(TODAY, f"k{number % 50}", f"m{number}"): sums() for number in range(5000)}
    await store.add("1", usage)
    assert await store.read(0) == usage
    calls = await calls_of(redis)
    assert calls["eval"] == len(usage) // PART
    assert calls["hscan"] >= 7 * len(usage) // FIELDS_A_READ - 1
    assert "hgetall" not in calls


async def test_a_server_that_became_a_replica_is_left(store: RedisUsage, redis: StoreConnection) -> None:
    """The batch fails, and the next attempt connects anew, which is where another primary is found."""
    await store.add("1", {ALICE: sums()})
    connection = await store._connected()
    await redis.call("REPLICAOF", "127.0.0.1", 1)
    try:
        with pytest.raises(UsageStoreError, match="READONLY"):
            await store.add("2", {ALICE: sums()})
    finally:
        await redis.call("REPLICAOF", "NO", "ONE")
    await store.add("2", {ALICE: sums()})
    assert connection.lost.done()
    assert (await store.read(0))[ALICE].requests == 2
