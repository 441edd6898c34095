"""Histograms by tally expose what prometheus_client's own would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from aiaas.proxy.telemetry.histogram import Tallies

BOUNDS = (0.005, 0.1, 1, 2.5, 600)
values = st.one_of(st.sampled_from([*BOUNDS, 0.0, 1e9]), st.floats(0, 1000))


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), values), min_size=1, max_size=30))
def test_the_exposition_is_that_of_prometheus_clients_histogram(observed: list[tuple[str, float]]) -> None:
    """Names, labels, bounds, counts and sums are the same, also for values on a bound and beyond all of them."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies("seconds", "Some seconds", ["model"], BOUNDS, ours)
    histogram = Histogram("seconds", "Some seconds", ["model"], buckets=BOUNDS, registry=theirs)
    for model, value in observed:
        tallies.labels(model).observe(value)
        histogram.labels(model).observe(value)
    kept = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == kept


def test_a_value_counts_as_often_as_it_is_said_to() -> None:
    """`times` counts a value several times at the cost of one call."""
    registry = CollectorRegistry()
    Tallies("seconds", "Some seconds", [], BOUNDS, registry).labels().observe(0.05, 3)
    assert registry.get_sample_value("seconds_bucket", {"le": "0.1"}) == 3
    assert registry.get_sample_value("seconds_sum") is not None
    assert registry.get_sample_value("seconds_count") == 3
