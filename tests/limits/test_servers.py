"""The servers of a store: a cluster whose slots move and whose nodes die, a primary that sentinels replace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aiaas.limits.connection import StoreAwayError, StoreConnection
from aiaas.limits.fallback import FallbackStore
from aiaas.limits.model import AdmissionResult, Limits, Rate, Store
from aiaas.limits.node import RETRY_LONGEST, StoreNode
from aiaas.limits.redis_url import StorePlace, parse_redis_url
from aiaas.limits.script import MEMBERS, slots_key_of, state_key_of
from aiaas.limits.servers import Servers
from aiaas.limits.topology import Redirect, SlotRange, slot_of
from aiaas.limits.usage_redis import RedisUsage
from tests.fakes.redis import RedisCluster, Sentinels
from tests.limits.conformance import StoreConformance
from tests.limits.stores import CLOCKED, ClockedStore, OpenStore, away, back, running, until
from tests.limits.usage_conformance import UsageConformance

LIMITS = Limits(Rate(1, 50), Rate(6000, 6000), 100_000)
SLOTS_TOO = Limits(Rate(1, 50), concurrent=50)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three nodes, for the tests of this module."""
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    """The nodes are empty of earlier tests' keys."""
    if "cluster" in request.fixturenames:
        for node in request.getfixturevalue("cluster").nodes:
            node.command("FLUSHALL")


class TestClusterStore(StoreConformance):
    """The suite that all stores share."""

    @pytest.fixture
    async def store(self, cluster: RedisCluster) -> AsyncIterator[Store]:
        async with running(cluster.url, script=CLOCKED, lease=3600.0) as store:
            yield ClockedStore(store)


class TestClusterUsage(UsageConformance):
    """The suite that all stores of usage share."""

    @pytest.fixture
    async def store(self, cluster: RedisCluster) -> AsyncIterator[RedisUsage]:
        store = RedisUsage(parse_redis_url(cluster.url))
        yield store
        await store.close()

    @pytest.fixture
    async def other(self, cluster: RedisCluster) -> AsyncIterator[RedisUsage]:
        store = RedisUsage(parse_redis_url(cluster.url))
        yield store
        await store.close()


def remaining(admission: AdmissionResult) -> int:
    """Requests that a key has left."""
    assert admission.refused_by is None
    assert admission.requests is not None
    return admission.requests.remaining


async def admit(store: OpenStore | FallbackStore, key: str = "alice", limits: Limits = LIMITS) -> AdmissionResult:
    return await store.admit(key, limits, 10, 0.0, 0.0)


def test_slots_are_those_of_the_nodes_own_reckoning(cluster: RedisCluster) -> None:
    """For every key that the store uses: ids of keys, addresses, usage, the count of gateways."""
    for tag in ("4hT0bQ2x", "10.1.2.3", "2001:db8::1", "usage", MEMBERS):
        for key in (state_key_of(tag), slots_key_of(tag), state_key_of(tag, "u"), slots_key_of(tag, "u")):
            assert cluster.nodes[0].command("CLUSTER", "KEYSLOT", key) == slot_of(tag)


async def test_keys_of_all_nodes_are_counted_together(cluster: RedisCluster) -> None:
    """Two gateways, and as many keys as it takes to reach each node; each gateway is counted once."""
    async with running(cluster.url) as one, running(cluster.url) as other:
        for number in range(30):
            assert remaining(await admit(one, f"key {number}")) == 49
            assert remaining(await admit(other, f"key {number}")) == 48
        owners = {one._servers.of(f"key {number}") for number in range(30)}
        assert {node.place.port for node in owners} == {node.port for node in cluster.nodes}
        assert other.processes == 2
        assert one.failures == other.failures == 0


@pytest.mark.parametrize("limits", [LIMITS, SLOTS_TOO], ids=["one key", "two keys"])
async def test_a_moved_slot_is_followed_by_every_call(cluster: RedisCluster, limits: Limits) -> None:
    """The first admission and the first settlement after it too; nothing is lost on the way."""
    async with running(cluster.url) as store:
        leases = [(await admit(store, limits=limits)).lease for _ in range(4)]
        source = cluster.owner(slot_of("alice"))
        target = next(node for node in cluster.nodes if node is not source)
        await asyncio.to_thread(cluster.begin_move, slot_of("alice"), source, target)
        await asyncio.to_thread(cluster.end_move, slot_of("alice"), source, target)
        assert leases[0] is not None
        store.settle(leases[0], 0, 0.0, 0.0, ran=False)
        assert remaining(await admit(store, limits=limits)) == 46
        assert store._servers.of("alice").place.port == target.port
        assert remaining(await admit(store, limits=limits)) == 45
        assert (store.failures, store.settlements_lost) == (0, 0)


