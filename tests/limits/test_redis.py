"""The shared store, in a real Redis: the conformance suite, and its own guarantees."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aiaas.limits.asked import AdmissionLateError
from aiaas.limits.connection import STORE_PATIENCE, StoreAwayError
from aiaas.limits.fallback import FallbackStore
from aiaas.limits.memory import MemoryStore
from aiaas.limits.model import AdmissionResult, Decision, Lease, Limits, Rate, Store
from aiaas.limits.redis import LATE_LIMIT, RedisStore
from aiaas.limits.redis_url import parse_redis_url
from aiaas.limits.resp import Reply
from aiaas.limits.script import SCRIPT
from aiaas.limits.state import windows_at
from tests.fakes.delay import delaying
from tests.fakes.redis import RedisServer
from tests.limits.conformance import NOW, WALL, StoreConformance, admit
from tests.limits.stores import CLOCKED, ClockedStore, OpenStore, away, back, until
from tests.limits.stores import running as connected
from tests.limits.user_conformance import UserConformance


@asynccontextmanager
async def running(server: RedisServer, **options: Any) -> AsyncIterator[OpenStore]:
    """A connected store, in an empty server."""
    async with connected(server.url, **options) as store:
        await store.command("FLUSHALL")
        yield store


class TestRedisStore(StoreConformance, UserConformance):
    """The suites that all stores share."""

    @pytest.fixture
    async def store(self, redis_server: RedisServer) -> AsyncIterator[Store]:
        assert CLOCKED != SCRIPT
        async with running(redis_server, script=CLOCKED, lease=3600.0) as store:
            yield ClockedStore(store)


# -- the same as in memory ------------------------------------------------------------------------------------------


def seen(decision: Decision | None) -> object:
    """A Decision for comparison: the two clocks begin elsewhere, so seconds agree to a microsecond."""
    if decision is None:
        return None
    retry = decision.retry_after
    times = (pytest.approx(decision.reset_after, abs=1e-6), None if retry is None else pytest.approx(retry, abs=1e-6))
    return (decision.allowed, decision.limit, decision.remaining, times)


def some_limits(random: Random) -> Limits:
    """Any combination, small enough that each refuses now and then."""

    def maybe(*values: Any) -> Any:
        return random.choice([None, *values])

    user = Limits(maybe(Rate(30, 2)), maybe(Rate(60, 60), Rate(300, 90)), maybe(140), maybe(290), maybe(1, 2))
    return Limits(
        maybe(Rate(60, 3), Rate(7, 2)),
        maybe(Rate(600, 100), Rate(77, 77)),
        maybe(150, 1000),
        maybe(300),
        maybe(1, 3),
        user=maybe(user),
    )


@pytest.mark.parametrize("seed", range(16))
async def test_it_decides_as_the_memory_store_does(redis_server: RedisServer, seed: int) -> None:
    """Any sequence of admissions, looks and settlements, over days and months, under limits that change."""
    random = Random(seed)
    async with running(redis_server, script=CLOCKED, lease=1e8) as shared:
        stores: list[Store] = [ClockedStore(shared), MemoryStore()]
        held: list[list[Lease]] = []
        at = 0.0
        limits = some_limits(random)
        for _ in range(150):
            at += random.choice([0.0, 0.001, 0.5, 3.25, 61.0, 9000.0, 200_000.0]) * random.randrange(1, 5)
            step = random.random()
            if step < 0.05:
                limits = some_limits(random)
            elif step < 0.15:
                looks = [await store.look("alice", limits, NOW + at, "u1") for store in stores]
                assert seen(looks[0].requests) == seen(looks[1].requests)
                assert seen(looks[0].tokens) == seen(looks[1].tokens)
            elif step < 0.5 and held:
                leases = held.pop(random.randrange(len(held)))
                used, ran = random.randrange(150), random.random() < 0.8
                for store, lease in zip(stores, leases, strict=True):
                    store.settle(lease, used, NOW + at, WALL + at, ran=ran)
            else:
                tokens = random.randrange(110)
                user = random.choice(["u1", "u2"])
                ours, theirs = [await admit(store, limits, tokens, at, user=user) for store in stores]
                assert (ours.refused_by, ours.of_user) == (theirs.refused_by, theirs.of_user)
                for name in ("requests", "tokens", "refusal"):
                    assert seen(getattr(ours, name)) == seen(getattr(theirs, name))
                if ours.lease is not None and theirs.lease is not None:
                    assert ours.lease.slot is theirs.lease.slot
                    held.append([ours.lease, theirs.lease])


async def test_its_months_are_the_calendars(redis_server: RedisServer) -> None:
    """The script's UTC months begin where Python's do, leap years and centuries included."""
    body = SCRIPT[SCRIPT.index("local function month_of") : SCRIPT.index("local today")]
    script = f"local DAY = 86400 {body} return string.format('%.0f', month_of(tonumber(ARGV[1])))"
    random = Random(1)
    moments = [random.randrange(0, 5_000_000_000) for _ in range(300)]
    moments += [windows_at(moment).month + edge for moment in moments[:100] for edge in (-1, 0)]
    async with running(redis_server) as store:
        for moment in moments:
            found = await store.command("EVAL", script, 0, moment)
            assert found == b"%d" % windows_at(moment).month, moment


# -- many gateways ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [Rate(6000, 20), Rate(600, 1)], ids=["with a burst", "without"])
async def test_no_window_admits_more_than_burst_and_rate(redis_server: RedisServer, rate: Rate) -> None:
    """Eight connections at once: between any two admissions no more than the rate gives and the burst allows."""
    moments: list[float] = []
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(running(redis_server)) for _ in range(8)]
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.0

        async def ask(store: RedisStore) -> None:
            while loop.time() < end:
                admission = await store.admit("alice", Limits(requests=rate), 0, 0.0, 0.0)
                if admission.lease is not None:
                    moments.append(admission.lease.admitted_wall)

        await asyncio.gather(*(ask(store) for store in stores for _ in range(3)))
    moments.sort()
    assert len(moments) >= 0.5 * rate.per_minute / 60  # half of it: a busy machine stands still now and then
    for first in range(len(moments)):
        for last in range(first, len(moments)):
            most = rate.burst + (moments[last] - moments[first] + 2e-6) * rate.per_minute / 60
            assert last - first + 1 <= most


async def test_a_client_that_waits_as_told_is_admitted(redis_server: RedisServer) -> None:
    """By the store's clock, through another gateway."""
    limits = Limits(Rate(1200, 1), Rate(6000, 10))
    async with running(redis_server) as one, running(redis_server) as other:
        for turn in range(12):
            first, second = (one, other) if turn % 2 else (other, one)
            admission = await first.admit("alice", limits, 7, 0.0, 0.0)
            while admission.refusal is not None:
                assert admission.refusal.retry_after is not None
                await asyncio.sleep(admission.refusal.retry_after)
                admission = await second.admit("alice", limits, 7, 0.0, 0.0)
                assert admission.refused_by is None


