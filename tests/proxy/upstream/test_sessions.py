"""aiaas.proxy.upstream.sessions: where a session's requests go, why they move, and what is remembered."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from aiaas.proxy.request.visit import Visit
from aiaas.proxy.upstream import sessions
from aiaas.proxy.upstream.affinity import weights
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.sessions import HYSTERESIS, KEPT, MANY_AT_ONCE, MOST_SESSIONS, Stay
from aiaas.proxy.upstream.waiter import PREFILL_RATE
from tests.cputime import cpu_time
from tests.proxy.upstream.virtual_replicas import replicas


def visit(name: str, tokens: int = 100, answers: int = 0, now: float = 0.0, *, stream: bool = True) -> Visit:
    """A request of a session whose conversation has so many answers."""
    return Visit("key", "m", name, None, b'"assistant"' * answers, tokens, now, stream=stream)


def begin(backend: BackendState, at: Visit, tried: Sequence[EndpointState] = ()) -> tuple[EndpointState, Stay]:
    """Choose an endpoint and send the request there."""
    endpoint = backend.pick(tried, at)
    assert endpoint is not None
    stay = backend.sessions.begin(endpoint, at, None)
    assert stay is not None
    return endpoint, stay


def ask(backend: BackendState, name: str, *arguments: Any, **fields: Any) -> tuple[EndpointState, str]:
    """A request that ends at once: its endpoint, and how it came there."""
    at = visit(name, *arguments, **fields)
    endpoint, stay = begin(backend, at)
    stay.settle(0, 0)
    return endpoint, at.move


def home(backend: BackendState, name: str) -> EndpointState:
    """The first endpoint in a session's order."""
    session = visit(name).session
    assert session is not None
    order = weights(session, [endpoint.number for endpoint in backend.endpoints])
    return backend.endpoints[order.index(max(order))]


def unread(backend: BackendState, endpoint: EndpointState) -> float:
    """The tokens that an endpoint has yet to read."""
    return backend.sessions._seats[endpoint.number].pending(0.0)


def test_session_stays_in_all_its_turns() -> None:
    """Also with a long prompt, and with other requests in flight there."""
    backend = replicas(4)
    first, move = ask(backend, "a", 30_000)
    assert (first, move) == (home(backend, "a"), "first")
    first.pool.inflight = 50
    for turn in range(1, 10):
        assert ask(backend, "a", 30_000 + 2_000 * turn, turn) == (first, "stayed")


def test_gateways_agree_on_a_home() -> None:
    """A gateway that meets a session in a later turn sends it where the first gateway did."""
    one, other = replicas(4), replicas(4)
    for number in range(100):
        there, _ = ask(one, f"{number}", 5_000, 1)
        here, move = ask(other, f"{number}", 9_000, 2)
        assert (here.number, move) == (there.number, "first")


@pytest.mark.parametrize("names", [range(14), range(100, 114), range(200, 214), range(300, 314)], ids=str)
def test_fourteen_sessions_on_two_endpoints_even_out(names: range) -> None:
    """Neither endpoint has less than 30 %, where homes alone may be 3 to 11."""
    backend = replicas(2)
    places = Counter(ask(backend, f"{name}", 2_000)[0] for name in names)
    assert min(places.values()) >= 0.3 * 14
    assert len(places) == 2


def test_home_with_most_in_flight_is_passed_over() -> None:
    """By a first turn, which has nothing cached anywhere."""
    backend = replicas(2)
    at_home = home(backend, "a")
    at_home.pool.inflight = 40
    assert ask(backend, "a")[0] is not at_home


def test_session_leaves_for_ten_thousand_tokens() -> None:
    """Less than that, and it waits for its cache; then it stays at the new endpoint."""
    backend = replicas(2)
    seat, _ = ask(backend, "a", 1_000)
    filler = visit("b", HYSTERESIS)
    backend.sessions.begin(seat, filler, None)
    assert unread(backend, seat) == HYSTERESIS
    assert ask(backend, "a", 2_000, 1) == (seat, "stayed")
    backend.sessions.begin(seat, visit("c", 5_000), None)
    moved, move = ask(backend, "a", 3_000, 2)
    assert (moved is not seat, move) == (True, "load")
    assert ask(backend, "a", 4_000, 3) == (moved, "stayed")


def test_long_prompt_is_not_moved_for_a_short_wait() -> None:
    """To read all of it elsewhere takes longer than to wait."""
    backend = replicas(2)
    seat, _ = ask(backend, "a", 60_000)
    backend.sessions.begin(seat, visit("b", 50_000), None)
    assert ask(backend, "a", 61_000, 1) == (seat, "stayed")


def test_first_byte_makes_room() -> None:
    """A stream's prompt is pending until its first byte, and once: the end does not count it again."""
    backend = replicas(2)
    endpoint, stay = begin(backend, visit("a", 7_000))
    assert unread(backend, endpoint) == 7_000
    stay.prompt_read()
    assert unread(backend, endpoint) == 0
    stay.settle(0, 0)
    assert unread(backend, endpoint) == 0


