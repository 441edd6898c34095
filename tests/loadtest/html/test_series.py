"""Samples folded for charts: nothing is lost, and percentiles are those of the summary."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.loadtest.html.series import (
    FULL_BIN,
    MOST_BINS,
    bins_over_time,
    distribution,
    faults_over_time,
    latency_counts,
    rates_over_time,
)
from aiaas.loadtest.slo import parse_slo
from aiaas.loadtest.stats import percentile
from tests.loadtest.samples import failed, sample


@given(moments=st.lists(st.floats(0, 10), max_size=300))
def test_every_value_is_in_a_bin(moments: list[float]) -> None:
    """Also at the very end; few values are not folded at all."""
    bins = bins_over_time([(moment, 1.0) for moment in moments], 10.0)
    assert sum(each.count for each in bins) == (len(moments) if len(moments) >= 2 * FULL_BIN else 0)


def test_a_bin_has_the_percentiles_of_its_values() -> None:
    """By nearest rank, as everywhere; one without values has none."""
    first = [(n / 100, float(n)) for n in range(100)]
    bins = bins_over_time([*first, (9.9, 7.0)], 10.0)
    assert len(bins) == 5
    assert (bins[0].count, bins[0].p50, bins[0].p99, bins[0].slowest) == (100, 49.0, 98.0, 99.0)
    assert (bins[1].count, bins[1].p50, bins[1].middle) == (0, None, 3.0)


def test_bins_do_not_grow_with_the_run() -> None:
    """A hundred of them for a hundred thousand requests."""
    assert len(bins_over_time([(n / 1000, 1.0) for n in range(100_000)], 100.0)) == MOST_BINS


def test_rates_count_whole_answers_by_when_they_ended() -> None:
    """And separately those within the SLO."""
    fast = [sample(0.0, e2e=1.0) for _ in range(30)]
    slow = [sample(0.0, e2e=9.0) for _ in range(20)]
    found = rates_over_time([*fast, *slow, failed()], parse_slo("e2e=5s"), 10.0)
    assert [(each.answers, each.good) for each in found] == [(6.0, 6.0), (4.0, 0.0)]
    assert rates_over_time(fast[:10], (), 10.0) == ()


def test_failures_are_counted_by_kind_and_hundredth_of_the_run() -> None:
    """The most frequent first; failures in the warm-up and leaving on purpose do not count."""
    kept = [failed(0.0, "cut", end=9.99), failed(0.0, code="x", end=0.5), failed(0.0, "cut", end=9.95)]
    kept += [failed(warmup=True), sample(error="cut", aborted=True)]
    found = faults_over_time(kept, 10.0)
    assert list(found) == ["cut", "http_500 x"]
    assert found["cut"] == ((pytest.approx(9.9), pytest.approx(10.0), 2),)


@given(values=st.lists(st.floats(0.001, 100), min_size=1, max_size=300))
def test_a_distribution_goes_through_the_percentiles(values: list[float]) -> None:
    """From the smallest to the largest, rising; the named ones are the summary's."""
    found = distribution(Counter(values))
    assert found is not None
    ordered = sorted(values)
    assert found.named == {percent: percentile(ordered, percent) for percent in (50, 90, 99)}
    assert (found.points[0], found.points[-1]) == ((ordered[0], 0.0), (ordered[-1], 100.0))
    assert list(found.points) == sorted(found.points)
    for value, share in found.points[1:]:
        assert sum(each <= value for each in values) / len(values) * 100 >= share - 1e-6
    assert distribution(Counter()) is None


def test_latencies_are_those_that_the_summary_counts() -> None:
    """Of whole answers after the warm-up; gaps in seconds."""
    kept = [sample(ttft=0.2, gaps=(1000, 1000)), sample(ttft=0.3, warmup=True, gaps=(5,)), failed()]
    assert latency_counts(kept, "ttft") == {0.2: 1}
    assert latency_counts(kept, "itl") == {0.001: 2}
    assert latency_counts([sample(ttft=None)], "ttft") == {}
