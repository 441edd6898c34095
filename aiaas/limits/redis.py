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
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Final

from aiaas.limits.asked import AdmissionLateError, Asked
from aiaas.limits.connection import STORE_PATIENCE, StoreAwayError, StoreConnection, StoreLateError, claimed
from aiaas.limits.gcra import decide
from aiaas.limits.model import AdmissionResult, Lease, Limits
from aiaas.limits.node import StoreNode
from aiaas.limits.redis_url import RedisUrl
from aiaas.limits.resp import RedisReplyError, Reply
from aiaas.limits.script import (
    LOOK_CALL,
    MEMBERS,
    SCRIPT,
    Argument,
    Standing,
    admit_arguments,
    keys_of,
    renew_arguments,
    settle_arguments,
    slots_key_of,
    standing,
)
from aiaas.limits.servers import Servers
from aiaas.limits.share import KnownState
from aiaas.limits.state import State, refused, windows_at
from aiaas.limits.topology import redirect_of

# Seconds that a slot outlives its gateway. Three renewals fit, so that one may be late.
LEASE: Final = 15.0
# Leases are renewed with each BEATS-th beat, which is a third of LEASE; the gateways are counted with each.
BEATS: Final = 5
# Settlements kept during an outage: some megabytes.
LATE_LIMIT: Final = 10_000
# Keys whose last known state is kept: some megabytes.
KNOWN_LIMIT: Final = 10_000
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
        self._held: dict[str, set[str]] = {}  # API key -> the leases of its slots
        self._known: OrderedDict[str, KnownState] = OrderedDict()  # least recently asked first
        self._late: list[tuple[str, bool, Sequence[Argument]]] = []
        self._servers = Servers(url, tls, self, patience, lease / 3 / BEATS)
        self.processes: int | None = None
        self.failures = 0
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

    async def admit(self, key: str, limits: Limits, tokens: int, now: float, wall: float) -> AdmissionResult:  # noqa: ARG002
        """As in `Store.admit`. Raises StoreAwayError; AdmissionLateError if the store may have admitted it."""
        lease_id = f"{self._id_prefix}{next(self._numbers):x}"
        asked = Asked(self, key, limits, tokens, lease_id)
        slot = limits.concurrent is not None
        try:
            found = await self._ask(key, slot, admit_arguments(limits, tokens, lease_id, self._lease), asked)
        except StoreLateError as error:
            raise AdmissionLateError(str(error), asked) from error
        state = found.state
        if not found.allowed:
            self._remember(key, KnownState(found, now))
            return refused(state, limits, tokens, found.now, found.wall, windows_at(found.wall))
        self._remember(key, KnownState(found, now, int(not limits.cheap), tokens, int(slot), int(limits.cheap)))
        lease = self.granted(key, limits, tokens, found, lease_id)
        return _seen(state, limits, 1, tokens, found.now, lease)

    async def look(self, key: str, limits: Limits, now: float) -> AdmissionResult:  # noqa: ARG002
        """As in `Store.look`. Raises StoreAwayError."""
        found = await self._ask(key, False, LOOK_CALL, None)
        return _seen(found.state, limits, 0, 0, found.now, None)

    def settle(self, lease: Lease, used_tokens: int, now: float, wall: float, *, ran: bool = True) -> None:  # noqa: ARG002
        """As in `Store.settle`. Never fails: see this module's opening."""
        self.settle_now(lease, used_tokens, ran)

    def settle_now(self, lease: Lease, used_tokens: int, ran: bool) -> None:
        """The same."""
        held = self._held.get(lease.key)
        if held is not None:
            held.discard(lease.id)
            if not held:
                del self._held[lease.key]
        known = self._known.get(lease.key)
        if known is not None:
            known.requests -= not (ran or lease.limits.cheap)
            known.cheap -= not ran and lease.limits.cheap
            known.tokens += used_tokens - lease.reserved_tokens
            known.slots -= lease.slot
        arguments = settle_arguments(lease, used_tokens, ran)
        if arguments is not None:
            self._settle(lease.key, lease.slot, arguments)

    async def close(self) -> None:
        """Deregister this gateway, wait briefly for open settlements, and end the connections. `run` has ended."""
        arguments = settle_arguments(Lease(MEMBERS, Limits(), 0, True, 0.0, self._id_prefix), 0, ran=True)
        if self._servers.up and arguments is not None:
            self._settle(MEMBERS, True, arguments)
        await self._servers.close()

    # -- what is known without asking -----------------------------------------------------------------------------

    def last_known(self, key: str, *, keep: bool = False) -> KnownState | None:
        """Take a key's last known state, or `keep` it; None until the store has answered again."""
        return self._known.get(key) if keep else self._known.pop(key, None)

    def held_by(self, key: str) -> int:
        """How many slots of a key this process's requests hold."""
        held = self._held.get(key)
        return 0 if held is None else len(held)

    def granted(self, key: str, limits: Limits, tokens: int, found: Standing, lease_id: str) -> Lease:
        """The lease of what the store admitted; a slot of it is renewed from now on."""
        slot = limits.concurrent is not None
        if slot:
            self._held.setdefault(key, set()).add(lease_id)
        return Lease(key, limits, tokens, slot, found.wall, lease_id)

    def _remember(self, key: str, known: KnownState) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        if len(self._known) > KNOWN_LIMIT:
            self._known.popitem(last=False)

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _ask(self, key: str, slots: bool, arguments: Sequence[Argument], asked: Asked | None) -> Standing:
        connection: StoreConnection | None = None
        keys = keys_of(key, slots=slots)
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
        slots: bool,
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
            keys = keys_of(key, slots=slots)
            sent = self._evaluate(connection, keys, arguments, once=once, teach=teach, patient=True)
        except StoreAwayError:
            self._keep_for_later(key, slots, arguments)
            return None
        sent.add_done_callback(partial(self._settled, key, slots, arguments, once, left - 1))
        return sent

    def _settled(
        self, key: str, slots: bool, arguments: Sequence[Argument], once: bool, left: int, sent: asyncio.Future[Reply]
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
            self._settle(key, slots, arguments, node.connection, once=once, teach=teach, left=left)
        else:
            self.failures += 1
            self._keep_for_later(key, slots, arguments)

    def _keep_for_later(self, key: str, slots: bool, arguments: Sequence[Argument]) -> None:
        if len(self._late) < LATE_LIMIT:
            self._late.append((key, slots, arguments))
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
        await connection.call("SCRIPT", "LOAD", self._script)
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
        keys = [key for key in self._held if self._servers.has(node, key)]
        for start in range(0, len(keys), BATCH):
            some = [(key, self._held.get(key)) for key in keys[start : start + BATCH]]
            calls = [(slots_key_of(key), renew_arguments(ids, self._lease)) for key, ids in some if ids]
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


def _seen(state: State, limits: Limits, requests: int, tokens: int, now: float, lease: Lease | None) -> AdmissionResult:
    """The result of an admission."""
    decided = minute = None
    if limits.requests is not None:
        decided = decide(state.cheap if limits.cheap else state.requests, limits.requests, requests, now)[0]
    if limits.tokens is not None:
        minute = decide(state.tokens, limits.tokens, tokens, now)[0]
    return AdmissionResult(None, decided, minute, None, lease)