def test_end_makes_room() -> None:
    """A stream that ends without a byte, as its client left, is not pending for ever."""
    backend = replicas(2)
    endpoint, stay = begin(backend, visit("a", 7_000))
    stay.settle(0, None)
    assert unread(backend, endpoint) == 0


def test_other_answers_make_room_in_time() -> None:
    """Without a first byte the prompt is pending as long as an engine reads it, behind those before it."""
    backend = replicas(2)
    endpoint, _ = begin(backend, visit("a", 10_000, stream=False))
    assert begin(backend, visit("a", 14_000, 1, stream=False))[0] is endpoint
    seat = backend.sessions._seats[endpoint.number]
    assert seat.pending(0.0) == pytest.approx(14_000)
    assert seat.pending(10_000 / PREFILL_RATE) == pytest.approx(4_000)
    assert seat.pending(1.0) == 0


def test_endpoint_that_comes_back_has_its_sessions_again() -> None:
    """Of 200 sessions on 4 endpoints only those of the one that went move, and all come back."""
    backend = replicas(4)
    names = [f"{number}" for number in range(200)]
    before = {name: ask(backend, name, 2_000)[0] for name in names}
    gone = backend.endpoints[1]
    gone.up = False
    for turn in (1, 2):
        during = {name: ask(backend, name, 3_000, turn) for name in names}
        moves = Counter(move for _, move in during.values())
        assert moves == ({"down": moves["down"], "stayed": 200 - moves["down"]} if turn == 1 else {"stayed": 200})
    moved = [name for name in names if during[name][0] is not before[name]]
    assert 0.15 * 200 <= len(moved) <= 0.3 * 200
    assert all(before[name] is gone for name in moved)
    gone.up = True
    after = {name: ask(backend, name, 4_000, 3) for name in names}
    assert {name: endpoint for name, (endpoint, _) in after.items()} == before
    assert Counter(move for _, move in after.values())["back"] == len(moved)


def test_sessions_come_back_a_few_at_a_time() -> None:
    """An endpoint may have lost its cache: while it reads long prompts again, the others stay where theirs are."""
    backend = replicas(2)
    names = [f"{number}" for number in range(40)]
    for name in names:
        ask(backend, name, 30_000)
    gone = backend.endpoints[0]
    gone.up = False
    for name in names:
        ask(backend, name, 31_000, 1)
    gone.up = True
    stays = {name: begin(backend, visit(name, 32_000, 2)) for name in names}
    assert 1 <= sum(endpoint is gone for endpoint, _ in stays.values()) <= 3
    for _, stay in stays.values():
        stay.settle(0, 0)
    for turn in range(3, 40):
        stays = {name: begin(backend, visit(name, 32_000, turn)) for name in names}
        for _, stay in stays.values():
            stay.settle(0, 0)
    assert 12 <= sum(endpoint is gone for endpoint, _ in stays.values()) <= 28


def test_session_goes_home_where_another_gateway_serves_it() -> None:
    """Its conversation holds answers that did not come from here; then both gateways send it to one endpoint."""
    backend = replicas(2)
    at_home = home(backend, "a")
    at_home.pool.inflight = 40
    away, _ = ask(backend, "a", 2_000)
    assert away is not at_home
    at_home.pool.inflight = 0
    assert ask(backend, "a", 3_000, 1) == (away, "stayed")
    assert ask(backend, "a", 4_000, 2) == (away, "stayed")
    moves = [ask(backend, "a", 5_000, turn) for turn in (5, 6, 7)]
    assert (at_home, "agreed") in moves
    assert moves[-1][0] is at_home


def test_session_that_only_this_gateway_serves_stays_away() -> None:
    """Its home draws it back only for a reason."""
    backend = replicas(2)
    at_home = home(backend, "a")
    at_home.pool.inflight = 40
    away, _ = ask(backend, "a", 2_000)
    at_home.pool.inflight = 0
    assert {ask(backend, "a", 3_000, turn) for turn in range(1, 60)} == {(away, "stayed")}


def test_full_endpoint_is_left() -> None:
    """Where the seat has all its slots in use, the request goes elsewhere and the session with it; all full is None."""
    backend = replicas(2, max_inflight=2)
    seat, _ = ask(backend, "a")
    seat.pool.inflight = 2
    other, move = ask(backend, "a", 200, 1)
    assert (other is not seat, move) == (True, "full")
    seat.pool.inflight = 0
    assert ask(backend, "a", 300, 2) == (other, "stayed")
    for endpoint in backend.endpoints:
        endpoint.pool.inflight = 2
    assert backend.pick((), visit("a", 400, 3)) is None


def test_retry_tries_another_endpoint_and_comes_back() -> None:
    """A retry is not a move: the next turn goes to the seat again."""
    backend = replicas(3)
    seat, stay = begin(backend, visit("a"))
    stay.settle(0, None)
    at = visit("a")
    other, stay = begin(backend, at, (seat,))
    stay.settle(0, 0)
    assert (other is not seat, at.move) == (True, "retry")
    assert ask(backend, "a", 200, 1) == (seat, "back")
    assert backend.pick(backend.endpoints, visit("a")) is seat


