"""Requests while the shared store is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiaas.errors import UpstreamError
from aiaas.limits.fallback import FallbackStore, Mode
from aiaas.limits.model import UNLIMITED, Limits, Rate
from aiaas.limits.redis import LEASE, RedisStore
from aiaas.limits.redis_url import parse_redis_url
from tests.fakes.redis import RedisServer
from tests.limits.conformance import NOW, WALL, admit, admitted, settle
from tests.limits.stores import back, running, until

LIMITS = Limits(Rate(600, 40), Rate(6000, 6000), 100_000, 2_000_000, 20)


def away(mode: Mode, processes: int = 10) -> FallbackStore:
    """A store whose Redis was never there."""
    return FallbackStore(RedisStore(parse_redis_url("redis://127.0.0.1:1")), mode, processes)


async def test_local_counts_its_share() -> None:
    """Four of the burst of forty; slots and settlements as in memory."""
    store = away("local")
    leases = [await admitted(store, LIMITS, 10) for _ in range(2)]
    assert (await admit(store, LIMITS, 10)).refused_by == "concurrency"
    for lease in leases:
        assert lease.id == ""
        settle(store, lease, 5)
    looked = await store.look("alice", LIMITS, NOW)
    assert looked.requests is not None
    assert looked.tokens is not None
    assert (looked.requests.remaining, looked.tokens.remaining) == (2, 590)
    assert store.decisions == {"shared": 0, "local": 3}


async def test_local_lets_a_large_request_in_and_settles_what_it_used() -> None:
    """It takes the rest of the share, and use beyond that is worked off."""
    store = away("local")
    await admitted(store, LIMITS, 500)
    lease = await admitted(store, LIMITS, 3000)
    assert lease.reserved_tokens == 100
    assert (await admit(store, Limits(tokens=LIMITS.tokens), 1)).refused_by == "tokens"
    settle(store, lease, 700)
    assert (await admit(store, Limits(tokens=LIMITS.tokens), 1, at=60.0)).refused_by == "tokens"
    await admitted(store, Limits(tokens=LIMITS.tokens), 1, at=60.2)


async def test_a_request_too_large_for_the_key_is_refused_for_good() -> None:
    """As before the outage, with the limit of the key."""
    found = await admit(away("local"), Limits(tokens=Rate(6000, 6000)), 6001)
    assert found.refusal is not None
    assert (found.refused_by, found.refusal.retry_after, found.refusal.limit) == ("tokens", None, 6000)


@pytest.mark.parametrize(
    ("limits", "by", "limit"),
    [
        pytest.param(Limits(requests=Rate(10, 10)), "requests", 10, id="requests"),
        pytest.param(Limits(tokens=Rate(100, 100)), "tokens", 100, id="tokens"),
        pytest.param(Limits(tokens_per_day=100), "quota", 100, id="day"),
        pytest.param(Limits(tokens_per_month=200, tokens_per_day=2000), "quota", 200, id="month"),
        pytest.param(Limits(concurrent=10), "concurrency", 10, id="slots"),
    ],
)
async def test_a_refusal_names_the_keys_limit_and_a_short_wait(limits: Limits, by: str, limit: int) -> None:
    """The store may be back in a moment; and the size of the share is internal."""
    store = away("local")
    while (found := await admit(store, limits, 10)).refused_by is None:
        assert found.requests is None or found.requests.limit == limit
    assert found.refusal is not None
    assert (found.refused_by, found.refusal.limit, found.refusal.retry_after) == (by, limit, 1.0)


async def test_a_wait_shorter_than_that_is_told_as_it_is() -> None:
    """A client that has to wait for 0.1 s only is not sent away for a second."""
    store = away("local", 1)
    limits = Limits(requests=Rate(600, 1))
    await admitted(store, limits)
    found = await admit(store, limits)
    assert found.refusal is not None
    assert found.refusal.retry_after == pytest.approx(0.1)


async def test_allow_lets_everything_in() -> None:
    """Without limits, headers or slots, and counted."""
    store = away("allow")
    for _ in range(50):
        lease = await admitted(store, LIMITS, 10**9)
        settle(store, lease, 10**9)
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
    settle(store, await admitted(store, UNLIMITED), 5)
    assert store.decisions == {"shared": 0, "deny": 1}


async def test_a_reloaded_config_holds_from_the_next_request_on() -> None:
    """Another mode, another number of processes; requests admitted before are settled as they were admitted."""
    store = away("local")
    lease = await admitted(store, LIMITS, 10)
    assert store.processes == 10
    store.follow("local", 2, 0.5)
    looked = await store.look("alice", LIMITS, NOW)
    assert looked.tokens is not None
    assert (looked.tokens.limit, looked.tokens.remaining) == (6000, 2950)
    store.follow("deny", 2, 0.5)
    settle(store, lease, 5)
    with pytest.raises(UpstreamError):
        await admit(store, LIMITS)
    assert store.decisions == {"shared": 0, "local": 1, "deny": 1}


async def test_users_have_their_share_of_their_limits() -> None:
    """Within the share of the key; a refusal names the whole limit of the user."""
    store = away("local")
    limits = Limits(Rate(600, 50), user=Limits(Rate(200, 20), Rate(1000, 1000)))
    for user in ("ann", "bob"):
        for _ in range(2):
            found = await admit(store, limits, 10, user=user)
            assert found.requests is not None
            assert (found.refused_by, found.requests.limit) == (None, 200)
        refused = await admit(store, limits, 10, user=user)
        assert refused.refusal is not None
        assert (refused.refused_by, refused.of_user) == ("requests", True)
        assert (refused.refusal.limit, refused.refusal.retry_after) == (200, 1.0)
    large = await admit(store, limits, 900, user="cat")
    assert large.lease is not None
    assert large.lease.reserved_tokens == 100
    refused = await admit(store, limits, user="dan")
    assert refused.refusal is not None
    assert (refused.refused_by, refused.of_user, refused.refusal.limit) == ("requests", False, 600)
    never = await admit(store, limits, 1001, user="ann", at=60.0)
    assert never.refusal is not None
    assert (never.refused_by, never.refusal.limit, never.refusal.retry_after) == ("tokens", 1000, None)


@asynccontextmanager
async def shared(
    folder: Path, mode: Mode = "local", **options: Any
) -> AsyncIterator[tuple[FallbackStore, RedisServer]]:
    """A store whose Redis is there, and that Redis."""
    server = RedisServer(folder)
    server.start()
    try:
        async with running(server.url, **options) as store:
            yield FallbackStore(store, mode, 10), server
    finally:
        server.end()


SHORT = 0.4  # seconds of patience with a server that hangs on purpose


async def test_it_goes_over_and_comes_back_by_itself(tmp_path: Path) -> None:
    """Each request is settled where it was admitted; the store that went on knows of those that it was asked for."""
    limits = Limits(Rate(60, 40), Rate(60, 6000), 100_000, 2_000_000, 20)
    async with shared(tmp_path, patience=SHORT) as (store, server):
        before = await admitted(store, limits, 1000)
        assert before.id
        server.hang()
        first = await admitted(store, limits, 100)
        assert (first.id, first.late is None) == ("", False)
        asked_again = store.admit("alice", limits, 100, NOW, WALL)
        with pytest.raises(StopIteration) as ended:
            asked_again.send(None)  # without a single wait
        second = ended.value.value.lease
        assert (second.id, second.late) == ("", None)
        store.settle(before, 500, NOW, WALL)
        store.settle(second, 0, NOW, WALL)
        server.go_on()
        await until(lambda: back(store.shared), within=5.0)
        looked = await store.look("alice", limits, NOW)
        assert looked.tokens is not None
        assert 5400 <= looked.tokens.remaining < 5500  # of 6000: 500 were used, 100 are reserved by the first
        store.settle(first, 300, NOW, WALL)
        looked = await store.look("alice", limits, NOW)
        assert looked.tokens is not None
        assert 5200 <= looked.tokens.remaining < 5300
        assert await store.shared.command("ZCARD", "aiaas:{alice}:slots") == 0  # type: ignore[attr-defined]
        assert (await admitted(store, limits, 1)).id
        assert store.decisions == {"shared": 2, "local": 2}
        assert store.shared.settlements_lost == 0


@pytest.mark.parametrize("patience", [0.05, 2.0], ids=["less than the stall", "more than the stall"])
async def test_a_stall_of_100_ms_refuses_nobody_with_requests_left(tmp_path: Path, patience: float) -> None:
    """Ten a minute, three used: seven more are let in while the store stands still, and an eighth is not."""
    limits = Limits(Rate(10, 10))
    async with shared(tmp_path, patience=patience) as (store, server):
        connection = store.shared._servers.of("alice").connection
        for _ in range(3):
            await admitted(store, limits)
        server.hang()
        asyncio.get_running_loop().call_later(0.1, server.go_on)
        found = await asyncio.gather(*(admit(store, limits) for _ in range(8)))
        assert [one.refused_by for one in found] == [None] * 7 + ["requests"]
        await until(lambda: back(store.shared))
        assert store.shared._servers.of("alice").connection is connection
        assert (await admit(store, limits)).refused_by == "requests"


async def test_shares_are_of_the_gateways_that_are_there(tmp_path: Path) -> None:
    """The store counts two gateways, each with half of the rest, whatever the config says."""
    limits = Limits(Rate(60, 20))
    async with shared(tmp_path, lease=2.0) as (store, server):
        async with running(server.url, lease=2.0) as other_shared:
            other = FallbackStore(other_shared, "local", 10)

            async def both_know() -> bool:
                return store.processes == other.processes == 2

            await until(both_know)
            for _ in range(4):
                await admitted(store, limits)
            await admitted(other, limits)
            server.kill()
            await until(lambda: away_of(store, other))
            for each, most in ((store, 8), (other, 7)):
                number = 0
                while (await admit(each, limits)).refused_by is None:
                    number += 1
                assert number == most


async def test_use_settled_before_the_outage_counts(tmp_path: Path) -> None:
    """Reserved and not used, never run, a slot given back: none of it is taken from the share."""
    limits = Limits(Rate(6, 10), Rate(6, 1000), concurrent=2)
    async with shared(tmp_path) as (store, server):
        await admitted(store, limits, 100)
        lease = await admitted(store, limits, 800)
        store.settle(lease, 300, NOW, WALL, ran=False)
        server.kill()
        await until(lambda: away_of(store))
        looked = await store.look("alice", limits, NOW)
        assert looked.requests is not None
        assert looked.tokens is not None
        assert (looked.requests.remaining, looked.tokens.remaining) == (9, 600)
        await admitted(store, limits, 1)
        assert (await admit(store, limits, 1)).refused_by == "concurrency"


async def test_a_look_tells_what_is_left_here(tmp_path: Path) -> None:
    """Also before the first request of the outage."""
    limits = Limits(Rate(6, 10))
    async with shared(tmp_path) as (store, server):
        for _ in range(4):
            await admitted(store, limits)
        server.kill()
        await until(lambda: away_of(store))
        looked = await store.look("alice", limits, NOW)
        assert looked.requests is not None
        assert (looked.requests.limit, looked.requests.remaining) == (6, 6)


async def test_a_changed_timeout_holds_at_once(tmp_path: Path) -> None:
    """Also on the present connection, and on the next one."""
    async with shared(tmp_path) as (store, server):
        store.follow("local", 1, SHORT)
        server.hang()
        await admitted(store, LIMITS)
        assert f"no answer within {SHORT * 1000:.0f} ms" in store.shared._servers.of("alice").connection.silence  # type: ignore[union-attr]


async def away_of(*stores: FallbackStore) -> bool:
    return not any(store.shared.up for store in stores)


async def test_slots_that_are_taken_in_the_store_count_here(tmp_path: Path) -> None:
    """Of three, two run: one more is let in without the store, and the next when one of those has ended."""
    limits = Limits(concurrent=3)
    async with shared(tmp_path) as (store, server):
        leases = [await admitted(store, limits) for _ in range(2)]
        server.kill()
        await until(lambda: away_of(store))
        third = await admitted(store, limits)
        assert (await admit(store, limits)).refused_by == "concurrency"
        store.settle(leases[0], 0, NOW, WALL)
        fourth = await admitted(store, limits)
        assert (await admit(store, limits)).refused_by == "concurrency"
        for lease in (third, fourth, leases[1]):
            store.settle(lease, 0, NOW, WALL)
        for _ in range(3):
            await admitted(store, limits)
        assert (await admit(store, limits)).refused_by == "concurrency"


async def test_slots_taken_elsewhere_are_believed_for_a_lease(tmp_path: Path) -> None:
    """All three run in another gateway: here none may, but only as long as the other's leases may last."""
    limits = Limits(concurrent=3)
    async with shared(tmp_path) as (store, server), running(server.url) as other:
        for _ in range(3):
            await admitted(other, limits)
        assert (await admit(store, limits)).refused_by == "concurrency"
        server.kill()
        await until(lambda: away_of(store))
        assert (await admit(store, limits)).refused_by == "concurrency"
        assert (await admit(store, limits, at=LEASE)).refused_by == "concurrency"
        await admitted(store, limits, at=LEASE + 0.1)


