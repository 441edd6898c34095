"""aiaas.config.otlp: a collector can be reached by OTLP over HTTP, and its headers can be sent."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from aiaas.config.check import check
from aiaas.config.load import load_text


def problems_of(**traces: Any) -> list[str]:
    """The problems of a config with this section `monitoring.traces`, without their places."""
    config = {"backends": {"a": {"url": "http://v", "models": ["m"]}}, "monitoring": {"traces": traces}}
    env = {"TOKEN": "abc", "LINES": "a\r\nb"}
    loaded = load_text(yaml.safe_dump(config), file="f", env=env)
    return [str(problem).partition("monitoring.traces.")[2] for problem in (*loaded.problems, *check(loaded, env))]


def test_a_collector_with_headers_is_valid() -> None:
    """With a path of its own, by TLS, a secret from the environment, a name in plain text."""
    headers = {"Authorization": "Basic ${TOKEN}", "X-Scope-OrgID": "team a"}
    assert problems_of(endpoint="https://o.example.com/otlp", headers=headers) == []


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        pytest.param("otel:4318", "must start with http://", id="no scheme"),
        pytest.param("http://otel:4318/v1/traces", "must not contain /v1, since requests include it", id="whole path"),
        pytest.param("http://otel:4317", "4317 is the port of OTLP over gRPC", id="the port of gRPC"),
    ],
)
def test_an_endpoint_that_cannot_work_is_reported(endpoint: str, problem: str) -> None:
    """The usual mistakes name their fix."""
    (found,) = problems_of(endpoint=endpoint)
    assert found.startswith(f"endpoint: {problem}")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        pytest.param("a b", "x", "is not a valid header name", id="a space in the name"),
        pytest.param("Content-Type", "x", "aiaas writes this header itself", id="one of aiaas's own"),
        pytest.param("a", "", "is empty", id="empty"),
        pytest.param("a", "${LINES}", "is empty, or has characters", id="a line break"),
        pytest.param("authorization", "Basic abc", "this is the value of authorization in plain text", id="a secret"),
        pytest.param("X-Api-Key", "abc", "this is the value of X-Api-Key in plain text", id="a key"),
    ],
)
def test_a_header_that_cannot_be_sent_is_reported(name: str, value: str, problem: str) -> None:
    """By its name, without its value."""
    (found,) = problems_of(endpoint="http://otel:4318", headers={name: value})
    assert found.startswith(f"headers.{name}: {problem}")
    assert "abc" not in found
