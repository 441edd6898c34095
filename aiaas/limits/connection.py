"""One connection to the shared store. Any number of requests share it: commands go out as they are made, replies come
back in order.

1. A command is written at once (the loop puts those of one turn into one write) and its reply is found by its place.
   A waiter that was cancelled keeps its place, so that no reply ever reaches another's request. (A client that gave the
   place away mixed up its users' data in March 2023: redis/redis-py#2624.)
2. With a command unanswered for `patience` the connection is silent: everybody who waits gets StoreLateError, and
   until all of that is answered nobody is to be sent here (`ready`). The places stay: a late reply goes to `unclaimed`,
   so that what the server did is known. A stall costs no connection.
3. A connection on which nothing came for DEAD, with a command unanswered, is given up: the other side may be gone
   without a word. What was sent and not answered may have been done.
4. A delay of our own is not the server's: before a verdict the loop reads once more what has come (GRACE).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, NamedTuple, cast

from aiaas.errors import AiaasError
from aiaas.limits.redis_url import Place, RedisUrl
from aiaas.limits.resp import RedisReplyError, Replies, Reply, RespError, command

# Seconds. A store in another zone answers in 1 to 60 ms; only the first requests of an outage wait this long.
PATIENCE: Final = 0.25
# Between the two looks at a command that is late, in which the loop reads what had come.
GRACE: Final = 0.005
# With nothing heard for so long another connection is tried. Longer than a stall of a living server usually is.
DEAD: Final = 2.0
# To begin a connection, name resolution and TLS included. Nobody waits for it.
CONNECT_TIMEOUT: Final = 2.0


class StoreAwayError(AiaasError):
    """The shared store cannot be asked just now. Its text says why, for the log."""


class StoreLateError(StoreAwayError):
    """It did not answer in time. The reply may come yet, and then goes to the command's `unclaimed`."""


class StoreTlsError(AiaasError):
    """A file that a `rediss://` address names cannot be used; its text says which and why."""


class _Waiting(NamedTuple):
    reply: asyncio.Future[Reply]
    unclaimed: Callable[[Reply], None] | None
    patient: bool
    since: float


