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
