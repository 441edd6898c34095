"""One server of the shared store: connected, watched, and connected again when the connection is lost."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from aiaas.limits.connection import StoreAwayError, StoreConnection, connect, named
from aiaas.limits.redis_url import RedisUrl, StorePlace
from aiaas.limits.resp import RedisReplyError

# The first wait before connecting again, and the longest; it doubles while connections end before STEADY_CONNECTION.
RETRY_FIRST: Final = 0.25
RETRY_LONGEST: Final = 2.0
STEADY_CONNECTION: Final = 10.0


class Owner(Protocol):
    """The store, as a Node calls it."""

    async def greet(self, node: StoreNode, connection: StoreConnection) -> None:
        """Prepare a new connection. Raises RedisReplyError or StoreAwayError where the server cannot be used."""

    async def beat(self, node: StoreNode, connection: StoreConnection, number: int) -> None:
        """Do the regular work on a ready connection, every `interval`; beats count from 1. Raises as `greet`."""

    def changed(self, node: StoreNode, reason: str) -> None:
        """Note that the node is ready, or no longer ready for `reason`; called after each failed attempt, too."""


class StoreNode:
    """A server that `find` finds. Requests use `connection` while `ready`.

    find      asked before each connect: with sentinels it may be another server each time
    interval  seconds between two beats
    tried     set after the first attempt to connect
    """

    def __init__(
        self,
        url: RedisUrl,
        tls: ssl.SSLContext | None,
        find: Callable[[], Awaitable[StorePlace]],
        owner: Owner,
        patience: float,
        interval: float,
    ) -> None:
        self._url = url
        self._tls = tls
        self._find = find
        self._owner = owner
        self._interval = interval
        self.patience = patience
        self.place = url.places[0]
        self.connection: StoreConnection | None = None
        self.tried = asyncio.Event()

    def __repr__(self) -> str:
        return f"Node({self.place}, {'ready' if self.ready else 'away'})"

    @property
    def ready(self) -> bool:
        """Whether requests can use the node."""
        return self.connection is not None and self.connection.ready

    def asked(self) -> StoreConnection:
        """The connection for a request. Raises StoreAwayError while not `ready`."""
        if self.connection is None:
            raise StoreAwayError("not connected")
        if not self.connection.ready:
            raise StoreAwayError(self.connection.silence)
        return self.connection

    async def run(self) -> None:
        """Connect, keep, connect again; until cancelled."""
        loop = asyncio.get_running_loop()
        wait = RETRY_FIRST
        while True:
            try:
                self.connection = connection = await self._connect()
            except StoreAwayError as error:
                self._say(str(error))
            else:
                began = loop.time()
                connection.on_change = lambda connection=connection: self._say(  # type: ignore[misc]
                    "" if connection.ready else connection.silence
                )
                self._say("")
                reason = await self._keep(connection)
                self.connection = None
                self._say(reason)
                if loop.time() - began > STEADY_CONNECTION:
                    wait = RETRY_FIRST
            await asyncio.sleep(wait)
            wait = min(2 * wait, RETRY_LONGEST)

    async def close(self) -> None:
        """Wait briefly for open commands, then end the connection. `run` has ended before."""
        if self.connection is not None:
            await self.connection.close()
            self.connection = None

    async def _connect(self) -> StoreConnection:
        self.place = await self._find()
        connection = await connect(self._url, self.place, self._tls, self.patience)
        try:
            await self._owner.greet(self, connection)
        except RedisReplyError as error:
            connection.lose("refused")
            raise StoreAwayError(f"{named(self._url, self.place)} cannot be used: {error}{self._hint(error)}") from None
        except BaseException:
            connection.lose("given up")
            raise
        return connection

    async def _keep(self, connection: StoreConnection) -> str:
        """Do the regular work until the connection is lost; return the reason."""
        number = 0
        while True:
            await asyncio.wait([connection.lost], timeout=self._interval)
            if connection.lost.done():
                return connection.lost.result()
            number += 1
            try:
                await self._owner.beat(self, connection, number)
            except StoreAwayError:
                continue
            except RedisReplyError as error:
                connection.lose(f"it answered {error}")

    def _say(self, reason: str) -> None:
        self.tried.set()
        self._owner.changed(self, reason)

    def _hint(self, error: RedisReplyError) -> str:
        if error.code != "MOVED" or self._url.kind == "cluster":
            return ""
        return "; this is a cluster node: write redis+cluster:// in rate_limit.store"
