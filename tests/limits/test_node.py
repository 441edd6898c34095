"""One server of the store: connected, watched, connected again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from aiaas.limits.connection import StoreAwayError, StoreConnection
from aiaas.limits.node import StoreNode
from aiaas.limits.redis_url import StorePlace, parse_redis_url
from aiaas.limits.resp import RedisReplyError
from tests.fakes.redis import RedisServer


class FakeOwner:
    """Greets as scripted, and records its calls."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.beats: list[int] = []
        self.greeting: Callable[[StoreConnection], object] = lambda _connection: None
        self.heard = asyncio.Event()

    async def greet(self, node: StoreNode, connection: StoreConnection) -> None:
        self.greeting(connection)

    async def beat(self, node: StoreNode, connection: StoreConnection, number: int) -> None:
        self.beats.append(number)
        if number == 3:
            raise RedisReplyError("READONLY You can't write against a read only replica.")

    def changed(self, node: StoreNode, reason: str) -> None:
        self.reasons.append(reason)
        self.heard.set()

    async def hears(self, number: int) -> None:
        async with asyncio.timeout(10):
            while len(self.reasons) < number:
                self.heard.clear()
                await self.heard.wait()


@asynccontextmanager
async def running(places: list[StorePlace], owner: FakeOwner) -> AsyncIterator[StoreNode]:
    """A node that is at one place after another, with each connection; the last one stays."""

    async def find() -> StorePlace:
        return places.pop(0) if len(places) > 1 else places[0]

    node = StoreNode(parse_redis_url("redis://store"), None, find, owner, 2.0, 0.01)
    task = asyncio.create_task(node.run())
    try:
        yield node
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.close()


async def test_it_looks_where_the_server_is_with_each_connection(redis_server: RedisServer) -> None:
    """A primary that moved is found, and each failure is reported."""
    owner = FakeOwner()
    async with running([StorePlace("127.0.0.1", 1), StorePlace("127.0.0.1", redis_server.port)], owner) as node:
        await node.tried.wait()
        with pytest.raises(StoreAwayError, match="not connected"):
            node.asked()
        await owner.hears(2)
        assert node.ready
        assert node.place.port == redis_server.port
    assert "cannot connect" in owner.reasons[0]
    assert owner.reasons[1] == ""
    assert not node.ready


async def test_a_server_that_cannot_be_used_is_tried_again(redis_server: RedisServer) -> None:
    """Its error is reported; the connection is not kept."""
    owner = FakeOwner()
    connections: list[StoreConnection] = []

    def refuse(connection: StoreConnection) -> None:
        connections.append(connection)
        if len(connections) == 1:
            raise RedisReplyError("LOADING Redis is loading the dataset in memory")

    owner.greeting = refuse
    async with running([StorePlace("127.0.0.1", redis_server.port)], owner):
        await owner.hears(2)
    assert owner.reasons[0] == "redis://store:6379/0 cannot be used: LOADING Redis is loading the dataset in memory"
    assert connections[0].lost.done()


async def test_a_beat_that_is_refused_ends_the_connection(redis_server: RedisServer) -> None:
    """A primary that became a replica: another look is due. Beats count anew on each connection."""
    owner = FakeOwner()
    async with running([StorePlace("127.0.0.1", redis_server.port)], owner):
        await owner.hears(3)
    assert owner.reasons[:3] == ["", "it answered READONLY You can't write against a read only replica.", ""]
    assert owner.beats[:3] == [1, 2, 3]