class StoreConnection(asyncio.Protocol):
    """A connection that `connect` made. `lost` is done when it has ended, with the reason.

    patience   seconds; may be changed
    on_change  called when it falls silent and when it is heard again
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        self._loop = loop
        self.patience = patience
        self.on_change: Callable[[], None] = lambda: None
        self._replies = Replies()
        self._waiting: deque[_Waiting] = deque()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looked = -inf
        self._heard = loop.time()
        self._silent = False
        self.lost: asyncio.Future[str] = loop.create_future()

    def __repr__(self) -> str:
        state = self.lost.result() if self.lost.done() else f"{len(self._waiting)} waiting"
        return f"Connection({state})"

    @property
    def ready(self) -> bool:
        """Whether it answers, as far as is known."""
        return not self._silent and not self.lost.done()

    @property
    def silence(self) -> str:
        """What is to be said of a connection that is not ready."""
        if self.lost.done():
            return self.lost.result()
        return f"no answer within {self.patience * 1000:.0f} ms (rate_limit.store_timeout)"

    def call(
        self,
        *arguments: bytes | str | int | float,
        unclaimed: Callable[[Reply], None] | None = None,
        patient: bool = False,
    ) -> asyncio.Future[Reply]:
        """Send a command; the future is its reply, or raises RedisReplyError, StoreLateError or StoreAwayError.

        unclaimed  gets the reply where the future was cancelled meanwhile, or raised StoreLateError
        patient    wait for the reply as long as the connection lasts, however late it is
        """
        if self._transport is None or self.lost.done():
            raise StoreAwayError(self.lost.result() if self.lost.done() else "not connected")
        reply: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting.append(_Waiting(reply, unclaimed, patient, self._loop.time()))
        self._transport.write(command(arguments))
        if self._timer is None:
            self._timer = self._loop.call_later(self.patience, self._look)
        return reply

    async def close(self) -> None:
        """Wait for what is under way, no longer than `patience`, and end the connection."""
        waiting = [waiting.reply for waiting in self._waiting if not waiting.reply.done()]
        if waiting and self.ready:
            await asyncio.wait(waiting, timeout=self.patience)
        self.lose("closed")

    def lose(self, reason: str) -> None:
        """End it now; whoever waits gets StoreAwayError."""
        if not self.lost.done():
            self.lost.set_result(reason)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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
        self._heard = self._loop.time()
        try:
            for reply in self._replies.feed(data):
                self._deliver(reply)
        except RespError as error:
            self.lose(str(error))
        # With more late replies to come a new command would stand behind those, and be late itself.
        if self._silent and not (self._waiting and self._is_late(self._waiting[0], self._heard)):
            self._silent = False
            self.on_change()

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

    def _is_late(self, waiting: _Waiting, at: float) -> bool:
        return at - waiting.since >= self.patience

    def _look(self) -> None:
        """Three cases for the oldest command: in time yet; late, by the first look; late, also by the second."""
        self._timer = None
        now, before = self._loop.time(), self._looked
        self._looked = now
        if not self._waiting:
            return
        oldest = self._waiting[0]
        if not self._is_late(oldest, now):
            wait = oldest.since + self.patience - now
        elif not self._is_late(oldest, before):
            wait = GRACE
        else:
            silence = now - max(oldest.since, self._heard)
            if silence >= max(DEAD, self.patience):
                self.lose(f"no answer for {silence:.1f} s")
                return
            self._fall_silent()
            wait = self.patience
        self._timer = self._loop.call_later(wait, self._look)

    def _fall_silent(self) -> None:
        """Let everybody go who waits, also those who came last: they would wait for nothing."""
        was_silent, self._silent = self._silent, True
        for waiting in self._waiting:
            if not waiting.patient and not waiting.reply.done():
                waiting.reply.set_exception(StoreLateError(self.silence))
        if not was_silent:
            self.on_change()


async def connect(
    url: RedisUrl, place: Place, tls: ssl.SSLContext | None, patience: float = PATIENCE, *, sentinel: bool = False
) -> StoreConnection:
    """A connection that has logged in and chosen its database. Raises StoreAwayError, whose text names no secret.

    sentinel  whether a sentinel listens at `place`: it has users of its own, and no database
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, connection = await loop.create_connection(
                lambda: StoreConnection(loop, patience),
                place.host,
                place.port,
                ssl=tls,
                server_hostname=place.host if tls else None,
            )
    except TimeoutError:
        raise StoreAwayError(f"{named(url, place)} took no connection within {CONNECT_TIMEOUT:g} s") from None
    except OSError as error:
        raise StoreAwayError(f"cannot connect to {named(url, place)}: {error.strerror or error}") from error
    username, password = url.username, url.password
    if sentinel:
        username, password = url.sentinel_username, url.sentinel_password
    try:
        if password is not None:
            await connection.call("AUTH", *([username] if username else []), password)
        if url.database and not sentinel:
            await connection.call("SELECT", url.database)
    except RedisReplyError as error:
        connection.lose("refused")
        raise StoreAwayError(f"{named(url, place)} refused us: {error}") from None
    except BaseException:
        connection.lose("given up")
        raise
    return connection


async def claimed(reply: asyncio.Future[Reply], unclaimed: Callable[[Reply], None] | None) -> Reply:
    """The reply; where its waiter is cancelled in the moment after it came, it goes to `unclaimed` all the same."""
    try:
        return await reply
    except asyncio.CancelledError:
        if unclaimed is not None and reply.done() and not reply.cancelled() and reply.exception() is None:
            unclaimed(reply.result())
        raise


def named(url: RedisUrl, place: Place) -> str:
    """A server of the store, for the log."""
    return url.url if url.kind == "server" else f"{place} of {url.url}"


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