async def test_a_slot_is_given_once(redis_server: RedisServer) -> None:
    """Twelve ask for three, through four gateways; a slot that one gateway frees is free for another."""
    limits = Limits(concurrent=3)
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(running(redis_server)) for _ in range(4)]
        found = await asyncio.gather(*(store.admit("alice", limits, 0, 0.0, 0.0) for store in stores * 3))
        leases = [admission.lease for admission in found if admission.lease is not None]
        assert len(leases) == 3
        stores[0].settle(leases[0], 0, 0.0, 0.0)
        await stores[0].command("PING")
        assert (await stores[3].admit("alice", limits, 0, 0.0, 0.0)).refused_by is None
        assert (await stores[2].admit("alice", limits, 0, 0.0, 0.0)).refused_by == "concurrency"


# -- leases ----------------------------------------------------------------------------------------------------------

ONE = Limits(concurrent=1)


async def is_free(store: RedisStore) -> bool:
    admission = await store.admit("alice", ONE, 0, 0.0, 0.0)
    if admission.lease is not None:
        store.settle(admission.lease, 0, 0.0, 0.0)
    return admission.lease is not None


async def test_a_slot_lives_as_long_as_its_request(redis_server: RedisServer) -> None:
    """Renewed beyond its lease while the gateway lives; free within a lease after the gateway has died."""
    async with running(redis_server) as other:
        async with running(redis_server, lease=2.0) as store:  # a busy machine renews it late
            assert (await store.admit("alice", ONE, 0, 0.0, 0.0)).lease is not None
            for _ in range(25):
                await asyncio.sleep(0.1)
                assert not await is_free(other)
        await until(lambda: is_free(other))


