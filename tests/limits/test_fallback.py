"""What happens to requests while the shared store is away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aiaas.errors import UpstreamError
from aiaas.limits.fallback import FallbackStore, Mode, fitted, share_of
from aiaas.limits.model import UNLIMITED, Limits, Rate
from aiaas.limits.redis import RedisStore
from aiaas.limits.redis_url import parse_redis_url
from tests.fakes.redis import RedisServer
from tests.limits.conformance import NOW, WALL, admit, admitted, settle

LIMITS = Limits(Rate(600, 40), Rate(6000, 6000), 100_000, 2_000_000, 20)


def away(mode: Mode, processes: int = 10) -> FallbackStore:
    """A store whose Redis was never there."""
    return FallbackStore(RedisStore(parse_redis_url("redis://127.0.0.1:1")), mode, processes)


def test_a_share_is_at_least_one_of_each() -> None:
    """All shares together are the limit, where that is large enough."""
    assert share_of(LIMITS, 10) == Limits(Rate(60, 4), Rate(600, 600), 10_000, 200_000, 2)
    assert share_of(Limits(Rate(3, 2), Rate(5, 5), 5, 5, 1), 10) == Limits(Rate(1, 1), Rate(1, 1), 1, 1, 1)
    assert share_of(UNLIMITED, 10) == UNLIMITED


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(100, 100), (600, 600), (601, 600), (6000, 600), (6001, 6001)],
    ids=["fits", "just fits", "more than the share", "the whole bucket", "more than anybody may"],
)
def test_a_reservation_is_cut_to_the_share_and_not_refused_for_good(tokens: int, expected: int) -> None:
    """Only one that was too large before the outage is too large in it."""
    assert fitted(tokens, LIMITS, share_of(LIMITS, 10)) == expected


async def test_local_counts_its_share() -> None:
    """Four of the burst of forty, and slots and settlements as in memory."""
    store = away("local")
    leases = [await admitted(store, LIMITS, 10) for _ in range(2)]
    assert (await admit(store, LIMITS, 10)).refused_by == "concurrency"
    for lease in leases:
        assert lease.id == ""
        await settle(store, lease, 5)
    looked = await store.look("alice", LIMITS, NOW)
    assert looked.requests is not None
    assert looked.tokens is not None
    assert (looked.requests.remaining, looked.tokens.remaining) == (2, 590)
    assert store.decisions == {"shared": 0, "local": 3}


async def test_local_lets_a_large_request_in_and_settles_what_it_used() -> None:
    """It takes the whole share, and what it used beyond is worked off."""
    store = away("local")
    lease = await admitted(store, LIMITS, 3000)
    assert (await admit(store, LIMITS, 1)).refused_by == "tokens"
    await settle(store, lease, 1200)
    found = await admit(store, LIMITS, 1)
    assert found.refusal is not None
    assert found.refusal.retry_after == pytest.approx(60.1)


async def test_allow_lets_everything_in() -> None:
    """Without limits, headers or slots, and counted."""
    store = away("allow")
    for _ in range(50):
        lease = await admitted(store, LIMITS, 10**9)
        await settle(store, lease, 10**9)
    assert (await store.look("alice", LIMITS, NOW)).requests is None
    assert store.decisions == {"shared": 0, "allow": 50}


async def test_deny_refuses_with_a_time_to_come_back() -> None:
    """503 overloaded; a key without limits needs no store."""
    store = away("deny")
    with pytest.raises(UpstreamError) as raised:
        await admit(store, LIMITS)
    assert (raised.value.status, raised.value.code) == (503, "overloaded")
    assert dict(raised.value.headers)["retry-after"] == "1"
    assert (await store.look("alice", LIMITS, NOW)).tokens is None
    await settle(store, await admitted(store, UNLIMITED), 5)
    assert store.decisions == {"shared": 0, "deny": 1}


async def test_a_reloaded_config_holds_from_the_next_request_on() -> None:
    """Another mode, another number of processes; what was let in before is settled as it was."""
    store = away("local")
    lease = await admitted(store, LIMITS, 10)
    store.follow("local", 2)
    looked = await store.look("alice", LIMITS, NOW)
    assert looked.requests is not None
    assert looked.requests.limit == 300
    store.follow("deny", 2)
    await settle(store, lease, 5)
    with pytest.raises(UpstreamError):
        await admit(store, LIMITS)
    assert store.decisions == {"shared": 0, "local": 1, "deny": 1}


async def test_it_goes_over_and_comes_back_by_itself(tmp_path: Path) -> None:
    """Each request is settled where it was admitted; a hang costs the first ones a moment and the next nothing."""
    server = RedisServer(tmp_path)
    server.start()
    shared = RedisStore(parse_redis_url(server.url))
    store = FallbackStore(shared, "local", 10)
    task = asyncio.create_task(shared.run())
    loop = asyncio.get_running_loop()
    try:
        await shared.tried.wait()
        before = await admitted(store, LIMITS, 1000)
        assert before.id
        server.hang()
        for longest in (0.1, 0.02):  # the first waits, up to 30 ms and what a busy machine takes; the second does not
            began = loop.time()
            during = await admitted(store, LIMITS, 100)
            assert loop.time() - began < longest
            assert during.id == ""
            await store.settle(during, 0, NOW, WALL)
        await store.settle(before, 500, NOW, WALL)
        server.go_on()
        async with asyncio.timeout(5):
            while not shared.up:
                await asyncio.sleep(0.01)
        looked = await store.look("alice", LIMITS, NOW)
        assert looked.tokens is not None
        # 500 of 6000 used, and at most the 100 of the admission that the server found when it went on.
        assert 5400 <= looked.tokens.remaining <= 5600
        assert (await admitted(store, LIMITS, 1)).id
        assert store.decisions == {"shared": 2, "local": 2}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()
        server.end()
