"""Stores that are connected to real servers, for the tests of several modules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiaas.limits.connection import StoreConnection
from aiaas.limits.model import AdmissionResult, Lease, Limits
from aiaas.limits.redis import RedisStore
from aiaas.limits.redis_url import parse_redis_url
from aiaas.limits.resp import Reply
from aiaas.limits.script import SCRIPT
from tests.limits.conformance import NOW, WALL

# The same script, which reads the time from a key where there is one: the suite's time is passed in.
CLOCK = "redis.call('TIME')"
CLOCK_KEY = "string.match(KEYS[1], '{.*}') .. 'time'"
SHOWN = f"redis.call('LRANGE', {CLOCK_KEY}, 0, 1)"
CLOCKED = SCRIPT.replace(CLOCK, f"redis.call('EXISTS', {CLOCK_KEY}) == 1 and {SHOWN} or {CLOCK}")
SET_CLOCK = "redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], ARGV[1], ARGV[2])"


class OpenStore(RedisStore):
    """A store whose connections also take the tests' own commands, in order with its calls."""

    async def command(self, *arguments: bytes | str | int | float) -> Reply:
        return await self.connection().call(*arguments)

    def connection(self, key: str = "alice") -> StoreConnection:
        return self._servers.of(key).asked()


class ClockedStore:
    """A store whose server's clock shows the `wall` of each call."""

    def __init__(self, store: OpenStore) -> None:
        self.store = store

    def _set(self, key: str, wall: float) -> asyncio.Future[Reply]:
        seconds, micros = divmod(round(wall * 1e6), 10**6)
        return self.store.connection(key).call("EVAL", SET_CLOCK, 1, f"{{{key}}}time", seconds, micros)

    async def admit(
        self, key: str, limits: Limits, tokens: int, now: float, wall: float, user: str = ""
    ) -> AdmissionResult:
        await self._set(key, wall)
        return await self.store.admit(key, limits, tokens, now, wall, user)

    async def look(self, key: str, limits: Limits, now: float, user: str = "") -> AdmissionResult:
        await self._set(key, WALL + now - NOW)
        return await self.store.look(key, limits, now, user)

    def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:
        self._set(lease.key, wall)  # in order before the settlement, on the same connection
        self.store.settle(lease, used_tokens, now, wall, ran=ran)

    async def close(self) -> None:
        await self.store.close()


@asynccontextmanager
async def running(url: str, **options: Any) -> AsyncIterator[OpenStore]:
    """A store that is connected. Patient, since tests share their machine: silence has tests of its own."""
    store = OpenStore(parse_redis_url(url), **{"patience": 2.0, **options})
    task = asyncio.create_task(store.run())
    try:
        await until(lambda: back(store), within=10.0)
        yield store
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


async def until(holds: Callable[[], Awaitable[object]], within: float = 10.0) -> float:
    """Seconds until the condition holds; a real server's clock cannot be passed in."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not await holds():
        assert loop.time() - began < within
        await asyncio.sleep(0.01)
    return loop.time() - began


async def away(store: RedisStore) -> bool:
    return not store.up


async def back(store: RedisStore) -> bool:
    return store.up
