"""aiaas.plan.traces: every decision about traces is made before the first request."""

from __future__ import annotations

import math
from typing import Any

from aiaas import __version__
from aiaas.plan.model import TRACES_PATH, TracesPlan
from tests.proxy.conftest import config_of, plan_of


def traces_of(env: dict[str, str] | None = None, **settings: Any) -> TracesPlan:
    """The plan of `monitoring.traces`."""
    traces = plan_of(config_of(["http://v"], {}, {"monitoring": {"traces": settings}}), env or {}).monitoring.traces
    assert traces is not None
    return traces


def test_traces_are_off_by_default() -> None:
    """Nothing is exported without an endpoint."""
    assert plan_of(config_of(["http://v"], {}, {})).monitoring.traces is None


def test_the_head_of_an_export_is_complete() -> None:
    """Path below the endpoint's own, Host, and the configured headers."""
    plan = traces_of(
        {"TOKEN": "abc"}, endpoint="https://o.example.com/otlp/", headers={"Authorization": "Basic ${TOKEN}"}
    )
    assert (
        plan.collector.heads[TRACES_PATH]
        == (
            f"POST /otlp/v1/traces HTTP/1.1\r\nHost: o.example.com\r\nUser-Agent: aiaas/{__version__}\r\n"
            "Accept-Encoding: identity\r\nAuthorization: Basic abc\r\n"
        ).encode()
    )
    assert (plan.collector.host, plan.collector.port, plan.collector.tls) == ("o.example.com", 443, True)
    assert "Basic" not in repr(plan)


def test_null_sets_no_bound() -> None:
    """No duration is longer."""
    plan = traces_of(endpoint="http://otel:4318", slow_after=None, slow_ttft=None)
    assert (plan.slow_after, plan.slow_ttft) == (math.inf, math.inf)


def test_the_digest_has_no_secret() -> None:
    """Two gateways that differ in the collector's key behave alike."""
    traces = {"endpoint": "http://o", "headers": {"Authorization": "${TOKEN}"}}
    config = config_of(["http://v"], {}, {"monitoring": {"traces": traces}})
    one, other = plan_of(config, {"TOKEN": "1"}), plan_of(config, {"TOKEN": "2"})
    assert one.digest == other.digest
    assert one != other
