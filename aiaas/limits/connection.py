"""One connection to the shared store. Any number of requests share it: commands go out as they are made, replies come
back in order.

1. A command is written at once (the loop puts those of one turn into one write) and its reply is found by its place.
   A waiter that was cancelled keeps its place, so that no reply ever reaches another's request. (A client that gave the
   place away mixed up its users' data in March 2023: redis/redis-py#2624.)
2. A command that is not answered within `patience` ends the connection, and with it everything that waits: there is
   nobody left whose place could be trusted. No timer for each command; one tick looks at the oldest.
3. What is late because this process was busy is not the server's fault: the oldest must have been seen waiting by the
   tick before, and between two ticks the loop has read what had come.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from aiaas.errors import AiaasError
from aiaas.limits.redis_url import RedisUrl
from aiaas.limits.resp import RedisReplyError, Replies, Reply, RespError, command

# Seconds. With ticks of half of it a silent server costs no request more than 30 ms, well below the 50 ms that contract
# section 5 allows; a healthy one in the same network answers in less than one.
PATIENCE: Final = 0.02
# To begin a connection, name resolution and TLS included. Nobody waits for it.
CONNECT_TIMEOUT: Final = 2.0


class StoreAwayError(AiaasError):
    """The shared store cannot be asked just now. Its text says why, for the log."""


class StoreTlsError(AiaasError):
    """A file that a `rediss://` address names cannot be used; its text says which and why."""


class _Waiting(NamedTuple):
    reply: asyncio.Future[Reply]
    unclaimed: Callable[[Reply], None] | None
    since: float


class Connection(asyncio.Protocol):
    """A connection that `connect` made. `lost` is done when it has ended, with the reason."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        self._loop = loop
        self._patience = patience
        self._replies = Replies()
        self._waiting: deque[_Waiting] = deque()
        self._transport: asyncio.Transport | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._seen: _Waiting | None = None
        self.lost: asyncio.Future[str] = loop.create_future()

    def __repr__(self) -> str:
        state = self.lost.result() if self.lost.done() else f"{len(self._waiting)} waiting"
        return f"Connection({state})"

    def call(
        self, *arguments: bytes | str | int | float, unclaimed: Callable[[Reply], None] | None = None
    ) -> asyncio.Future[Reply]:
        """Send a command; the future is its reply, or raises RedisReplyError or StoreAwayError.

        unclaimed  gets the reply where the future was cancelled meanwhile
        """
        if self._transport is None or self.lost.done():
            raise StoreAwayError(self.lost.result() if self.lost.done() else "not connected")
        reply: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting.append(_Waiting(reply, unclaimed, self._loop.time()))
        self._transport.write(command(arguments))
        if self._ticking is None:
            self._ticking = self._loop.call_later(self._patience / 2, self._tick)
        return reply

    async def close(self) -> None:
        """Wait for what is under way, no longer than `call` lets it be, and end the connection."""
        waiting = [waiting.reply for waiting in self._waiting if not waiting.reply.done()]
        if waiting:
            await asyncio.wait(waiting)
        self.lose("closed")

    def lose(self, reason: str) -> None:
        """End it now; whoever waits gets StoreAwayError."""
        if not self.lost.done():
            self.lost.set_result(reason)
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        if self._transport is not None:
            self._transport.abort()
        for waiting in self._waiting:
            if not waiting.reply.done():
                waiting.reply.set_exception(StoreAwayError(reason))
        self._waiting.clear()

    # -- what asyncio calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As in asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """As in asyncio.Protocol."""
        try:
            for reply in self._replies.feed(data):
                self._deliver(reply)
        except RespError as error:
            self.lose(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """As in asyncio.Protocol."""
        self.lose("the connection was closed by the server" if exc is None else f"the connection broke: {exc}")

    # -- steps ----------------------------------------------------------------------------------------------------

    def _deliver(self, reply: Reply) -> None:
        if not self._waiting:
            raise RespError("it answered what nobody asked")
        waiting = self._waiting.popleft()
        if waiting.reply.done():
            if waiting.unclaimed is not None:
                waiting.unclaimed(reply)
        elif isinstance(reply, RedisReplyError):
            waiting.reply.set_exception(reply)
        else:
            waiting.reply.set_result(reply)

    def _tick(self) -> None:
        self._ticking = None
        if not self._waiting:
            return
        oldest = self._waiting[0]
        if oldest is self._seen and self._loop.time() - oldest.since >= self._patience:
            self.lose(f"no answer within {self._patience * 1000:.0f} ms")
            return
        self._seen = oldest
        self._ticking = self._loop.call_later(self._patience / 2, self._tick)


async def connect(url: RedisUrl, tls: ssl.SSLContext | None, patience: float = PATIENCE) -> Connection:
    """A connection that has logged in and chosen its database. Raises StoreAwayError, whose text names no secret."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, connection = await loop.create_connection(
                lambda: Connection(loop, patience),
                url.host,
                url.port,
                ssl=tls,
                server_hostname=url.host if tls else None,
            )
    except TimeoutError:
        raise StoreAwayError(f"{url.url} took no connection within {CONNECT_TIMEOUT:g} s") from None
    except OSError as error:
        raise StoreAwayError(f"cannot connect to {url.url}: {error.strerror or error}") from error
    try:
        if url.password is not None:
            await connection.call("AUTH", *([url.username] if url.username else []), url.password)
        if url.database:
            await connection.call("SELECT", url.database)
    except RedisReplyError as error:
        connection.lose("refused")
        raise StoreAwayError(f"{url.url} refused us: {error}") from None
    except BaseException:
        connection.lose("given up")
        raise
    return connection


def tls_context(url: RedisUrl) -> ssl.SSLContext | None:
    """What a `rediss://` address is checked by; None for one without TLS. Raises StoreTlsError."""
    if not url.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=url.ca_file)
    except OSError as error:
        raise StoreTlsError(f"{url.ca_file} holds no authorities in PEM: {error.strerror or error}") from error
    if url.cert_file is not None:
        try:
            context.load_cert_chain(url.cert_file, url.key_file)
        except OSError as error:
            files = f"{url.cert_file} and {url.key_file}"
            raise StoreTlsError(f"{files} are no certificate and its key: {error.strerror or error}") from error
    return context