async def test_slot_of_a_dead_gateway_is_freed_while_others_live(redis_server: RedisServer) -> None:
    """Each lease ends separately."""
    two = Limits(concurrent=2)
    async with running(redis_server, lease=2.0) as living:
        async with running(redis_server, lease=2.0) as dying:
            for store in (living, dying):
                assert (await store.admit("alice", two, 0, 0.0, 0.0)).lease is not None

        async def is_admitted() -> bool:
            return (await living.admit("alice", two, 0, 0.0, 0.0)).lease is not None

        assert not await is_admitted()
        await until(is_admitted)
        assert not await is_admitted()


async def test_a_slot_that_was_given_back_is_not_renewed(redis_server: RedisServer) -> None:
    """Also where its key still holds others."""
    two = Limits(concurrent=2)
    async with running(redis_server, lease=1.0) as store:
        leases = [(await store.admit("alice", two, 0, 0.0, 0.0)).lease for _ in range(2)]
        assert leases[0] is not None
        store.settle(leases[0], 0, 0.0, 0.0)
        await asyncio.sleep(1.3)
        assert await store.command("ZCARD", "aiaas:{alice}:slots") == 1


async def leases_of(asked: list[tuple[RedisStore, asyncio.Task[AdmissionResult]]]) -> list[tuple[RedisStore, Lease]]:
    """Wait for the admissions under way, return their leases and empty the list."""
    leases = []
    for store, task in asked:
        with suppress(StoreAwayError, asyncio.CancelledError):
            if (lease := (await task).lease) is not None:
                leases.append((store, lease))
    asked.clear()
    return leases


@pytest.mark.parametrize("seed", range(3))
async def test_after_anything_no_slot_stays_taken(redis_server: RedisServer, seed: int) -> None:
    """Ends, clients that leave, connections that break at any moment, a store that forgets: all slots come back."""
    random = Random(seed)
    three = Limits(Rate(10**6, 10**6), concurrent=3)
    async with running(redis_server, lease=0.3) as one, running(redis_server, lease=0.3) as other:
        settled = 0
        held: list[tuple[RedisStore, Lease]] = []
        asked: list[tuple[RedisStore, asyncio.Task[AdmissionResult]]] = []
        for _ in range(300):
            store = random.choice([one, other])
            step = random.random()
            if step < 0.5:
                asked.append((store, asyncio.create_task(store.admit("alice", three, 0, 0.0, 0.0))))
            elif step < 0.65 and asked:
                random.choice(asked)[1].cancel()
            elif step < 0.9 and held:
                owner, lease = held.pop(random.randrange(len(held)))
                owner.settle(lease, 0, 0.0, 0.0, ran=random.random() < 0.5)
                settled += 1
            elif 0.9 <= step < 0.908:
                store.connection().lose("the test says so")
                held += await leases_of(asked)
                await until(partial(back, store))
            elif 0.908 <= step < 0.93:
                await store.command(*random.choice([("FLUSHALL",), ("SCRIPT", "FLUSH")]))
            await asyncio.sleep(random.choice([0, 0, 0, 0.001]))
            if random.random() < 0.1:
                held += await leases_of(asked)
        held += await leases_of(asked)
        assert settled > 10
        for owner, lease in held:
            owner.settle(lease, 0, 0.0, 0.0)

        async def all_free() -> bool:
            return one.up and await one.command("ZCARD", "aiaas:{alice}:slots") == 0

        await until(all_free, within=5.0)
        assert one._keys.held == other._keys.held == {}


async def test_slots_are_put_back_into_a_server_that_lost_them(redis_server: RedisServer) -> None:
    """The limit holds again for requests that run on."""
    async with running(redis_server, lease=0.3) as store, running(redis_server) as other:
        assert (await store.admit("alice", ONE, 0, 0.0, 0.0)).lease is not None
        await other.command("FLUSHALL")

        async def is_taken() -> bool:
            return not await is_free(other)

        await until(is_taken)


