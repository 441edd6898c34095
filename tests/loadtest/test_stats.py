"""Percentiles by nearest rank, and intervals by re-drawing."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from itertools import accumulate
from math import comb
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.loadtest.stats import bootstrap, median, percentile, percentile_interval, spread, spread_of_counts

values = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=200)


@given(values=values, percent=st.integers(1, 99))
def test_percentile_is_the_smallest_value_of_sufficient_rank(values: list[float], percent: int) -> None:
    """The definition of nearest rank, held against every measured value."""
    found = percentile(sorted(values), percent)
    enough = [value for value in values if sum(each <= value for each in values) * 100 >= percent * len(values)]
    assert found == min(enough)


@given(values=values)
def test_a_spread_is_that_of_the_values(values: list[float]) -> None:
    """Mean, deviation, ends and percentiles."""
    found = spread(values)
    assert found is not None
    assert found.count == len(values)
    assert found.mean == pytest.approx(fmean(values))
    assert found.deviation == pytest.approx(pstdev(values), abs=1e-3)
    ordered = sorted(values)
    assert (found.minimum, found.p50, found.p90, found.p95, found.p99, found.maximum) == (
        ordered[0],
        *(percentile(ordered, percent) for percent in (50, 90, 95, 99)),
        ordered[-1],
    )


def test_counted_values_count_as_often_as_they_are() -> None:
    """Nine times 1 and once 5."""
    found = spread_of_counts(Counter({1.0: 9, 5.0: 1}))
    assert found is not None
    assert (found.count, found.mean, found.p90, found.p95) == (10, 1.4, 1.0, 5.0)


def test_nothing_has_no_spread() -> None:
    """Rather than zeros that look like a measurement."""
    assert spread([]) is None


@pytest.mark.parametrize(
    ("values", "middle"), [([3.0, 1.0, 2.0], 2.0), ([4.0, 1.0], 2.5)], ids=["odd number", "even number"]
)
def test_the_median_is_in_the_middle(values: list[float], middle: float) -> None:
    """Of an even number of values it is between two."""
    assert median(values) == middle


def test_bootstrap_interval_covers_the_truth_as_often_as_stated() -> None:
    """95 % of intervals for the median of a known distribution hold it; of 100 at least 88 do."""
    source = random.Random(1)
    held = 0
    for _ in range(100):
        interval = bootstrap([source.gauss(10, 2) for _ in range(60)], median, source.random, redraws=200)
        held += interval.low <= 10 <= interval.high
    assert 88 <= held <= 100


def test_the_same_seed_gives_the_same_interval() -> None:
    """A report that is made again has the same figures."""
    numbers = [1.0, 2.0, 4.0, 8.0]
    assert bootstrap(numbers, median, random.Random(3).random) == bootstrap(numbers, median, random.Random(3).random)


@pytest.mark.parametrize("percent", [50, 90, 99])
@pytest.mark.parametrize("size", [1, 12, 100, 1000])
def test_the_interval_of_a_percentile_is_that_of_the_binomial(size: int, percent: int) -> None:
    """Held against exact sums of the binomial distribution; the values 1 to n are their own ranks."""
    share = Fraction(percent, 100)
    chances = [comb(size, number) * share**number * (1 - share) ** (size - number) for number in range(size + 1)]
    sums = list(accumulate(chances))  # P(at most so many values lie below the percentile)
    low = max((number + 1 for number, below in enumerate(sums) if below <= Fraction(25, 1000)), default=0)
    high = next(number + 1 for number, below in enumerate(sums) if below >= Fraction(975, 1000))
    found = percentile_interval([float(value) for value in range(1, size + 1)], percent)
    assert (found.low, found.high) == (low, high if high <= size else float("inf"))


def test_percentile_interval_covers_the_truth_as_often_as_stated() -> None:
    """In 95 of 100 draws from a known distribution, or a little more, since ranks are whole."""
    generator = random.Random(5)
    runs = 400
    for percent in (50, 90):
        found = [percentile_interval(sorted(generator.random() for _ in range(200)), percent) for _ in range(runs)]
        held = sum(each.low <= percent / 100 <= each.high for each in found)
        assert 0.93 * runs <= held <= 0.99 * runs


def test_too_few_values_have_no_end() -> None:
    """Ten values say nothing about how large a p99 can be, one nothing about anything."""
    assert percentile_interval([1.0] * 10, 99).high == float("inf")
    only = percentile_interval([2.0], 50)
    assert (only.estimate, only.low, only.high) == (2.0, 0.0, float("inf"))
