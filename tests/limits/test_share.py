"""The share that one process may let in while the shared store is away."""

from __future__ import annotations

import calendar
from dataclasses import replace

import pytest

from aiaas.limits.gcra import decide
from aiaas.limits.model import UNLIMITED, Limits, Rate
from aiaas.limits.script import EPOCH
from aiaas.limits.share import KnownState, fitted, share_of, share_of_rest, slots_of_rest
from aiaas.limits.standing import Standing
from aiaas.limits.state import State

LIMITS = Limits(Rate(600, 40), Rate(6000, 6000), 100_000, 2_000_000, 20)
WALL = float(calendar.timegm((2026, 11, 23, 12, 0, 0)))
AT = 5000.25  # monotonic


def known(requests: int = 0, tokens: int = 0, slots: int = 0, **stored: float) -> KnownState:
    """A key as the store answered at AT, and the charges since."""
    state = State()
    for name, value in stored.items():
        setattr(state, name, value)
    return KnownState(Standing(True, WALL - EPOCH, WALL, state), AT, requests, tokens, slots)


def left(rate: Rate, tat: float, now: float = AT) -> int:
    """How many units would be let in one after the other."""
    number = 0
    while (found := decide(tat, rate, 1, now))[0].allowed:
        number, tat = number + 1, found[1]
    return number


def test_both_buckets_of_requests_begin_with_their_rest() -> None:
    """Whichever kind of request comes first in an outage, of the other one the rest is known, too."""
    limits = Limits(requests=Rate(10, 10), other=Rate(100, 100))
    cheap = Limits(requests=Rate(100, 100), cheap=True, other=Rate(10, 10))
    before = known(requests=8)
    before.cheap = 40
    for first in (limits, cheap):
        state, share = share_of_rest(before, first, 1, AT), share_of(first, 1)
        assert share == first
        assert (left(Rate(10, 10), state.requests), left(Rate(100, 100), state.cheap)) == (2, 60)


def test_a_share_is_at_least_one_of_each() -> None:
    """All shares together are the limit, where that is large enough."""
    assert share_of(LIMITS, 10) == Limits(Rate(60, 4), Rate(600, 600), 10_000, 200_000, 2)
    assert share_of(Limits(Rate(3, 2), Rate(5, 5), 5, 5, 1), 10) == Limits(Rate(1, 1), Rate(1, 1), 1, 1, 1)
    assert share_of(UNLIMITED, 10) == UNLIMITED


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(100, 100), (600, 600), (601, 600), (6000, 600), (6001, 6001)],
    ids=["fits", "just fits", "more than the share", "the whole bucket", "more than anybody may"],
)
def test_reservation_above_the_share_is_cut_and_not_refused(tokens: int, expected: int) -> None:
    """Only one that was too large before the outage is too large in it."""
    assert fitted(tokens, LIMITS, share_of(LIMITS, 10)) == expected


@pytest.mark.parametrize(
    ("used", "processes", "expected"),
    [
        pytest.param(3, 1, 7, id="alone: what was left"),
        pytest.param(0, 2, 5, id="two, unused: half"),
        pytest.param(4, 2, 3, id="two: half of the rest"),
        pytest.param(9, 2, 1, id="one left: once for each"),
        pytest.param(3, 10, 1, id="ten: once for each"),
        pytest.param(10, 1, 0, id="used up"),
        pytest.param(10, 10, 0, id="used up, ten"),
    ],
)
def test_requests_begin_with_a_part_of_what_was_left(used: int, processes: int, expected: int) -> None:
    """Of a bucket of ten, at ten a minute."""
    limits = Limits(requests=Rate(10, 10))
    share = share_of(limits, processes).requests
    assert share is not None
    assert left(share, share_of_rest(known(requests=used), limits, processes, AT).requests) == expected