async def test_everything_expires_by_itself(redis_server: RedisServer) -> None:
    """Every key has an end; a key that is as good as new is gone at once."""
    limits = Limits(Rate(60, 10), Rate(600, 600), 1000, 10_000, 5)
    async with running(redis_server) as store:
        lease = (await store.admit("alice", limits, 600, 0.0, 0.0)).lease
        await store.admit("bob", Limits(Rate(600, 1)), 0, 0.0, 0.0)
        await store.admit("carol", Limits(tokens_per_month=5), 5, 0.0, 0.0)
        wall = time.time()
        windows = windows_at(wall)
        keys = await store.command("KEYS", "aiaas:{*")
        assert isinstance(keys, list)
        assert sorted(map(str, keys)) == sorted(
            map(str, [b"aiaas:{alice}:limits", b"aiaas:{alice}:slots", b"aiaas:{bob}:limits", b"aiaas:{carol}:limits"])
        )
        for key in keys:
            assert isinstance(key, bytes)
            left = await store.command("PTTL", key)
            assert isinstance(left, int)
            ends = {
                b"aiaas:{alice}:limits": windows.month_end - wall,
                b"aiaas:{alice}:slots": 15.0,
                b"aiaas:{bob}:limits": 0.1,
                b"aiaas:{carol}:limits": windows.month_end - wall,
            }
            assert ends[key] - 1 <= left / 1000 <= ends[key] + 1.1  # a second longer than needed
        assert lease is not None
        store.settle(lease, 0, 0.0, 0.0, ran=False)
        assert await store.command("EXISTS", "aiaas:{alice}:limits", "aiaas:{alice}:slots") == 0


async def test_all_of_a_user_expires_by_itself(redis_server: RedisServer) -> None:
    """State, slots and the list of users; a state as good as new goes at once."""
    limits = Limits(concurrent=5, user=Limits(Rate(60, 10), concurrent=2))
    async with running(redis_server) as store:
        lease = (await store.admit("alice", limits, 0, 0.0, 0.0, "u")).lease
        await store.admit("alice", limits, 0, 0.0, 0.0, "v")
        assert lease is not None
        keys = await store.command("KEYS", "aiaas:{alice}*")
        assert isinstance(keys, list)
        names = [b":slots", b":users", b":limits:u", b":limits:v", b":slots:u", b":slots:v"]
        assert sorted(map(str, keys)) == sorted(str(b"aiaas:{alice}" + name) for name in names)
        for name in names:
            left = await store.command("PTTL", b"aiaas:{alice}" + name)
            assert isinstance(left, int)
            assert 0 < left <= 15_000
        assert store.held_by("alice", "u") == 1
        store.settle(lease, 0, 0.0, 0.0, ran=False)
        assert await store.command("EXISTS", "aiaas:{alice}:limits:u", "aiaas:{alice}:slots:u") == 0
        assert (await store.command("ZCARD", "aiaas:{alice}:slots"), store.held_by("alice", "u")) == (1, 0)


async def test_slot_of_a_user_lives_as_long_as_its_request(redis_server: RedisServer) -> None:
    """It is renewed, and another gateway sees it."""
    limits = Limits(user=Limits(concurrent=1))
    async with running(redis_server, lease=3.0) as store, connected(redis_server.url) as other:
        lease = (await store.admit("alice", limits, 0, 0.0, 0.0, "u")).lease
        assert lease is not None
        ends = asyncio.get_running_loop().time() + 4.0
        while asyncio.get_running_loop().time() < ends:
            refused = await other.admit("alice", limits, 0, 0.0, 0.0, "u")
            assert (refused.refused_by, refused.of_user) == ("concurrency", True)
            await asyncio.sleep(0.1)
        store.settle(lease, 0, 0.0, 0.0)
        await until(lambda: is_free_for_user(other, limits))


async def is_free_for_user(store: OpenStore, limits: Limits) -> bool:
    return (await store.admit("alice", limits, 0, 0.0, 0.0, "u")).lease is not None


# -- a server that misbehaves ----------------------------------------------------------------------------------------


async def test_a_forgotten_script_is_taught_again(redis_server: RedisServer) -> None:
    """SCRIPT FLUSH fails no admission and loses no settlement."""
    limits = Limits(Rate(60, 5), concurrent=1)
    async with running(redis_server) as store:
        await store.command("SCRIPT", "FLUSH")
        lease = (await store.admit("alice", limits, 0, 0.0, 0.0)).lease
        assert lease is not None
        await store.command("SCRIPT", "FLUSH")
        store.settle(lease, 0, 0.0, 0.0, ran=False)
        await until(lambda: store.command("PING"))
        found = await store.admit("alice", limits, 0, 0.0, 0.0)
        assert found.requests is not None
        assert (found.refused_by, found.requests.remaining) == (None, 4)
        assert (store.failures, store.settlements_lost) == (0, 0)