def test_same_opening_many_times_at_once_is_spread() -> None:
    """A load test, or a template that hundreds of requests begin with, is not a conversation."""
    backend = replicas(4)
    for _ in range(200):
        endpoint, _ = begin(backend, visit("template", 50))
        endpoint.pool.inflight += 1
    counts = sorted(endpoint.pool.inflight for endpoint in backend.endpoints)
    assert counts[0] >= 50 - MANY_AT_ONCE
    assert counts[-1] <= 51


def test_request_without_a_conversation_goes_by_load() -> None:
    """An embedding, or a chat without a message."""
    backend = replicas(3)
    backend.endpoints[0].pool.inflight = backend.endpoints[2].pool.inflight = 1
    assert backend.pick((), None) is backend.endpoints[1]
    nothing = Visit("key", "m", None, None, b"{}", 1, 0.0, stream=True)
    assert backend.pick((), nothing) is backend.endpoints[1]
    assert backend.sessions.begin(backend.endpoints[1], nothing, None) is None


def test_sessions_survive_a_reload() -> None:
    """Also one that takes an endpoint away and brings it back."""
    backend = replicas(3)
    names = [f"{number}" for number in range(30)]
    before = {name: ask(backend, name)[0].plan.url for name in names}
    other = replicas(2).plan
    backend.follow(other)
    assert len(backend.endpoints) == 2
    backend.follow(replicas(3).plan)
    assert {name: ask(backend, name, 100, 1)[0].plan.url for name in names} == before


def test_quiet_session_is_forgotten() -> None:
    """After half an hour its cache is gone; then it evens out like a new one."""
    backend = replicas(2)
    ask(backend, "a")
    assert ask(backend, "a", 100, 1, now=KEPT)[1] == "stayed"
    assert ask(backend, "a", 100, 2, now=2 * KEPT + 1)[1] == "first"
    for number in range(10):
        ask(backend, f"{number}", now=2 * KEPT + 2)
    ask(backend, "late", now=4 * KEPT)
    ask(backend, "later", now=4 * KEPT)
    assert len(backend.sessions) == 2


def test_memory_of_sessions_is_bounded() -> None:
    """The most that are remembered, and the bytes of each."""
    backend = replicas(4)
    tracemalloc.start()
    try:
        for number in range(MOST_SESSIONS):
            ask(backend, f"{number}", now=number / 100)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 200 < taken / MOST_SESSIONS < 500
    for number in range(MOST_SESSIONS, MOST_SESSIONS + 100):
        ask(backend, f"{number}", now=number / 100)
    assert len(backend.sessions) == MOST_SESSIONS
    assert sum(seat.sessions for seat in backend.sessions._seats.values()) == MOST_SESSIONS
    assert ask(backend, "1", now=200.0)[1] == "first"
    assert ask(backend, "9999", 100, 1, now=200.0)[1] == "stayed"


def test_choice_hashes_no_url_and_compares_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that stays costs the same with 2 endpoints and with 50: nothing is computed for the others."""
    few, many = replicas(2), replicas(50)
    for backend in (few, many):
        ask(backend, "a", 1_000)
    monkeypatch.setattr(sessions, "weights", None)
    at = visit("a", 1_100, 1)
    cost = {len(b.endpoints): cpu_time(lambda b=b: [b.pick((), at) for _ in range(1000)]) for b in (few, many)}  # type: ignore[misc]
    assert cost[50] < 2 * cost[2]


def test_cached_prompt_is_not_pending() -> None:
    """The bound on prompts that wait for their first token counts what the engine has to read."""
    backend = replicas(2, max_inflight=8)
    endpoint, _ = ask(backend, "a", 30_000)
    grant = backend.begin(endpoint, "key", 31_000, 100)
    assert grant is not None
    assert endpoint.pending == 31_000
    stay = backend.sessions.begin(endpoint, visit("a", 31_000, 1), grant)
    assert endpoint.pending == 1_000
    assert grant.reading_time == pytest.approx(1_000 / PREFILL_RATE)
    assert stay is not None
    stay.prompt_read()
    assert endpoint.pending == 0
    stay.settle(31_000, 5)
    assert endpoint.pending == 0


def test_session_stays_while_its_endpoint_reads_a_long_prompt() -> None:
    """It has a slot for the turn, whose prompt is cached; not so where somebody waits, or a session is new."""
    backend = replicas(2, max_inflight=16)
    seat, _ = ask(backend, "a", 30_000)
    seat.pending = 5_000
    assert not seat.is_free()
    assert ask(backend, "a", 31_000, 1) == (seat, "stayed")
    assert ask(backend, "b", 1_000)[0] is not seat
    seat.pool.inflight = 16
    assert ask(backend, "a", 32_000, 2)[1] == "full"