async def test_outage_begins_with_what_the_user_had_left(tmp_path: Path) -> None:
    """Its requests, and its slots that are taken; another user has its own."""
    limits = Limits(user=Limits(Rate(6, 20), concurrent=3))
    async with shared(tmp_path) as (store, server):
        store.shared.processes = 1
        for _ in range(2):
            assert (await admit(store, limits, user="ann")).lease is not None
        server.kill()
        await until(lambda: away_of(store))
        looked = await store.look("alice", limits, NOW, "ann")
        assert looked.requests is not None
        assert (looked.requests.limit, looked.requests.remaining) == (6, 18)
        assert (await admit(store, limits, user="ann")).lease is not None
        refused = await admit(store, limits, user="ann")
        assert (refused.refused_by, refused.of_user) == ("concurrency", True)
        for _ in range(3):
            assert (await admit(store, limits, user="bob")).lease is not None
        assert (await admit(store, limits, user="bob")).refused_by == "concurrency"


async def test_late_word_about_a_user_is_settled(tmp_path: Path) -> None:
    """A request that was let in without the store gives back the user's slot there, too."""
    limits = Limits(user=Limits(concurrent=1))
    async with shared(tmp_path, patience=SHORT) as (store, server):
        server.hang()
        lease = (await admit(store, limits, user="ann")).lease
        assert lease is not None
        assert lease.late is not None
        server.go_on()
        await until(lambda: back(store.shared))
        assert (await store.shared.admit("alice", limits, 0, NOW, WALL, "ann")).of_user
        store.settle(lease, 0, NOW, WALL)
        assert (await store.shared.admit("alice", limits, 0, NOW, WALL, "ann")).lease is not None


