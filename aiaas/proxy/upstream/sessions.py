"""A session's requests go where its prompt is cached (`balance: auto`).

An agent or a chat sends its whole conversation with each turn. The endpoint that had the last turn has it in its
prefix cache, and reads only what is new; any other reads all of it.

    home      by rendezvous hashing (`affinity.py`), so all gateways know it without asking each other
    seat      where the session is: its home, unless it had to leave. It is remembered: the latest MOST_SESSIONS, for
              KEPT seconds since the last turn
    unread    tokens that were sent to an endpoint and that it has not read yet, without those in its cache

There are five cases:

1. A known session stays at its seat while that is up and free, unless another endpoint would have read its prompt
   sooner: by HYSTERESIS tokens, as moving costs the cache. Then its seat moves, too.
2. A new session's first turn goes home. If its home is CROWDED, it goes to the next in its order: hashing alone often
   gives one of two endpoints a third of the sessions or less.
3. A later turn of a session that is new here goes home: another gateway has served it, or this one has restarted.
4. Where the seat is down, the session visits the next in its order, and comes back when the seat is up again.
5. With MANY_AT_ONCE requests in flight it is not a conversation but many that begin alike: further ones go where the
   fewest are in flight.

A session that is seated away from its home may be at two endpoints: another gateway, which has not seen it leave, still
serves it at home. That shows in the conversation: it holds more answers than came from here. Then the seat moves home,
where both agree. The answers are counted in few turns (`_is_served_elsewhere`), since that reads the whole body.

The tokens are estimates, made from bytes: only their differences count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from aiaas.proxy.request.visit import Visit
from aiaas.proxy.upstream.affinity import weights
from aiaas.proxy.upstream.choose import choose
from aiaas.proxy.upstream.waiter import PREFILL_RATE, Grant

if TYPE_CHECKING:
    from aiaas.proxy.upstream.endpoint import EndpointState

# Prompt tokens by which another endpoint must be cheaper: 0.7 s at 15,000 a second. With 3,000 sessions move so often
# that two gateways lose track of them.
HYSTERESIS: Final = 10_000
# The same for a first turn. Its prompt begins as others do (a system prompt, tools), so less of it is to be read.
FIRST_HYSTERESIS: Final = 20_000
# An endpoint is crowded with so many times the mean of sessions, or of requests in flight and LOADED_MORE. With 1.1
# twice as many sessions are seated away from their home.
CROWDED: Final = 1.25
LOADED_MORE: Final = 4
MANY_AT_ONCE: Final = 16  # an agent with its helpers has fewer
MOST_SESSIONS: Final = 10_000
KEPT: Final = 1800.0  # seconds
# Sessions that are dropped for a new one, at the most: after a pause all of them may be too old.
DROPPED_AT_ONCE: Final = 8


class Seat:
    """An endpoint, for sessions.

    sessions    that are seated here
    unread      tokens of streams whose first byte has not come
    read_until  when the prompts of other requests will have been read, one after the other
    """

    __slots__ = ("endpoint", "read_until", "sessions", "unread")

    def __init__(self, endpoint: EndpointState) -> None:
        self.endpoint = endpoint
        self.sessions = 0
        self.unread = 0
        self.read_until = 0.0

    def pending(self, now: float) -> float:
        """Tokens that the endpoint has yet to read."""
        rest = self.read_until - now
        return self.unread + rest * PREFILL_RATE if rest > 0.0 else self.unread


class Known(msgspec.Struct, gc=False):
    """A session. Endpoints are given by their numbers.

    seat      of the session
    last      where its last turn was: not at its seat while that is down
    tokens    of its longest prompt: a session may have several conversations, as agents have helpers
    seen      when its last turn came
    away      whether the seat is not its home
    inflight  of its requests
    turns     since the answers were counted last
    look_at   the number of turns after which they are counted again
    answers   as counted
    """

    seat: int
    last: int
    tokens: int
    seen: float
    away: bool
    inflight: int = 0
    turns: int = 0
    look_at: int = 1
    answers: int = 0


class Stay:
    """A request under way at a seat, with its grant if the endpoint has a bound."""

    __slots__ = ("_grant", "_known", "_seat", "_unread")

    def __init__(self, known: Known, seat: Seat, unread: int, grant: Grant | None) -> None:
        self._known = known
        self._seat = seat
        self._unread = unread
        self._grant = grant
        known.inflight += 1
        seat.unread += unread

    def prompt_read(self) -> None:
        """The first byte has come."""
        self._seat.unread -= self._unread
        self._unread = 0
        if self._grant is not None:
            self._grant.prompt_read()

    def settle(self, input_tokens: int, output_tokens: int | None) -> None:
        """As in Grant."""
        self._known.inflight -= 1
        self._seat.unread -= self._unread
        self._unread = 0
        if self._grant is not None:
            self._grant.settle(input_tokens, output_tokens)


class Sessions:
    """The sessions of one backend, and its endpoints as their seats."""

    __slots__ = ("_known", "_seats")

    def __init__(self) -> None:
        self._known: OrderedDict[int, Known] = OrderedDict()  # the one that was quiet for longest comes first
        self._seats: dict[int, Seat] = {}

    def __len__(self) -> int:
        return len(self._known)

    def place(self, endpoints: Sequence[EndpointState]) -> None:
        """These are the endpoints from now on. One that stays, or returns, keeps its sessions."""
        before, self._seats = self._seats, {}
        for endpoint in endpoints:
            seat = before.get(endpoint.number)
            if seat is None or seat.endpoint is not endpoint:
                seat = Seat(endpoint)
            seat.sessions = 0
            self._seats[endpoint.number] = seat
        for known in self._known.values():
            if known.seat in self._seats:
                self._seats[known.seat].sessions += 1

    def choose(
        self, tried: Sequence[EndpointState], visit: Visit | None, turn: int, tokens: int
    ) -> EndpointState | None:
        """The endpoint for an attempt, one that was not tried where there is one; None: none is free for a prompt of so
        many tokens."""
        session = None if visit is None else visit.session
        if visit is None or session is None:
            return choose([seat.endpoint for seat in self._seats.values()], tried, turn, by_load=True, tokens=tokens)
        known = self._find(session, visit)
        if (
            known is not None
            and not tried
            and known.last == known.seat
            and known.inflight < MANY_AT_ONCE
            and (not known.away or known.turns < known.look_at)
        ):  # nearly always
            seat = self._seats.get(known.seat)
            new = max(0, visit.tokens - known.tokens)
            if (
                seat is not None
                and (seat.endpoint.is_free(new) or _may_read_more(seat.endpoint, visit))
                and seat.pending(visit.now) + new <= HYSTERESIS
            ):
                visit.move = "stayed"
                return seat.endpoint
        if known is not None and known.inflight >= MANY_AT_ONCE:
            visit.move = "parallel"
            return choose([seat.endpoint for seat in self._seats.values()], tried, turn, by_load=True, tokens=tokens)
        return self._compare(session, known, tried, visit)

    def begin(self, endpoint: EndpointState, visit: Visit, grant: Grant | None) -> Stay | None:
        """An attempt begins at `endpoint`. None if the body does not contain a conversation."""
        session, seat = visit.session, self._seats.get(endpoint.number)
        if session is None or seat is None:
            return None
        number, known = endpoint.number, self._find(session, visit)
        new = visit.tokens
        if known is None:
            visit.move = "first"
            known = self._meet(session, seat, visit)
            if not visit.is_first:  # another gateway served it, mostly here
                new = 0
        elif visit.move != "parallel":
            if known.last == number:
                visit.move = "stayed"
                new = max(0, new - known.tokens)
            elif visit.move in ("load", "full", "agreed"):
                if visit.move == "agreed":
                    new = max(0, new - known.tokens)
                self._reseat(session, known, number, visit)
            known.last = number
            known.seen = visit.now
            known.turns += 1
            if visit.tokens > known.tokens:
                known.tokens = visit.tokens
            self._known.move_to_end(session)
        if grant is not None and new < grant.input_tokens:
            grant.count_cached(grant.input_tokens - new)
        if visit.stream:
            return Stay(known, seat, new, grant)
        seat.read_until = max(seat.read_until, visit.now) + new / PREFILL_RATE
        return Stay(known, seat, 0, grant)

    # -- which endpoint --------------------------------------------------------------------------------------------

    def _compare(
        self, session: int, known: Known | None, tried: Sequence[EndpointState], visit: Visit
    ) -> EndpointState | None:
        seats = [seat for seat in self._seats.values() if seat.endpoint.up]
        if not seats:
            return None
        if known is None:
            stay, cached = self._seat_of_new(session, seats, visit)
        else:
            stay, cached = self._seat_of_known(session, known, seats, visit), known.tokens
        now, tokens = visit.now, visit.tokens
        new = max(0, tokens - cached)
        unread = {seat: new if self._is_cached(seat, stay, known) else tokens for seat in seats}
        free = [seat for seat in seats if seat.endpoint.is_free(unread[seat])]
        free = [seat for seat in free if seat.endpoint not in tried] or free
        if cached and stay not in free and not tried and _may_read_more(stay.endpoint, visit):
            free.append(stay)
        if not free:
            visit.move = "full"  # should it wait, and then get a slot elsewhere
            return None
        costs = [seat.pending(now) + unread[seat] for seat in free]
        least = min(costs)
        if stay in free:
            if costs[free.index(stay)] <= (HYSTERESIS if known else FIRST_HYSTERESIS) + least:
                return stay.endpoint
            visit.move = "load"
        elif tried:
            visit.move = "retry"
        else:
            visit.move = "full"
        cheapest = [seat for seat, cost in zip(free, costs, strict=True) if cost == least]
        return min(cheapest, key=lambda seat: seat.endpoint.pool.inflight).endpoint

    @staticmethod
    def _is_cached(seat: Seat, stay: Seat, known: Known | None) -> bool:
        """Whether the session's last prompt counts as cached there. A seat that was down may have lost its cache;
        its sessions come back to it nevertheless, a few at a time, as `unread` grows by all that it has to read."""
        return seat is stay or (known is not None and seat.endpoint.number == known.last)

    def _seat_of_new(self, session: int, seats: Sequence[Seat], visit: Visit) -> tuple[Seat, int]:
        """The seat of a session that is not known here, and how many tokens of its prompt count as cached there."""
        visit.move = "first"
        order = weights(session, [seat.endpoint.number for seat in seats])
        home = seats[order.index(max(order))]
        if not visit.is_first:
            return home, visit.tokens
        share = CROWDED * sum(seat.sessions for seat in seats) / len(seats)
        load = CROWDED * sum(seat.endpoint.pool.inflight for seat in seats) / len(seats) + LOADED_MORE
        if home.sessions <= share and home.endpoint.pool.inflight <= load:
            return home, 0
        few = [place for place, seat in enumerate(seats) if seat.sessions <= share]
        idle = [place for place in few if seats[place].endpoint.pool.inflight <= load]
        return seats[max(idle or few, key=order.__getitem__)], 0

    def _seat_of_known(self, session: int, known: Known, seats: Sequence[Seat], visit: Visit) -> Seat:
        """Where a known session stays, with the reason in `visit.move` if that is not where it was last."""
        by_number = {seat.endpoint.number: seat for seat in seats}
        order = weights(session, by_number)
        home = seats[order.index(max(order))]
        seat = by_number.get(known.seat)
        if seat is None:
            visit.move = "down"
            return by_number.get(known.last, home)
        if known.away and seat is not home and self._is_served_elsewhere(known, visit):
            visit.move = "agreed"
            return home
        visit.move = "back"
        return seat

    @staticmethod
    def _is_served_elsewhere(known: Known, visit: Visit) -> bool:
        """Whether the conversation holds answers that did not come by way of this gateway.

        They are counted in the second turn and whenever the turns since have doubled, as that takes 30 microseconds for
        a body of 64 KiB.
        """
        if known.turns < known.look_at:
            return False
        answers, turns = visit.answers(), known.turns
        known.turns, known.look_at = 0, 2 * known.look_at
        before, known.answers = known.answers, max(known.answers, answers)
        return answers > before + turns

    # -- the table -------------------------------------------------------------------------------------------------

    def _find(self, session: int, visit: Visit) -> Known | None:
        known = self._known.get(session)
        if known is None or visit.now - known.seen <= KEPT:
            return known
        self._forget(session)
        return None

    def _meet(self, session: int, seat: Seat, visit: Visit) -> Known:
        """Remember a session, at the cost of those that were quiet for longest."""
        for _ in range(DROPPED_AT_ONCE):
            oldest = next(iter(self._known), None)
            if oldest is None:
                break
            if len(self._known) < MOST_SESSIONS and visit.now - self._known[oldest].seen <= KEPT:
                break
            self._forget(oldest)
        number = seat.endpoint.number
        known = Known(number, number, visit.tokens, visit.now, self._is_away(session, number), turns=1)
        if known.away:
            known.answers = visit.answers()
        self._known[session] = known
        seat.sessions += 1
        return known

    def _reseat(self, session: int, known: Known, number: int, visit: Visit) -> None:
        if (before := self._seats.get(known.seat)) is not None:
            before.sessions -= 1
        self._seats[number].sessions += 1
        known.seat = number
        known.away = self._is_away(session, number)
        known.turns, known.look_at = 0, 1
        if known.away:
            known.answers = visit.answers()

    def _is_away(self, session: int, number: int) -> bool:
        order = weights(session, self._seats)
        return list(self._seats)[order.index(max(order))] != number

    def _forget(self, session: int) -> None:
        known = self._known.pop(session)
        if (seat := self._seats.get(known.seat)) is not None:
            seat.sessions -= 1


def _may_read_more(endpoint: EndpointState, visit: Visit) -> bool:
    """Whether an endpoint that is not free has a slot, and only too many prompts to read (`max_pending_prefill`).

    A turn whose prompt is cached there adds little to them; anywhere else all of it would have to be read. It does not
    go before requests that wait, unless it waits itself and is the next one.
    """
    if not endpoint.up or endpoint.bound is None or endpoint.pool.inflight >= endpoint.bound:
        return False
    return visit.waits or not endpoint.backend.fair.length