async def test_cancelled_admission_costs_nothing(redis_server: RedisServer) -> None:
    """Its reply goes to nobody else, and its charge is given back."""
    limits = Limits(Rate(60, 10), Rate(600, 600), None, None, 1)
    async with running(redis_server) as store:
        for turn in range(50):
            left = asyncio.create_task(store.admit("alice", limits, 600, 0.0, 0.0))
            await asyncio.sleep(0)
            other = asyncio.create_task(store.admit(f"bob {turn}", Limits(Rate(turn + 1, 1)), 0, 0.0, 0.0))
            left.cancel()
            found = await other
            assert left.cancelled()
            assert found.requests is not None
            assert found.requests.limit == turn + 1
        stands = await store.look("alice", limits, 0.0)
        assert stands.requests is not None
        assert stands.tokens is not None
        assert (stands.requests.remaining, stands.tokens.remaining) == (10, 600)
        assert await store.command("EXISTS", "aiaas:{alice}:slots") == 0


async def test_admission_cancelled_as_it_arrives_is_given_back(redis_server: RedisServer) -> None:
    """The reply is there, its task has not run yet, and the client leaves: asyncio drops the reply."""
    async with running(redis_server) as store:
        connection = store.connection()
        deliver = connection._deliver
        asked = asyncio.create_task(store.admit("alice", ONE, 0, 0.0, 0.0))

        def deliver_and_leave(reply: Reply) -> None:
            deliver(reply)
            asked.cancel()

        connection._deliver = deliver_and_leave  # type: ignore[method-assign]
        await asyncio.wait([asked])
        connection._deliver = deliver  # type: ignore[method-assign]
        assert asked.cancelled()
        assert await store.command("ZCARD", "aiaas:{alice}:slots") == 0


async def test_a_server_that_dies_is_noticed_at_once_and_found_again(tmp_path: Path) -> None:
    """While it is away nobody waits; settlements are made when it is back; each change is logged once."""
    server = RedisServer(tmp_path)
    server.start()
    changes: list[bool] = []
    limits = Limits(tokens=Rate(60, 1000))
    try:
        async with running(server, on_change=lambda up, _reason: changes.append(up)) as store:
            lease = (await store.admit("alice", limits, 600, 0.0, 0.0)).lease
            assert lease is not None
            assert (await store.admit("carol", ONE, 0, 0.0, 0.0)).lease is not None
            server.kill()
            await until(lambda: away(store))
            with pytest.raises(StoreAwayError):
                await store.admit("alice", limits, 1, 0.0, 0.0)
            store.settle(lease, 900, 0.0, 0.0)  # 300 more than were reserved
            server.start()
            await until(lambda: back(store), within=5.0)
            # Its slot is taken again at once, and not only when leases are renewed.
            assert await store.command("ZCARD", "aiaas:{carol}:slots") == 1
            stands = await store.look("alice", limits, 0.0)
            assert stands.tokens is not None
            assert 700 <= stands.tokens.remaining <= 705
            assert store.settlements_lost == 0
        assert changes == [True, False, True]
    finally:
        server.end()


async def test_a_hang_costs_the_first_requests_one_patience(tmp_path: Path) -> None:
    """The server keeps its connections and is silent; one wait for all, then none, and it is back when it goes on."""
    server = RedisServer(tmp_path)
    server.start()
    loop = asyncio.get_running_loop()
    reasons: list[str] = []
    try:
        async with running(server, patience=0.2, on_change=lambda _up, reason: reasons.append(reason)) as store:
            connection, before = store.connection(), store.failures
            lease = (await store.admit("alice", Limits(tokens=Rate(1, 1000)), 100, 0.0, 0.0)).lease
            assert lease is not None
            server.hang()
            store.settle(lease, 300, 0.0, 0.0)
            began = loop.time()
            asked = (store.admit(f"key {n}", Limits(Rate(60, 1)), 0, 0.0, 0.0) for n in range(20))
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(one, AdmissionLateError) for one in found)
            assert loop.time() - began >= 0.2
            assert not store.up
            assert store.failures >= before + 20
            for number in range(100):
                asked_again = store.admit(f"key {number}", Limits(Rate(60, 1)), 0, 0.0, 0.0)
                with pytest.raises(StoreAwayError):
                    asked_again.send(None)  # without a single wait
            server.go_on()
            await until(lambda: back(store), within=5.0)
            assert store.connection() is connection
            looked = await store.look("alice", Limits(tokens=Rate(1, 1000)), 0.0)
            assert looked.tokens is not None
            assert (looked.tokens.remaining, store.settlements_lost) == (700, 0)
        assert reasons == ["", "no answer within 200 ms (rate_limit.store_timeout)", ""]
    finally:
        server.end()


