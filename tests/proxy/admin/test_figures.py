"""aiaas.proxy.admin.figures: figures out of metric families."""

from __future__ import annotations

import pytest

from aiaas.proxy.admin.figures import Figures, quantile
from aiaas.proxy.admin.model import CachedView, ModelView, TotalsView
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import Record


def record(**facts: object) -> Record:
    """A request that has ended."""
    return Record("id", "/v1/chat/completions", 0.0, "127.0.0.1", **facts)  # type: ignore[arg-type]


def test_counts_are_those_of_the_metrics() -> None:
    """By model, by backend and in all."""
    metrics = Metrics()
    metrics.finished(
        record(model="m", status=200, input_tokens=3, output_tokens=5, cached_tokens=2, backend="b", ttft=0.3), 1.0
    )
    metrics.finished(record(model="m", status=200, session_turn="stayed", backend="b"), 1.0)
    metrics.finished(record(model="n", status=429, error_code="rate_limit_exceeded"), 0.0)
    metrics.refused("rate_limit_exceeded")
    counts = Figures(metrics.collect())
    assert counts.totals == TotalsView(3, 1, 1, 3, 5)
    first, second = counts.models
    buckets = dict(first.ttft_buckets)
    assert (buckets[0.25], buckets[0.5], buckets[None]) == (0, 1, 1)
    first.ttft_buckets = second.ttft_buckets = []
    assert first == ModelView("m", 2, 0, 3, 5, pytest.approx(0.375), pytest.approx(0.4875))
    assert second == ModelView("n", 1, 1)
    assert counts.turns["b"] == {"stayed": 1}
    assert counts.cached["b"] == CachedView(2, 1)
    assert counts.process.memory


@pytest.mark.parametrize(
    ("part", "buckets", "value"),
    [
        pytest.param(0.5, [], None, id="nothing"),
        pytest.param(0.5, [(1.0, 0), (float("inf"), 0)], None, id="no observation"),
        pytest.param(0.5, [(2.0, 10), (1.0, 0), (float("inf"), 10)], 1.5, id="within a bucket"),
        pytest.param(0.99, [(1.0, 10), (float("inf"), 100)], 1.0, id="above all bounds"),
    ],
)
def test_quantile_lies_between_bounds(part: float, buckets: list[tuple[float, float]], value: float | None) -> None:
    """As Prometheus' histogram_quantile."""
    assert quantile(part, buckets) == value
