"""The limiter's state in Redis or Valkey, shared by all gateways: one round trip an admission, one a settlement.

Nobody waits for a settlement: it is written and its answer checked when it comes. So a request's end never suspends,
also while it is being cancelled, and the next admission on this connection stands behind it.

`run` is the one task behind it: it connects, connects again, and renews the leases of slots. While there is no
connection every admission raises StoreAwayError at once; what happens then is `fallback.py`'s.

What an outage does:
1. A lease that nobody renews ends after LEASE: slots of a gateway that was killed are free again LEASE later at the
   latest. Those of one that lives are put back by the first renewal, also into a server that came back empty.
2. A settlement that cannot be sent waits, LATE_LIMIT of them at most, and is delivered before the first admission
   after the outage. Beyond that, and where one was sent and never answered, it is lost: it may have been done, and
   doing it twice would give tokens away. What stays is the reservation. `settlements_lost` counts them.
3. An admission that was sent and not answered may have been done: it costs that key one request, its tokens until they
   are worked off, and its slot until the lease ends.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Final

from aiaas.limits.connection import PATIENCE, Connection, StoreAwayError, connect
from aiaas.limits.gcra import decide
from aiaas.limits.model import Admission, Lease, Limits
from aiaas.limits.redis_url import RedisUrl
from aiaas.limits.resp import RedisReplyError, Reply
from aiaas.limits.script import (
    LOOK,
    SCRIPT,
    Argument,
    Standing,
    admit_arguments,
    keys_of,
    renew_arguments,
    settle_arguments,
    standing,
)
from aiaas.limits.state import refused, windows_at

# Seconds that a slot outlives its gateway. Three renewals fit, so that one may be late.
LEASE: Final = 15.0
# The first wait before connecting again, and the longest; it doubles while connections do not last for STEADY.
RETRY_FIRST: Final = 0.25
RETRY_LONGEST: Final = 2.0
STEADY: Final = 10.0
# Settlements kept during an outage: some megabytes.
LATE_LIMIT: Final = 10_000
# What is written at once where much is to be said: the server answers it in a few milliseconds.
BATCH: Final = 100

_PROBE: Final = "aiaas:probe"


class RedisStore:
    """`aiaas.limits.model.Store` in a Redis or Valkey. It goes by the server's clock.

    tls        for a `rediss://` address (`connection.tls_context`)
    on_change  called with (up, reason) when the store is there, or not any more
    lease      seconds that a slot lives without being renewed
    patience   seconds after which an unanswered command means that the store is away

    failures          calls that failed because the store was not there, or refused
    settlements_lost  settlements that were not made, or of which that is not known
    tried             set after the first attempt to connect
    """

    def __init__(
        self,
        url: RedisUrl,
        tls: ssl.SSLContext | None = None,
        on_change: Callable[[bool, str], None] = lambda _up, _reason: None,
        *,
        lease: float = LEASE,
        patience: float = PATIENCE,
        script: str = SCRIPT,
    ) -> None:
        self._url = url
        self._tls = tls
        self._on_change = on_change
        self._lease = lease
        self._patience = patience
        self._script = script
        self._digest = b""
        self._connection: Connection | None = None
        self._said: bool | None = None
        self._id_prefix = os.urandom(8).hex()
        self._numbers = count(1)
        self._held: dict[str, set[str]] = {}  # API key -> the leases of its slots
        self._late: list[tuple[str, Sequence[Argument]]] = []
        self.failures = 0
        self.settlements_lost = 0
        self.tried = asyncio.Event()

    def __repr__(self) -> str:
        return f"RedisStore({self._url.url}, {'up' if self.up else 'away'})"

    @property
    def up(self) -> bool:
        """Whether it can be asked."""
        return self._connection is not None and not self._connection.lost.done()

    # -- Store ----------------------------------------------------------------------------------------------------

    async def admit(self, key: str, limits: Limits, tokens: int, now: float, wall: float) -> Admission:  # noqa: ARG002
        """As in `Store.admit`. Raises StoreAwayError."""
        lease_id = f"{self._id_prefix}{next(self._numbers):x}"
        found = await self._ask(
            key,
            admit_arguments(limits, tokens, lease_id, self._lease),
            partial(self._give_back, key, limits, tokens, lease_id),
        )
        state = found.state
        if not found.allowed:
            return refused(state, limits, tokens, found.now, found.wall, windows_at(found.wall))
        requests = minute = None
        if limits.requests is not None:
            requests = decide(state.requests, limits.requests, 1, found.now)[0]
        if limits.tokens is not None:
            minute = decide(state.tokens, limits.tokens, tokens, found.now)[0]
        slot = limits.concurrent is not None
        if slot:
            self._held.setdefault(key, set()).add(lease_id)
        return Admission(None, requests, minute, None, Lease(key, limits, tokens, now, slot, found.wall, lease_id))

    async def look(self, key: str, limits: Limits, now: float) -> Admission:  # noqa: ARG002
        """As in `Store.look`. Raises StoreAwayError."""
        found = await self._ask(key, LOOK, None)
        state = found.state
        requests = None if limits.requests is None else decide(state.requests, limits.requests, 0, found.now)[0]
        tokens = None if limits.tokens is None else decide(state.tokens, limits.tokens, 0, found.now)[0]
        return Admission(None, requests, tokens, None, None)

    async def settle(
        self,
        lease: Lease,
        used_tokens: int,
        now: float,  # noqa: ARG002
        wall: float,  # noqa: ARG002
        *,
        ran: bool = True,
    ) -> None:
        """As in `Store.settle`. Never suspends, and never fails: see this module's opening."""
        held = self._held.get(lease.key)
        if held is not None:
            held.discard(lease.id)
            if not held:
                del self._held[lease.key]
        arguments = settle_arguments(lease, used_tokens, ran)
        if arguments is not None:
            self._settle(lease.key, arguments)

    async def close(self) -> None:
        """Wait shortly for settlements under way, and end the connection. `run` has ended before."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _ask(
        self, key: str, arguments: Sequence[Argument], unclaimed: Callable[[Reply], None] | None
    ) -> Standing:
        try:
            connection = self._connected()
            try:
                reply = await _claimed(self._evaluate(connection, key, arguments, unclaimed), unclaimed)
            except RedisReplyError as error:
                if error.code != "NOSCRIPT":
                    raise
                # The server forgot the script (SCRIPT FLUSH, a failover behind one address): EVAL teaches it anew.
                reply = await _claimed(self._evaluate(connection, key, arguments, unclaimed, teach=True), unclaimed)
            assert isinstance(reply, bytes)
            return standing(reply)
        except RedisReplyError as error:
            self.failures += 1
            connection.lose(f"it answered {error}")
            raise StoreAwayError(str(error)) from error
        except StoreAwayError:
            self.failures += 1
            raise

    def _connected(self) -> Connection:
        if self._connection is None:
            raise StoreAwayError("not connected")
        return self._connection

    def _evaluate(
        self,
        connection: Connection,
        key: str,
        arguments: Sequence[Argument],
        unclaimed: Callable[[Reply], None] | None = None,
        *,
        teach: bool = False,
    ) -> asyncio.Future[Reply]:
        call, script = ("EVAL", self._script) if teach else ("EVALSHA", self._digest)
        return connection.call(call, script, 2, *keys_of(key), *arguments, unclaimed=unclaimed)

    def _give_back(self, key: str, limits: Limits, tokens: int, lease_id: str, reply: Reply) -> None:
        """The request was cancelled while its admission was under way."""
        if isinstance(reply, bytes) and (found := standing(reply)).allowed:
            lease = Lease(key, limits, tokens, 0.0, limits.concurrent is not None, found.wall, lease_id)
            arguments = settle_arguments(lease, 0, ran=False)
            assert arguments is not None
            self._settle(key, arguments)

    # -- settling -------------------------------------------------------------------------------------------------

    def _settle(self, key: str, arguments: Sequence[Argument], *, teach: bool = False) -> None:
        try:
            sent = self._evaluate(self._connected(), key, arguments, teach=teach)
        except StoreAwayError:
            if len(self._late) < LATE_LIMIT:
                self._late.append((key, arguments))
            else:
                self.settlements_lost += 1
        else:
            sent.add_done_callback(partial(self._settled, key, arguments))

    def _settled(self, key: str, arguments: Sequence[Argument], sent: asyncio.Future[Reply]) -> None:
        error = sent.exception()
        if isinstance(error, RedisReplyError) and error.code == "NOSCRIPT":
            self._settle(key, arguments, teach=True)
        elif error is not None:
            self.failures += 1
            self.settlements_lost += 1

    # -- being there ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, keep the leases, connect again; until cancelled."""
        loop = asyncio.get_running_loop()
        wait = RETRY_FIRST
        while True:
            try:
                self._connection = connection = await self._connect()
            except StoreAwayError as error:
                self._say(False, str(error))
            else:
                began = loop.time()
                self._say(True, "")
                reason = await self._keep(connection)
                self._connection = None
                self._say(False, reason)
                if loop.time() - began > STEADY:
                    wait = RETRY_FIRST
            await asyncio.sleep(wait)
            wait = min(2 * wait, RETRY_LONGEST)

    async def _connect(self) -> Connection:
        """A connection to a server that can be written to, knows the script, and has what was kept for it."""
        connection = await connect(self._url, self._tls, self._patience)
        try:
            self._digest = await self._teach(connection)
            # Not only a sign of life: a replica, a full server and a node of a cluster refuse it.
            await connection.call("SET", _PROBE, 1, "PX", 1000)
            await self._renew(connection)
            await self._deliver_late(connection)
        except RedisReplyError as error:
            connection.lose("refused")
            raise StoreAwayError(f"{self._url.url} cannot be used: {error}") from None
        except BaseException:
            connection.lose("given up")
            raise
        return connection

    async def _keep(self, connection: Connection) -> str:
        """Renew leases, or ask for a sign of life, until the connection is lost; the reason."""
        while True:
            await asyncio.wait([connection.lost], timeout=self._lease / 3)
            if connection.lost.done():
                return connection.lost.result()
            try:
                await self._teach(connection)  # a sign of life, and of use after SCRIPT FLUSH
                await self._renew(connection)
            except StoreAwayError:
                continue
            except RedisReplyError as error:
                connection.lose(f"it answered {error}")

    async def _teach(self, connection: Connection) -> bytes:
        """Have the server know the script; its digest."""
        digest = await connection.call("SCRIPT", "LOAD", self._script)
        assert isinstance(digest, bytes)
        return digest

    async def _deliver_late(self, connection: Connection) -> None:
        while self._late:
            batch = self._late[:BATCH]
            del self._late[:BATCH]  # sent once, never again
            try:
                await self._all(connection, batch)
            except StoreAwayError:
                self.settlements_lost += len(batch)
                raise

    async def _renew(self, connection: Connection) -> None:
        """All leases, in batches. One that was settled meanwhile is not among them: both go by this connection."""
        keys = list(self._held)
        for start in range(0, len(keys), BATCH):
            some = [(key, self._held.get(key)) for key in keys[start : start + BATCH]]
            await self._all(connection, [(key, renew_arguments(ids, self._lease)) for key, ids in some if ids])

    async def _all(self, connection: Connection, calls: Sequence[tuple[str, Sequence[Argument]]]) -> None:
        sent = [self._evaluate(connection, key, arguments) for key, arguments in calls]
        for reply in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(reply, BaseException):
                raise reply

    def _say(self, up: bool, reason: str) -> None:
        self.tried.set()
        if self._said is not up:
            self._said = up
            self._on_change(up, reason)


async def _claimed(reply: asyncio.Future[Reply], unclaimed: Callable[[Reply], None] | None) -> Reply:
    """The reply; where its waiter is cancelled in the moment after it came, it goes to `unclaimed` all the same."""
    try:
        return await reply
    except asyncio.CancelledError:
        if unclaimed is not None and reply.done() and not reply.cancelled() and reply.exception() is None:
            unclaimed(reply.result())
        raise