async def test_failures_go_on_while_the_store_is_away() -> None:
    """Each failed attempt to connect counts, also without requests."""
    store = RedisStore(parse_redis_url("redis://127.0.0.1:1"))
    task = asyncio.create_task(store.run())

    async def three() -> bool:
        return store.failures >= 3

    await until(three, within=10.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_gateways_are_counted_while_they_live(redis_server: RedisServer) -> None:
    """Each gateway counts itself; one that ends leaves at once, one that was killed when its lease ends."""
    async with running(redis_server, lease=0.6) as one:

        async def counts(number: int) -> bool:
            return one.processes == number

        async with running(redis_server, lease=0.6) as other, running(redis_server, lease=0.6):
            await until(partial(counts, 3))
            other._servers.nodes()[0].patience = 5.0
            assert other.processes in (1, 2, 3)
        await until(partial(counts, 1))
        await one.command("EVALSHA", one._digest, 1, "aiaas:{gateways:}:slots", "renew", 0.5, "somebody")
        await until(partial(counts, 2))
        await until(partial(counts, 1))


@pytest.mark.parametrize("delay", [0, 1, 15, 25, 60])
async def test_a_store_that_is_far_away_decides_on_all(redis_server: RedisServer, delay: int) -> None:
    """The delay of the network: with the default timeout the store still decides each request, exactly."""
    url = parse_redis_url(redis_server.url)
    async with delaying(url.places[0].port, delay / 1000) as port:
        for attempt in range(5):
            async with connected(f"redis://127.0.0.1:{port}/0", patience=STORE_PATIENCE) as far, running(redis_server):
                found, store = await asked_for_sixty(far, f"alice {attempt}")
                if not store.decisions["deny"]:  # else this machine stood still for longer than the store has time
                    assert (far.failures, far.up) == (0, True)
                    break
        assert [one.refused_by for one in found] == [None] * 50 + ["requests"] * 10
        assert store.decisions == {"shared": 60, "deny": 0}


async def asked_for_sixty(far: OpenStore, key: str) -> tuple[list[AdmissionResult], FallbackStore]:
    """The decisions about sixty requests of a key that has fifty, and the store that counts who made them."""
    store = FallbackStore(far, "deny", 1)
    found: list[AdmissionResult] = []
    for number in (10, *[5] * 10):
        asked = [store.admit(key, Limits(Rate(60, 50)), 0, 0.0, 0.0) for _ in range(number)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found += [answer for answer in answers if isinstance(answer, AdmissionResult)]
    return found, store


async def test_a_password_is_given_and_never_shown(tmp_path: Path) -> None:
    """Neither the right one nor a wrong one stands in a reason or a repr."""
    server = RedisServer(tmp_path, "--requirepass", "right-pass")
    server.start()
    said: list[str] = []
    try:
        for password, opens in (("right-pass", True), ("wrong-pass", False)):
            url = parse_redis_url(f"redis://:{password}@127.0.0.1:{server.port}/3")
            store = RedisStore(url, on_change=lambda _up, reason: said.append(reason))
            task = asyncio.create_task(store.run())
            await store.tried.wait()
            assert store.up is opens
            said.append(repr(store) + repr(url))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await store.close()
    finally:
        server.end()
    assert any("WRONGPASS" in text for text in said)
    assert not any("-pass" in text.replace("username-password", "") for text in said)


async def test_settlements_of_a_long_outage_are_bounded_and_counted() -> None:
    """The first LATE_LIMIT are kept, the rest are lost and logged."""
    store = RedisStore(parse_redis_url("redis://127.0.0.1:1"))
    for number in range(LATE_LIMIT + 5):
        store.settle(Lease("a", Limits(tokens=Rate(1, 1)), 5, False, WALL, str(number)), 3, 0.0, 0.0)
    assert store.settlements_lost == 5
