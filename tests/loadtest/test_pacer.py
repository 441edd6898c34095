"""When requests are due: rate, spacing, ramp, and no accumulated lateness."""

from __future__ import annotations

import random
from itertools import islice, pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.loadtest.pacer import arrivals, user_starts

rates = st.floats(0.1, 1000)
ramps = st.floats(0, 60)


@given(rate=rates)
def test_a_constant_rate_spaces_evenly_from_the_start(rate: float) -> None:
    """The first at once, then each 1/rate later; absolute, so that the hundredth is where it should be."""
    moments = list(islice(arrivals(rate, draw=None), 101))
    assert moments[0] == 0
    assert moments[100] == pytest.approx(100 / rate)


@given(rate=rates, ramp=ramps, seed=st.integers())
def test_moments_never_go_back(rate: float, ramp: float, seed: int) -> None:
    """With and without a ramp."""
    for draw in (None, random.Random(seed).random):
        assert all(before <= after for before, after in pairwise(islice(arrivals(rate, draw=draw, ramp=ramp), 200)))


@given(rate=rates, ramp=st.floats(1, 60))
def test_a_ramp_sends_half_of_what_the_full_rate_would(rate: float, ramp: float) -> None:
    """The rate grows evenly from 0, so in the ramp it is half of it in the mean; afterwards all of it."""
    due = list(takewhile(lambda moment: moment < 2 * ramp, arrivals(rate, draw=None, ramp=ramp)))
    assert sum(moment < ramp for moment in due) == pytest.approx(rate * ramp / 2, abs=1.5)
    assert sum(moment >= ramp for moment in due) == pytest.approx(rate * ramp, abs=1.5)


def test_poisson_arrivals_have_the_gaps_of_one() -> None:
    """Mean 1/rate, deviation equal to it, and 1 - 1/e of the gaps below it."""
    moments = list(islice(arrivals(50, draw=random.Random(7).random), 20_001))
    gaps = [after - before for before, after in pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.02, rel=0.03)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(0.02, rel=0.05)
    assert sum(gap < 0.02 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.02)


def test_the_same_seed_gives_the_same_schedule() -> None:
    """A run can be repeated."""
    first, again = (list(islice(arrivals(5, draw=random.Random(3).random), 50)) for _ in range(2))
    assert first == again


@given(users=st.integers(1, 500), ramp=ramps)
def test_users_begin_evenly_over_the_ramp(users: int, ramp: float) -> None:
    """The first at once, all of them before its end."""
    starts = user_starts(users, ramp)
    assert len(starts) == users
    assert starts[0] == 0
    assert all(start <= ramp for start in starts)
    assert all(after - before == pytest.approx(ramp / users) for before, after in pairwise(starts))