async def test_a_slot_that_is_moving_is_asked_for_at_its_new_node(cluster: RedisCluster) -> None:
    """A key that has moved (ASK), and one that has not; the map stays as it was meanwhile."""
    async with running(cluster.url) as store:
        slot = slot_of("alice")
        source = cluster.owner(slot)
        target = next(node for node in cluster.nodes if node is not source)
        await asyncio.to_thread(cluster.begin_move, slot, source, target)
        target.command("SCRIPT", "FLUSH")
        lease = (await admit(store)).lease
        assert lease is not None
        assert remaining(await admit(store)) == 48
        assert target.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
        assert store._servers.of("alice").place.port == source.port
        store.settle(lease, 0, 0.0, 0.0, ran=False)
        assert remaining(await admit(store)) == 48
        await asyncio.to_thread(cluster.end_move, slot, source, target)
        assert remaining(await admit(store)) == 47
        assert store.failures == 0


async def test_a_key_that_is_half_moved_counts_as_away_alone(cluster: RedisCluster) -> None:
    """Limits and slots lie on two nodes (TRYAGAIN): its requests are decided here, all others there."""
    async with running(cluster.url) as store:
        slot = slot_of("alice")
        source = cluster.owner(slot)
        target = next(node for node in cluster.nodes if node is not source)
        kept = (await admit(store, limits=SLOTS_TOO)).lease
        await asyncio.to_thread(cluster.begin_move, slot, source, target)
        source.command("MIGRATE", "127.0.0.1", target.port, "aiaas:{alice}:slots", 0, 5000)
        with pytest.raises(StoreAwayError, match="TRYAGAIN"):
            await admit(store, limits=SLOTS_TOO)
        assert store.up
        assert kept is not None
        store.settle(kept, 0, 0.0, 0.0, ran=False)
        assert remaining(await admit(store, "bob")) == 49
        await asyncio.to_thread(cluster.end_move, slot, source, target)

        async def is_settled() -> bool:  # delivered late, with a beat
            return remaining(await store.look("alice", SLOTS_TOO, 0.0)) == 50

        await until(is_settled, within=10.0)
        assert store.settlements_lost == 0


async def test_requests_go_on_while_slots_move(cluster: RedisCluster) -> None:
    """Slots of many keys move one by one under load: no request is decided elsewhere, and each is counted once."""
    async with running(cluster.url) as one, running(cluster.url) as other:
        keys = [f"key {number}" for number in range(12)]
        admitted = dict.fromkeys(keys, 0)
        ended = asyncio.Event()

        async def load(store: OpenStore) -> None:
            while not ended.is_set():
                for key in keys:
                    await store.admit(key, Limits(Rate(1, 100_000)), 0, 0.0, 0.0)
                    admitted[key] += 1

        tasks = [asyncio.create_task(load(store)) for store in (one, other)]
        target, moved = cluster.nodes[2], 0  # all go there: slots that go to and fro confuse the nodes themselves
        for key in keys:
            if (source := cluster.owner(slot_of(key))) is not target:
                await asyncio.to_thread(cluster.begin_move, slot_of(key), source, target)
                await asyncio.to_thread(cluster.end_move, slot_of(key), source, target)
                moved += 1
        ended.set()
        await asyncio.gather(*tasks)
        for key in keys:
            looked = await one.look(key, Limits(Rate(1, 100_000)), 0.0)
            assert remaining(looked) == 100_000 - admitted[key]
        assert moved > 3
        assert min(admitted.values()) > 10
        assert one.failures == other.failures == 0


async def test_a_dead_node_is_away_for_its_keys_alone(tmp_path: Path) -> None:
    """The store decides the others' keys all the while; a replica takes over, and all are decided again."""
    cluster = RedisCluster(tmp_path, replicas=True)
    try:
        await asyncio.to_thread(cluster.start)
        changes: list[bool] = []
        async with running(cluster.url, on_change=lambda up, _reason: changes.append(up)) as shared:
            store = FallbackStore(shared, "deny", 1)
            dying = shared._servers.of("alice")
            other = next(key for key in map(str, range(100)) if shared._servers.of(key) is not dying)
            lease = (await admit(store)).lease
            await asyncio.sleep(2 * RETRY_LONGEST)  # all is well: nobody looks at the map any more
            next(node for node in cluster.nodes if node.port == dying.place.port).kill()
            await until(lambda: away(shared))
            with pytest.raises(StoreAwayError):
                await admit(shared)
            assert remaining(await admit(store, other)) == 49
            assert lease is not None
            store.settle(lease, 0, 0.0, 0.0, ran=False)
            await until(lambda: back(shared), within=20.0)
            assert shared._servers.of("alice").place.port in {node.port for node in cluster.replicas}
            assert remaining(await admit(store)) == 49
            assert changes == [True, False, True]
    finally:
        cluster.end()