@pytest.mark.parametrize("processes", [1, 10])
def test_a_used_up_key_waits_as_the_whole_would(processes: int) -> None:
    """The next request comes when time has worked off the whole bucket's, and not earlier or later."""
    limits = Limits(requests=Rate(10, 10))
    share = share_of(limits, processes).requests
    assert share is not None
    tat = share_of_rest(known(requests=11, tokens=0), limits, processes, AT + 2.0).requests
    assert left(share, tat, AT + 2.0) == 0
    assert decide(tat, share, 1, AT + 2.0)[0].retry_after == pytest.approx(10.0)  # 12 s, of which 2 have passed


def test_time_since_the_answer_refills_the_bucket() -> None:
    """By the rate of the whole; after long the share is full."""
    limits = Limits(tokens=Rate(600, 600))
    share = share_of(limits, 2).tokens
    assert share is not None
    for seconds, expected in ((0.0, 50), (10.0, 100), (3600.0, 300)):
        tat = share_of_rest(known(tokens=500), limits, 2, AT + seconds).tokens
        assert left(share, tat, AT + seconds) == expected


def test_the_stores_own_tat_counts_with_what_came_since() -> None:
    """The answer is of the moment before the admission."""
    limits = Limits(requests=Rate(60, 10))
    stored = known(requests=2)
    stored.standing.state.requests = stored.standing.now + 3.0
    share = share_of_rest(stored, limits, 1, AT)
    assert left(Rate(60, 10), share.requests) == 5


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        pytest.param(WALL - 12 * 3600, 5, id="today"),
        pytest.param(WALL - 36 * 3600, 45, id="yesterday"),
    ],
)
def test_a_days_quota_begins_with_a_part_of_the_rest(day: float, expected: int) -> None:
    """600 a day, ten processes, 400 stored, 150 charged since: of 50 left each has a tenth, or of 450 in a new day."""
    state = share_of_rest(known(tokens=150, day=day, day_tokens=400), Limits(tokens_per_day=600), 10, AT)
    assert 60 - state.day_tokens == expected


def test_a_used_up_quota_has_no_part_left() -> None:
    """A new day, by the store's clock, has all of it."""
    limits = Limits(tokens_per_day=600, tokens_per_month=6000)
    month = float(calendar.timegm((2026, 11, 1, 0, 0, 0)))
    used = known(tokens=700, day=WALL - 12 * 3600, month=month, month_tokens=5300)
    state = share_of_rest(used, limits, 10, AT)
    assert (state.day_tokens, state.month_tokens) == (60, 600)
    tomorrow = share_of_rest(used, limits, 10, AT + 13 * 3600)
    assert (tomorrow.day_tokens, tomorrow.month_tokens) == (0, 600)
    assert share_of_rest(used, limits, 10, AT + 10 * 86400).month_tokens == 0


@pytest.mark.parametrize(
    ("taken", "since", "held", "processes", "expected"),
    [
        pytest.param(5, 0, 5, 1, 20, id="alone: all"),
        pytest.param(5, 1, 6, 2, 6 + 7, id="two: what runs here, and half of the rest"),
        pytest.param(20, 0, 5, 2, 5, id="none left"),
        pytest.param(19, 0, 0, 10, 1, id="one left: once for each"),
        pytest.param(20, -1, 0, 1, 1, id="one ended since"),
    ],
)
def test_slots_are_what_runs_here_and_a_part_of_the_rest(
    taken: int, since: int, held: int, processes: int, expected: int
) -> None:
    """All processes together: as many as the limit."""
    stored = known(slots=since)
    stored.standing.state.slots = taken
    assert slots_of_rest(stored, 20, processes, held) == expected


def test_limits_that_a_key_does_not_have_begin_with_nothing() -> None:
    """Also where the store kept the state of former limits."""
    stored = known(requests=5, tokens=5)
    state = share_of_rest(stored, replace(UNLIMITED), 2, AT)
    assert (state.requests, state.tokens, state.day_tokens, state.month_tokens) == (-float("inf"), -float("inf"), 0, 0)
