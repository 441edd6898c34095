"""One connection to the shared store. Any number of requests share it: commands go out as they are made, replies come
back in order.

1. A command is written at once (the loop puts those of one turn into one write) and its reply is found by its place.
   A waiter that was cancelled keeps its place, so that no reply ever reaches another's request. (A client that gave the
   place away mixed up its users' data in March 2023: redis/redis-py#2624.)
2. With a command unanswered for `patience` the connection is silent: every waiter gets StoreLateError, and new requests
   go elsewhere (`ready`) until all commands are answered. The places stay: a late reply goes to `unclaimed`, which
   learns what the server did. A stall does not cost the connection.
3. With a command unanswered and nothing received for DEAD, the connection is given up: the server may be gone. The
   unanswered commands may have been executed.
4. Our own delay is not the server's: before a verdict the loop reads once more (GRACE).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, NamedTuple, cast

from aiaas.authorities import UNKNOWN_AUTHORITY, AuthoritiesError, trusting
from aiaas.errors import AiaasError
from aiaas.limits.redis_url import RedisUrl, StorePlace
from aiaas.limits.resp import RedisReplyError, Replies, Reply, RespError, command

# Seconds. A store in another zone answers in 1 to 60 ms; only the first requests of an outage wait this long.
STORE_PATIENCE: Final = 0.25
# Between the two looks at a late command; meanwhile the loop reads what has arrived.
GRACE: Final = 0.005
# With nothing received for DEAD, reconnect. Longer than most stalls of a living server.
DEAD: Final = 2.0
# To begin a connection, name resolution and TLS included. Requests do not wait for it.
STORE_CONNECT_TIMEOUT: Final = 2.0


class StoreAwayError(AiaasError):
    """The shared store cannot be reached now. The message says why, for the log."""


class StoreLateError(StoreAwayError):
    """The store did not answer in time. A later reply goes to the command's `unclaimed`."""


class StoreTlsError(AiaasError):
    """A file that a `rediss://` address names cannot be used; the message says which and why."""


class _Waiting(NamedTuple):
    reply: asyncio.Future[Reply]
    unclaimed: Callable[[Reply], None] | None
    patient: bool
    since: float


class StoreConnection(asyncio.Protocol):
    """A connection that `connect` made. `lost` is done when it has ended, with the reason.

    patience   seconds; may be changed
    on_change  called when the connection falls silent and when it recovers
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
        """Whether the server answers, as far as known."""
        return not self._silent and not self.lost.done()

    @property
    def silence(self) -> str:
        """Why the connection is not ready, for the log."""
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

        unclaimed  gets the reply where the future was cancelled, or raised StoreLateError
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
        """Wait up to `patience` for open commands, then end the connection."""
        waiting = [waiting.reply for waiting in self._waiting if not waiting.reply.done()]
        if waiting and self.ready:
            await asyncio.wait(waiting, timeout=self.patience)
        self.lose("closed")

    def lose(self, reason: str) -> None:
        """End the connection now; every waiter gets StoreAwayError."""
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
            raise RespError("the server sent a reply to no command")
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
        """Fail all waiters, the latest included: their wait would be in vain."""
        was_silent, self._silent = self._silent, True
        for waiting in self._waiting:
            if not waiting.patient and not waiting.reply.done():
                waiting.reply.set_exception(StoreLateError(self.silence))
        if not was_silent:
            self.on_change()


async def connect(
    url: RedisUrl,
    place: StorePlace,
    tls: ssl.SSLContext | None,
    patience: float = STORE_PATIENCE,
    *,
    sentinel: bool = False,
) -> StoreConnection:
    """Connect, log in and choose the database. Raises StoreAwayError, whose text contains no secret.

    sentinel  whether a sentinel listens at `place`: it has users of its own, and no database
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(STORE_CONNECT_TIMEOUT):
            _, connection = await loop.create_connection(
                lambda: StoreConnection(loop, patience),
                place.host,
                place.port,
                ssl=tls,
                server_hostname=place.host if tls else None,
            )
    except TimeoutError:
        raise StoreAwayError(
            f"{named(url, place)} did not accept a connection within {STORE_CONNECT_TIMEOUT:g} s"
        ) from None
    except ssl.SSLCertVerificationError as error:
        fix = "; name a file with its authority: ?ssl_ca_certs=FILE" if error.verify_code in UNKNOWN_AUTHORITY else ""
        fault = f"the certificate of {named(url, place)} does not verify: {error.verify_message}{fix}"
        raise StoreAwayError(fault) from error
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
        raise StoreAwayError(f"{named(url, place)} refused the connection: {error}") from None
    except BaseException:
        connection.lose("given up")
        raise
    return connection


async def claimed(reply: asyncio.Future[Reply], unclaimed: Callable[[Reply], None] | None) -> Reply:
    """Wait for the reply; if the waiter is cancelled just after the reply came, pass the reply to `unclaimed`."""
    try:
        return await reply
    except asyncio.CancelledError:
        if unclaimed is not None and reply.done() and not reply.cancelled() and reply.exception() is None:
            unclaimed(reply.result())
        raise


def named(url: RedisUrl, place: StorePlace) -> str:
    """The name of a server of the store, for the log."""
    return url.url if url.kind == "server" else f"{place} of {url.url}"


def tls_context(url: RedisUrl) -> ssl.SSLContext | None:
    """The TLS context of a `rediss://` address; None for an address without TLS. Raises StoreTlsError."""
    if not url.tls:
        return None
    try:
        context = trusting(url.ca_file)
    except AuthoritiesError as error:
        raise StoreTlsError(str(error)) from error
    if url.cert_file is not None:
        try:
            context.load_cert_chain(url.cert_file, url.key_file)
        except OSError as error:
            files = f"{url.cert_file} and {url.key_file}"
            raise StoreTlsError(f"{files} are not a certificate and its key: {error.strerror or error}") from error
    return context
