"""aiaas.proxy.telemetry.endpoint_gauges: an endpoint that drains has another series than one that does not."""

from __future__ import annotations

from aiaas.proxy.telemetry.metrics import Metrics


def series(metrics: Metrics) -> set[str]:
    """The endpoint's series, with their values."""
    lines = metrics.expose().decode().splitlines()
    return {line for line in lines if line.startswith("aiaas_endpoint_")}


def test_draining_endpoint_shows_no_health() -> None:
    """So a replica that is shut down at the end of its drain raises no alert; afterwards its health is back."""
    metrics, labels = Metrics(), '{backend="b",endpoint="http://e"}'
    metrics.endpoint_up("b", "http://e", True)
    assert series(metrics) == {f"aiaas_endpoint_up{labels} 1.0"}
    metrics.endpoint_drains("b", "http://e")
    assert series(metrics) == {f"aiaas_endpoint_draining{labels} 1.0"}
    metrics.endpoint_up("b", "http://e", False)
    assert series(metrics) == {f"aiaas_endpoint_up{labels} 0.0"}
    metrics.endpoint_drains("b", "http://e")
    metrics.endpoint_gone("b", "http://e")
    assert series(metrics) == set()