async def test_a_second_outage_begins_with_what_was_left_then(tmp_path: Path) -> None:
    """The use of a share in the first outage is not remembered, the store's later answers are."""
    limits = Limits(Rate(6, 10))
    async with shared(tmp_path, patience=SHORT, lease=3.0) as (store, server):
        await admitted(store, limits)
        for used in (2, 1):
            server.hang()
            await until(lambda: away_of(store), within=5.0)
            if used == 2:
                while (await admit(store, limits)).refused_by is None:
                    pass
            else:
                found = [await admit(store, limits) for _ in range(8)]
                assert [one.refused_by for one in found] == [None] * 8
            server.go_on()
            await until(lambda: back(store.shared), within=5.0)
            await admitted(store, limits)


@pytest.mark.parametrize("mode", ["allow", "deny"])
async def test_a_late_word_is_settled_in_every_mode(tmp_path: Path, mode: Mode) -> None:
    """A request that was let in anyway is charged its use; a refused one is charged nothing."""
    async with shared(tmp_path, mode, patience=SHORT) as (store, server):
        server.hang()
        if mode == "allow":
            store.settle(await admitted(store, LIMITS, 100), 700, NOW, WALL)
        else:
            with pytest.raises(UpstreamError):
                await admit(store, LIMITS, 100)
        server.go_on()
        await until(lambda: back(store.shared), within=5.0)
        looked = await store.look("alice", LIMITS, NOW)
        assert looked.requests is not None
        assert looked.tokens is not None
        if mode == "allow":
            assert 5300 <= looked.tokens.remaining < 5400
        else:
            assert (looked.requests.remaining, looked.tokens.remaining) == (40, 6000)


async def test_seen_state_is_the_stores_or_that_of_the_share(tmp_path: Path) -> None:
    """For people who watch: it charges nothing, and does not ask the store."""
    alone = away("local")
    assert alone.seen("alice", LIMITS, NOW) is None
    await admitted(alone, LIMITS, 10)
    found = alone.seen("alice", LIMITS, NOW)
    assert found is not None
    assert (found[0].slots, found[1].concurrent) == (1, 2)
    async with shared(tmp_path) as (store, _):
        assert store.seen("alice", LIMITS, 0.0) is None
        for _ in range(3):
            await admitted(store, LIMITS, 10)
        for _ in range(2):
            found = store.seen("alice", LIMITS, NOW)
            assert found is not None
            assert (found[0].slots, found[0].day_tokens, found[1]) == (3, 30, LIMITS)
