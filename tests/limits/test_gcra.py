"""The arithmetic of the limiter, against its guarantees."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiaas.limits.gcra import EPSILON, charge, decide
from aiaas.limits.model import Decision, Rate

RATES = st.builds(Rate, st.integers(1, 10_000_000), st.integers(1, 10_000_000))
# A process just started, one up for months, and POSIX seconds.
STARTS = st.sampled_from([0.0, 12.345678, 1e7 + 1 / 3, 1.8e9 + 0.1])
GAPS = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 20)), max_size=40)


def test_a_full_bucket_admits_its_burst_and_then_the_rate() -> None:
    """Ten at once, the eleventh after six seconds, at ten a minute."""
    rate, tat, now = Rate(10, 10), None, 1000.0
    for left in range(9, -1, -1):
        decision, tat = decide(tat, rate, 1, now)
        assert decision == Decision(True, 10, left, pytest.approx(6.0 * (10 - left)), 0.0)
    decision, tat = decide(tat, rate, 1, now)
    assert decision == Decision(False, 10, 0, pytest.approx(60.0), pytest.approx(6.0))
    assert decide(tat, rate, 1, now + 5.999)[0].allowed is False
    assert decide(tat, rate, 1, now + 6.0)[0] == Decision(True, 10, 0, pytest.approx(60.0), 0.0)


def test_a_paced_loop_gets_what_a_bucket_of_ten_gives() -> None:
    """Fifteen requests a second apart against ten a minute: twelve."""
    rate, tat, admitted = Rate(10, 10), None, 0
    for second in range(15):
        decision, tat = decide(tat, rate, 1, 50.0 + second)
        admitted += decision.allowed
    assert admitted == 12


def test_a_refusal_changes_nothing() -> None:
    """A refused request is not charged."""
    rate = Rate(60, 1)
    _, tat = decide(None, rate, 1, 100.0)
    decision, after = decide(tat, rate, 1, 100.5)
    assert (decision.allowed, after) == (False, tat)


def test_cost_that_never_fits_says_so() -> None:
    """A cost beyond the bucket can never be admitted."""
    decision, _ = decide(None, Rate(100, 100), 101, 5.0)
    assert decision == Decision(False, 100, 100, 0.0, None)
    assert decide(None, Rate(100, 100), 100, 5.0)[0].allowed


def test_asking_for_nothing_charges_nothing() -> None:
    """A cost of 0 reads the state."""
    rate = Rate(60, 5)
    _, tat = decide(None, rate, 2, 100.0)
    decision, after = decide(tat, rate, 0, 100.0)
    assert decision == Decision(True, 60, 3, 2.0, 0.0)
    assert after == tat


def test_unused_units_come_back_and_no_more_than_a_full_bucket() -> None:
    """A reservation of 100 that used 10 leaves 90 free again; time has given back its share already."""
    rate = Rate(60, 100)
    _, tat = decide(None, rate, 100, 0.0)
    assert decide(charge(tat, rate, -90, 0.0), rate, 0, 0.0)[0].remaining == 90
    assert decide(charge(tat, rate, -90, 50.0), rate, 0, 50.0)[0].remaining == 100
    assert charge(None, rate, -90, 7.0) == 7.0


def test_units_used_beyond_overdraw_the_bucket() -> None:
    """Until they are worked off, nothing is admitted, not even at no cost."""
    rate = Rate(60, 10)
    tat = charge(None, rate, 30, 100.0)
    decision, _ = decide(tat, rate, 1, 100.0)
    assert decision == Decision(False, 60, 0, 30.0, 21.0)
    assert decide(tat, rate, 0, 119.0)[0].allowed is False
    assert decide(tat, rate, 1, 121.0)[0].allowed


def test_a_new_rate_keeps_the_seconds_owed() -> None:
    """After a reload an empty bucket is still empty, and full again when it would have been."""
    _, tat = decide(None, Rate(10, 10), 10, 100.0)
    faster = decide(tat, Rate(1000, 1000), 0, 130.0)[0]
    assert (faster.remaining, faster.reset_after) == (500, 30.0)
    slower = decide(tat, Rate(2, 2), 1, 130.0)[0]
    assert (slower.allowed, slower.remaining) == (True, 0)


@given(RATES, STARTS, GAPS)
@example(Rate(7, 3), 1.8e9 + 0.1, [(0.0, 1)] * 4)
def test_no_window_admits_more_than_burst_and_rate(rate: Rate, start: float, gaps: list[tuple[float, int]]) -> None:
    """From any admission to any later one: at most burst + rate x time, and a microsecond."""
    tat, now = None, start
    admitted: list[tuple[float, int]] = []
    for gap, cost in gaps:
        now += gap * 60 / rate.per_minute
        decision, tat = decide(tat, rate, cost, now)
        if decision.allowed and cost:
            admitted.append((now, cost))
    rounding = len(gaps) * math.ulp(start + 4e9 / rate.per_minute) * 4
    for first in range(len(admitted)):
        total = 0
        for moment, cost in admitted[first:]:
            total += cost
            seconds = moment - admitted[first][0] + EPSILON + rounding
            assert total <= rate.burst + seconds * rate.per_minute / 60 + 1e-6


@given(RATES, STARTS, GAPS, st.integers(1, 10_000_000), st.sampled_from(["exactly", "whole milliseconds", "seconds"]))
@example(Rate(7, 3), 1e7 + 1 / 3, [(0.0, 1)] * 4, 1, "exactly")
def test_a_client_that_waits_as_told_is_admitted(
    rate: Rate, start: float, gaps: list[tuple[float, int]], cost: int, rounded: str
) -> None:
    """After `retry_after`, or after it rounded up as in the headers, the same request fits."""
    tat, now = None, start
    for gap, earlier in gaps:
        now += gap * 60 / rate.per_minute
        _, tat = decide(tat, rate, earlier, now)
    decision, tat = decide(tat, rate, cost, now)
    if decision.allowed:
        return
    assert (decision.retry_after is None) is (cost > rate.burst)
    if decision.retry_after is None:
        return
    wait = {
        "exactly": decision.retry_after,
        "whole milliseconds": math.ceil(decision.retry_after * 1000) / 1000,
        "seconds": math.ceil(decision.retry_after),
    }[rounded]
    assert decide(tat, rate, cost, now + wait)[0].allowed


@given(RATES, STARTS, GAPS)
def test_remaining_units_are_admitted_and_not_one_more(rate: Rate, start: float, gaps: list[tuple[float, int]]) -> None:
    """`remaining` at once fits; one more does not, unless within the microsecond that is forgiven."""
    tat, now = None, start
    for gap, cost in gaps:
        now += gap * 60 / rate.per_minute
        decision, tat = decide(tat, rate, cost, now)
        assert decide(tat, rate, decision.remaining, now)[0].allowed
        one_more = decide(tat, rate, decision.remaining + 1 + math.ceil(EPSILON * rate.per_minute / 60), now)[0]
        assert not one_more.allowed


@given(RATES, STARTS, st.lists(st.floats(-1000, 10), max_size=40))
def test_clock_that_goes_back_admits_no_more_than_a_stopped_one(rate: Rate, start: float, jumps: list[float]) -> None:
    """Going back and forth earns no more than the time from the earliest moment to the latest."""
    tat, now, admitted = None, start + 1000, 0
    moments = []
    for jump in jumps:
        now += jump
        moments.append(now)
        decision, tat = decide(tat, rate, 1, now)
        admitted += decision.allowed
        assert decision.remaining <= rate.burst
    span = max(moments, default=0.0) - min(moments, default=0.0)
    assert admitted <= rate.burst + (span + 1e-3) * rate.per_minute / 60


@given(RATES, st.integers(0, 10**6), st.integers(0, 10**6))
def test_reserving_and_settling_costs_what_was_used(rate: Rate, reserved: int, used: int) -> None:
    """At one moment, a settled reservation equals having charged the used units in the first place."""
    _, tat = decide(None, Rate(rate.per_minute, 10**6), reserved, 1000.0)
    settled = charge(tat, rate, used - reserved, 1000.0)
    assert settled == pytest.approx(charge(None, rate, used, 1000.0), abs=1e-6)


def test_amounts_beyond_any_float_are_not_met() -> None:
    """The largest reservation that a request can make still computes."""
    decision, _ = decide(None, Rate(1, 1), (2**63 - 1) ** 3, 1.8e9)
    assert decision.retry_after is None