async def test_a_new_primary_is_followed_when_sentinels_say_so(tmp_path: Path) -> None:
    """The replica becomes the primary with what it has; a settlement of meanwhile arrives there."""
    sentinels = Sentinels(tmp_path)
    try:
        await asyncio.to_thread(sentinels.start)
        async with running(sentinels.url) as store:
            lease = (await admit(store)).lease
            assert lease is not None
            assert await store.command("WAIT", 1, 5000) == 1
            sentinels.primary.kill()
            await until(lambda: away(store))
            store.settle(lease, 0, 0.0, 0.0, ran=False)
            took = await until(lambda: back(store), within=20.0)
            print(f"back after {took:.1f} s")
            assert store._servers.of("alice").place.port == sentinels.replica.port
            assert remaining(await admit(store)) == 49
            usage = RedisUsage(parse_redis_url(sentinels.url))
            assert await usage.read(0) == {}
            await usage.close()
    finally:
        sentinels.end()


class Silent:
    """An owner that ignores its calls."""

    async def greet(self, node: StoreNode, connection: StoreConnection) -> None: ...

    async def beat(self, node: StoreNode, connection: StoreConnection, number: int) -> None: ...

    def changed(self, node: StoreNode, reason: str) -> None: ...


async def test_a_node_without_slots_is_left() -> None:
    """Its task ends; the one that has its slots now is asked for them."""
    servers = Servers(parse_redis_url("redis+cluster://127.0.0.1:1"), None, Silent(), 1.0, 1.0)
    tasks: dict[StoreNode, asyncio.Task[None]] = {}
    one, other = StorePlace("127.0.0.1", 1), StorePlace("127.0.0.1", 2)
    await servers._use([SlotRange(0, 99, one), SlotRange(100, 16383, other)], tasks, asyncio.create_task)
    assert len(servers.nodes()) == len(tasks) == 2
    left, kept = servers._owners[0], servers._owners[100]
    assert left is not None
    ended = tasks[left]
    await servers._use([SlotRange(0, 16383, other)], tasks, asyncio.create_task)
    await asyncio.wait([ended], timeout=10)
    assert ended.cancelled()
    assert servers.nodes() == [kept]
    assert servers._owners[0] is kept
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_the_map_is_looked_at_again_where_it_was_wrong() -> None:
    """A slot that nobody has, one that has moved, and a node that is not known yet."""
    servers = Servers(parse_redis_url("redis+cluster://127.0.0.1:1"), None, Silent(), 1.0, 1.0)
    place = StorePlace("127.0.0.1", 2)

    def follow(once: bool) -> None:
        servers.follow_redirect(Redirect(slot_of("alice"), place, once))

    def nobody() -> None:
        with pytest.raises(StoreAwayError):
            servers.of("alice")

    for wrong in (nobody, lambda: follow(True), nobody, lambda: follow(False)):
        assert not servers._map_is_old.is_set()
        wrong()
        assert servers._map_is_old.is_set()
        servers._map_is_old.clear()
    assert servers.of("alice") is servers._node_at(place)


async def test_one_node_of_a_cluster_is_told_to_be_one(cluster: RedisCluster) -> None:
    """Where the address is of a single server, the log says what to write."""
    reasons: list[str] = []
    url = parse_redis_url(f"redis://127.0.0.1:{cluster.nodes[0].port}")
    wrong = [OpenStore(url, on_change=lambda _up, reason: reasons.append(reason))]
    if slot_of("probe") < 5462:  # that node has it
        wrong = [
            OpenStore(parse_redis_url(f"redis://127.0.0.1:{cluster.nodes[1].port}"), on_change=wrong[0]._on_change)
        ]
    task = asyncio.create_task(wrong[0].run())
    await wrong[0].tried.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not wrong[0].up
    assert "write redis+cluster:// in rate_limit.store" in reasons[0]
