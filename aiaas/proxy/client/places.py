"""The open connections, and the memory that they and their requests take: one budget for the process.

A flood of connections must not fill the pod's memory, and must not keep others out either: a gateway that does not
answer its liveness probe is killed as well. So accept a new connection, and close the one that is missed least:

1. **Strangers**, which have not shown a valid key yet: the oldest first. Silent clients, handshakes and heads that
   never end are all strangers. So is a probe, but it has its answer after some milliseconds, long before the clients
   that came after it have taken all the places.
2. **Members**, which have shown a valid key, while they are idle: the longest idle first. Its client connects again.

A connection whose request is being answered is never closed. Members leave some places free (`reserved`), so that there
is always room for strangers; a request that would make one member too many gets 503.

The budget counts measured sizes (`aiaas.config.memory`): each connection from its accept to its end, with its TLS
state; the bytes of incomplete heads; the bytes of bodies. When it is spent, connections are closed in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from aiaas.config.memory import connection_memory, memory_budget
from aiaas.errors import UpstreamError
from aiaas.plan.model import ServerPlan

# This part of the places is kept for strangers, and at least this number: a kubelet, a balancer, a person with curl.
RESERVED_PART: Final = 16
RESERVED_LEAST: Final = 8
# aiohttp keeps the lines, the names, the values and a mapping of them: 76 KiB for a head of 31 KiB, measured.
HEAD_FACTOR: Final = 3
# Under TLS a read of n bytes leaves up to n in the transport's buffer and 4/3 n in OpenSSL's until the connection ends,
# and as much in holes of the heap: 270 KiB for reads of 64 KiB, measured.
TLS_READ_FACTOR: Final = 5
# Retry-After, in seconds, for a client that was refused for lack of memory: an upload takes about as long.
RETRY_AFTER: Final = 2


class Occupant(Protocol):
    """The connection at a place, once it speaks HTTP (`connection.ClientConnection`)."""

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request."""

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is read from it."""

    @property
    def last_used(self) -> float:
        """Grows with the time at which its last answer ended."""


class Guest:
    """One connection's place, from accept to end.

    address      the client's, where connections are counted by address
    is_stranger  it has not shown a valid key yet
    held         bytes of the budget that it takes; `head` of them are an incomplete head
    occupant     None until it speaks HTTP
    end          ends the connection at once
    """

    __slots__ = ("_places", "address", "end", "gone", "head", "held", "is_stranger", "occupant")

    def __init__(self, places: Places, address: str | None, end: Callable[[], object]) -> None:
        self._places = places
        self.address = address
        self.is_stranger = True
        self.held = 0
        self.head = 0
        self.gone = False
        self.occupant: Occupant | None = None
        self.end = end

    def hold(self, size: int) -> bool:
        """Take `size` bytes more. False if the budget is spent, even after closing other connections."""
        if self.gone or not self._places.hold(size, self):
            return False
        self.held += size
        return True

    def hold_head(self, size: int) -> bool:
        """Count an incomplete head of which `size` bytes have arrived. As `hold`."""
        if not self.hold(size * HEAD_FACTOR - self.head):
            return False
        self.head = size * HEAD_FACTOR
        return True

    def drop_head(self) -> None:
        """The head is complete or refused."""
        if not self.gone:
            self._places.give_back(self.head)
            self.held -= self.head
        self.head = 0

    def leave(self) -> None:
        """The connection has ended. Calling `leave` again changes nothing."""
        self._places.leave(self)

    @property
    def may_end(self) -> bool:
        """Whether it can be ended without breaking an answer."""
        if self.occupant is None:
            return True
        return self.occupant.is_idle or (self.is_stranger and self.occupant.is_ending)


class Places:
    """All client connections, and the memory that they hold.

    descriptors  the most connections that the process has file descriptors for
    accepted     connections that got a place so far
    held         bytes of the budget that are taken, by connections and by bodies
    """

    def __init__(self, server: ServerPlan, turned_away: Callable[[str], None]) -> None:
        self._turned_away = turned_away
        self._strangers: dict[Guest, None] = {}  # in the order in which they came
        self._members: dict[Guest, None] = {}
        self._by_address: dict[str, int] = {}
        self.descriptors: int | None = None
        self.accepted = 0
        self.held = 0
        self.follow(server)

    def __repr__(self) -> str:
        return f"<Places {len(self)} of {self.most}, {self.held} of {self.most_bytes} bytes>"

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._strangers) + len(self._members)

    def follow(self, server: ServerPlan) -> None:
        """Keep to these bounds from now on; open connections stay."""
        self._server = server
        self.most = server.max_connections
        if self.descriptors is not None:
            self.most = min(self.most, self.descriptors)
        self.reserved = min(max(self.most // RESERVED_PART, RESERVED_LEAST), self.most - 1)
        self.per_address = server.max_connections_per_address
        self.cost = connection_memory(tls=server.tls is not None)
        self.most_bytes = memory_budget(server.max_body_size, server.max_connections, tls=server.tls is not None)

    def bound_by(self, descriptors: int) -> None:
        """There are file descriptors for this many connections."""
        self.descriptors = max(descriptors, 2)
        self.follow(self._server)

    # -- connections ----------------------------------------------------------------------------------------------

    def enter(self, address: str | None, end: Callable[[], object]) -> Guest | None:
        """A place for a new connection, which `end` closes; None if it has to be refused."""
        if (
            address is not None
            and self.per_address is not None
            and self._by_address.get(address, 0) >= self.per_address
        ):
            self._turned_away("address")
            return None
        guest = Guest(self, address, end)
        while len(self) >= self.most:
            if not self.evict():
                self._turned_away("full")
                return None
        if not guest.hold(self.cost):
            self._turned_away("full")
            return None
        self._strangers[guest] = None
        self.accepted += 1
        if address is not None:
            self._by_address[address] = self._by_address.get(address, 0) + 1
        return guest

    def leave(self, guest: Guest) -> None:
        """As `Guest.leave`."""
        if guest.gone:
            return
        guest.gone = True
        guest.occupant = None  # no cycle of references: TLS buffers must not wait for the collector
        guest.end = _nothing
        self._strangers.pop(guest, None)
        self._members.pop(guest, None)
        self.give_back(guest.held)
        if guest.address is not None:
            left = self._by_address.get(guest.address, 0) - 1
            if left > 0:
                self._by_address[guest.address] = left
            else:
                self._by_address.pop(guest.address, None)

    def welcome(self, guest: Guest) -> None:
        """Make a guest with a valid key a member. Raises UpstreamError 503 if all members' places are taken."""
        if len(self._members) >= self.most - self.reserved and not self._evict(self._idlest()):
            raise overloaded("Too many connections are in use at once; try again shortly.")
        if self._strangers.pop(guest, guest) is None:
            self._members[guest] = None
            guest.is_stranger = False

    def evict(self) -> bool:
        """Close the connection that is missed least. False if none may be closed."""
        return self._evict(self._least_missed())

    # -- memory ---------------------------------------------------------------------------------------------------

    def hold(self, size: int, guest: Guest | None = None) -> bool:
        """Take `size` bytes of the budget, for `guest` or for a body. False if the budget is spent."""
        while self.held + size > self.most_bytes:
            other = self._least_missed()
            if other is guest or not self._evict(other):
                return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        """`size` bytes are free again."""
        self.held -= size

    # -- whom to close first --------------------------------------------------------------------------------------

    def _least_missed(self) -> Guest | None:
        for guest in self._strangers:
            if guest.may_end:
                return guest
        return self._idlest()

    def _idlest(self) -> Guest | None:
        """Looks at all members, and only if there is no stranger to close, so a flood does not make it run."""
        idle = [guest for guest in self._members if guest.may_end]
        return min(idle, key=_last_used, default=None)

    def _evict(self, guest: Guest | None) -> bool:
        if guest is None:
            return False
        self._turned_away("evicted")
        end = guest.end
        self.leave(guest)  # first: its memory and its place are free as from now
        end()
        return True


def overloaded(message: str) -> UpstreamError:
    """503 for a request that finds no free place or memory."""
    return UpstreamError(503, "overloaded", message, headers=(("retry-after", str(RETRY_AFTER)),))


def _nothing() -> None:
    pass


def _last_used(guest: Guest) -> float:
    return 0.0 if guest.occupant is None else guest.occupant.last_used
