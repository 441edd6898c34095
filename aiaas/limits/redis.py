"""The limiter's state in Redis or Valkey, shared by all gateways: one round trip an admission, one a settlement.

Requests do not wait for a settlement: it is written, and its answer checked when it comes. So a request's end never
suspends, also while it is being cancelled, and the next admission on this connection stands behind it.

`run` is the one task behind it: it keeps the connections (`servers.py`), renews the leases of slots, and counts the
gateways. While a key's server is away its admissions raise StoreAwayError at once; `fallback.py` decides on them.

Effects of an outage:
1. A lease without renewal ends after LEASE, so the slots of a killed gateway are free again LEASE later at the latest.
   The first renewal of a living gateway puts its slots back, also into a server that came back empty.
2. A settlement that cannot be sent waits, LATE_LIMIT of them at most, and is delivered before the first admission
   after the outage. Further settlements are lost, and so is one whose connection broke before the answer: it may have
   been done, and doing it twice would give tokens away. The reservation stays. `settlements_lost` counts.
3. An admission that is answered too late is settled when the answer comes, as its request ended (`Asked`). Where the
   answer never comes, the admission may have been done: it costs that key one request, its tokens until they are
   worked off, and its slot until the lease ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from time import perf_counter
from typing import Final

from aiaas.limits.asked import AdmissionLateError, Asked
from aiaas.limits.connection import STORE_PATIENCE, StoreAwayError, StoreConnection, StoreLateError, claimed
from aiaas.limits.known import LastKnown
from aiaas.limits.model import AdmissionResult, Lease, Limits
from aiaas.limits.node import StoreNode
from aiaas.limits.redis_url import RedisUrl
from aiaas.limits.resp import RedisReplyError, Reply
from aiaas.limits.script import (
    LOOK_CALL,
    MEMBERS,
    SCRIPT,
    Argument,
    admit_arguments,
    admit_keys,
    look_keys,
    renew_arguments,
    settle_arguments,
    settle_keys,
    slots_key_of,
)
from aiaas.limits.servers import Servers
from aiaas.limits.share import KnownState
from aiaas.limits.standing import Standing, admission_of, refusal_of, standing
from aiaas.limits.topology import redirect_of

# Seconds that a slot outlives its gateway. Three renewals fit, so that one may be late.
LEASE: Final = 15.0
# Leases are renewed with each BEATS-th beat, which is a third of LEASE; the gateways are counted with each.
BEATS: Final = 5
# Settlements kept during an outage: some megabytes.
LATE_LIMIT: Final = 10_000
# Commands written at once: the server answers them in a few milliseconds.
BATCH: Final = 100
# How often a command is sent: again where the map has changed, perhaps twice, and again for a slot that is moving.
SENT_AT_MOST: Final = 5

# Errors about one key and moment, not about the server: the next beat tries again.
_PASSING: Final = frozenset({"TRYAGAIN", "MOVED", "ASK", "NOSCRIPT"})
# Errors after which the server is known to have done nothing.
_NOT_DONE: Final = _PASSING | {"CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN", "OOM", "MISCONF"}


class RedisStore:
    """`aiaas.limits.model.Store` in Redis or Valkey, by the server's clock.

    tls        for a `rediss://` address (`connection.tls_context`)
    on_change  called with (up, reason) when the store becomes reachable or unreachable
    lease      seconds that a slot lives without being renewed
    patience   seconds after which an unanswered command means that the store is away

    processes         how many gateway processes share the store; None until the first count
    failures          calls and attempts to connect that failed
    on_answer         called at each beat with the seconds in which a server answered
    settlements_lost  settlements that were not made, or may not have been made
    tried             set after the first attempt to connect
    """

    def __init__(
        self,
        url: RedisUrl,
        tls: ssl.SSLContext | None = None,
        on_change: Callable[[bool, str], None] = lambda _up, _reason: None,
        *,
        lease: float = LEASE,
        patience: float = STORE_PATIENCE,
        script: str = SCRIPT,
    ) -> None:
        self._url = url
        self._on_change = on_change
        self._lease = lease
        self._script = script
        self._digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._said: bool | None = None
        self._id_prefix = os.urandom(8).hex()
        self._numbers = count(1)
        self._keys: LastKnown[str] = LastKnown()
        self._users: LastKnown[tuple[str, str]] = LastKnown()  # (key, user)
        self._late: list[tuple[str, Sequence[str], Sequence[Argument]]] = []
        self._servers = Servers(url, tls, self, patience, lease / 3 / BEATS)
        self.processes: int | None = None
        self.failures = 0
        self.on_answer: Callable[[float], object] = lambda _seconds: None
        self.settlements_lost = 0
        self.tried = asyncio.Event()

    def __repr__(self) -> str:
        return f"RedisStore({self._url.url}, {'up' if self.up else 'away'})"

    @property
    def up(self) -> bool:
        """Whether all servers are reachable."""
        return self._servers.up

    def follow(self, patience: float) -> None:
        """Use this patience from now on."""
        self._servers.follow(patience)

    # -- Store ----------------------------------------------------------------------------------------------------

    async def admit(
        self,
        key: str,
        limits: Limits,
        tokens: int,
        now: float,
        wall: float,  # noqa: ARG002
        user: str = "",
    ) -> AdmissionResult:
        """As in `Store.admit`. Raises StoreAwayError; AdmissionLateError if the store may have admitted it."""
        lease_id = f"{self._id_prefix}{next(self._numbers):x}"
        asked = Asked(self, key, limits, tokens, lease_id, user)
        arguments = admit_arguments(limits, tokens, lease_id, self._lease, user)
        try:
            found = await self._ask(key, admit_keys(key, limits, user), arguments, asked)
        except StoreLateError as error:
            raise AdmissionLateError(str(error), asked) from error
        self._keys.answered(key, limits, tokens, found, now)
        if limits.user is not None:
            self._users.answered((key, user), limits.user, tokens, found.of_user(), now)
        if not found.allowed:
            return refusal_of(found, limits, tokens)
        return admission_of(found, limits, 1, tokens, self.granted(key, limits, tokens, found, lease_id, user))

    async def look(self, key: str, limits: Limits, now: float, user: str = "") -> AdmissionResult:  # noqa: ARG002
        """As in `Store.look`. Raises StoreAwayError."""
        found = await self._ask(key, look_keys(key, limits, user), LOOK_CALL, None)
        return admission_of(found, limits, 0, 0, None)

    def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:  # noqa: ARG002
        """As in `Store.settle`. Never fails: see this module's opening."""
        self.settle_now(lease, used_tokens, ran)

    def settle_now(self, lease: Lease, used_tokens: int, ran: bool) -> None:
        """The same."""
        self._keys.settled(lease.key, lease.limits, lease, used_tokens, ran)
        if lease.limits.user is not None:
            self._users.settled((lease.key, lease.user), lease.limits.user, lease, used_tokens, ran)
        arguments = settle_arguments(lease, used_tokens, ran)
        if arguments is not None:
            self._settle(lease.key, settle_keys(lease), arguments)

    async def close(self) -> None:
        """Deregister this gateway, wait briefly for open settlements, and end the connections. `run` has ended."""
        lease = Lease(MEMBERS, Limits(), 0, True, 0.0, self._id_prefix)
        arguments = settle_arguments(lease, 0, ran=True)
        if self._servers.up and arguments is not None:
            self._settle(MEMBERS, settle_keys(lease), arguments)
        await self._servers.close()

    # -- what is known without asking -----------------------------------------------------------------------------

    def last_known(self, key: str, user: str | None = None, *, keep: bool = False) -> KnownState | None:
        """Take the last known state of a key or its user, or `keep` it; None until the store has answered again."""
        return self._keys.take(key, keep=keep) if user is None else self._users.take((key, user), keep=keep)

    def held_by(self, key: str, user: str | None = None) -> int:
        """How many slots of a key or its user this process's requests hold."""
        return self._keys.held_by(key) if user is None else self._users.held_by((key, user))

    def granted(self, key: str, limits: Limits, tokens: int, found: Standing, lease_id: str, user: str = "") -> Lease:
        """The lease of what the store admitted; its slots are renewed from now on."""
        slot = limits.concurrent is not None
        if slot:
            self._keys.held.setdefault(key, set()).add(lease_id)
        if limits.user is not None and limits.user.concurrent is not None:
            self._users.held.setdefault((key, user), set()).add(lease_id)
        return Lease(key, limits, tokens, slot, found.wall, lease_id, None, user)

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _ask(self, key: str, keys: Sequence[str], arguments: Sequence[Argument], asked: Asked | None) -> Standing:
        connection: StoreConnection | None = None
        once = teach = False
        try:
            node = self._servers.of(key)
            for _ in range(SENT_AT_MOST):
                connection = node.asked()
                try:
                    sent = self._evaluate(connection, keys, arguments, asked, once=once, teach=teach)
                    reply = await claimed(sent, asked)
                    assert isinstance(reply, bytes)
                    return standing(reply)
                except RedisReplyError as error:
                    node, once, teach = self._another_way(node, error, once)
            raise StoreAwayError("the cluster redirects in circles")
        except RedisReplyError as error:
            self.failures += 1
            if error.code not in _PASSING and connection is not None:
                connection.lose(f"it answered {error}")
            raise StoreAwayError(str(error)) from error
        except StoreAwayError:
            self.failures += 1
            raise

    def _another_way(self, node: StoreNode, error: RedisReplyError, once: bool) -> tuple[StoreNode, bool, bool]:
        """(node, whether after ASKING, whether with the whole script) to try next; without one raises `error`."""
        # The server forgot the script (SCRIPT FLUSH, a failover behind one address): EVAL teaches it anew.
        if error.code == "NOSCRIPT":
            return node, once, True
        redirect = redirect_of(error, node.place)
        if redirect is None or not self._servers.is_cluster:
            raise error
        return self._servers.follow_redirect(redirect), redirect.once, False

    def _evaluate(
        self,
        connection: StoreConnection,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        asked: Asked | None = None,
        *,
        once: bool = False,
        teach: bool = False,
        patient: bool = False,
    ) -> asyncio.Future[Reply]:
        if once:
            connection.call("ASKING").cancel()  # its reply tells nothing; it keeps its place right before the script
        call, script = ("EVAL", self._script) if teach else ("EVALSHA", self._digest)
        return connection.call(call, script, len(keys), *keys, *arguments, unclaimed=asked, patient=patient)

    # -- settling -------------------------------------------------------------------------------------------------

    def _settle(
        self,
        key: str,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        connection: StoreConnection | None = None,
        *,
        once: bool = False,
        teach: bool = False,
        left: int = SENT_AT_MOST,
    ) -> asyncio.Future[Reply] | None:
        """Send a settlement, or keep it for later. On a silent connection it goes out too, behind its admission."""
        try:
            connection = connection or self._servers.of(key).connection
            if connection is None:
                raise StoreAwayError("not connected")
            sent = self._evaluate(connection, keys, arguments, once=once, teach=teach, patient=True)
        except StoreAwayError:
            self._keep_for_later(key, keys, arguments)
            return None
        sent.add_done_callback(partial(self._settled, key, keys, arguments, once, left - 1))
        return sent

    def _settled(
        self,
        key: str,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        once: bool,
        left: int,
        sent: asyncio.Future[Reply],
    ) -> None:
        """Handle the reply. Three cases of failure: unknown whether done; not done, with another way; not done."""
        error = sent.exception()
        if error is None:
            return
        if not isinstance(error, RedisReplyError) or error.code not in _NOT_DONE:
            self.failures += 1
            self.settlements_lost += 1
            return
        try:
            node, once, teach = self._another_way(self._servers.of(key), error, once)
        except (RedisReplyError, StoreAwayError):
            left = 0
        if left:
            self._settle(key, keys, arguments, node.connection, once=once, teach=teach, left=left)
        else:
            self.failures += 1
            self._keep_for_later(key, keys, arguments)

    def _keep_for_later(self, key: str, keys: Sequence[str], arguments: Sequence[Argument]) -> None:
        if len(self._late) < LATE_LIMIT:
            self._late.append((key, keys, arguments))
        else:
            self.settlements_lost += 1

    # -- being there ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, keep the leases, connect again; until cancelled."""
        await self._servers.run(self._failed)

    async def greet(self, node: StoreNode, connection: StoreConnection) -> None:
        """Check that the server can be written to, load the script, and deliver the kept settlements."""
        await connection.call("SCRIPT", "LOAD", self._script)
        # More than a sign of life: a replica, a full server and an unexpected cluster node refuse it.
        await connection.call("SET", self._servers.probe_key(node), 1, "PX", 1000)
        await self._renew(node, connection)
        await self._deliver_late(node, connection)
        await self._count_members(node, connection)

    async def beat(self, node: StoreNode, connection: StoreConnection, number: int) -> None:
        """Renew this process's leases on the server."""
        # A sign of life without a waiting request; it also helps after SCRIPT FLUSH.
        began = perf_counter()
        await connection.call("SCRIPT", "LOAD", self._script)
        self.on_answer(perf_counter() - began)
        try:
            await self._count_members(node, connection)
            if number % BEATS == 0:
                await self._renew(node, connection)
                await self._deliver_late(node, connection)
        except RedisReplyError as error:
            if error.code not in _PASSING:
                raise

    def changed(self, node: StoreNode, reason: str) -> None:  # noqa: ARG002
        """Call `on_change` where the state of the whole store changes."""
        if reason:
            self._failed(reason)
        elif self.up:
            self._say(True, "")

    def _failed(self, reason: str) -> None:
        self.failures += 1
        self._servers.look_again()
        self._say(False, reason)

    def _say(self, up: bool, reason: str) -> None:
        self.tried.set()
        if self._said is not up:
            self._said = up
            self._on_change(up, reason)

    async def _count_members(self, node: StoreNode, connection: StoreConnection) -> None:
        """Hold the lease by which gateways are counted, and take the count."""
        if self._servers.has(node, MEMBERS):
            arguments = renew_arguments([self._id_prefix], self._lease)
            number = await self._evaluate(connection, [slots_key_of(MEMBERS)], arguments)
            assert isinstance(number, int)
            self.processes = number

    async def _renew(self, node: StoreNode, connection: StoreConnection) -> None:
        """Renew all leases, in batches. A settled lease is not among them: its settlement went by this connection."""
        held = [(key, slots_key_of(key), ids) for key, ids in self._keys.held.items()]
        held += [(key, slots_key_of(key, user), ids) for (key, user), ids in self._users.held.items()]
        mine = [(slots, ids) for key, slots, ids in held if self._servers.has(node, key)]
        for start in range(0, len(mine), BATCH):
            # Settled meanwhile: the set is empty.
            calls = [(slots, renew_arguments(ids, self._lease)) for slots, ids in mine[start : start + BATCH] if ids]
            sent = [self._evaluate(connection, [slots], arguments) for slots, arguments in calls]
            for reply in await asyncio.gather(*sent, return_exceptions=True):
                if isinstance(reply, BaseException) and not (
                    isinstance(reply, RedisReplyError) and reply.code in _PASSING
                ):
                    raise reply

    async def _deliver_late(self, node: StoreNode, connection: StoreConnection) -> None:
        """Deliver the kept settlements of this server. Each is sent once, unless the server refused it."""
        kept, self._late = self._late, []
        mine = [late for late in kept if self._servers.has(node, late[0])]
        self._late += [late for late in kept if not self._servers.has(node, late[0])]
        for start in range(0, len(mine), BATCH):
            if connection.lost.done():
                self._late += mine[start:]
                return
            sent = [self._settle(*late, connection) for late in mine[start : start + BATCH]]
            await asyncio.gather(*(one for one in sent if one is not None), return_exceptions=True)
