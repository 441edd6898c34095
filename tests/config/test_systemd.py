"""aiaas.config.systemd: what cannot run as a service as it is written."""

from __future__ import annotations

import pytest

from aiaas.config.load import load_text
from aiaas.config.systemd import check_systemd

BACKEND = "backends: {vllm: {url: 'http://192.0.2.7:8000', models: [m]}}\n"
BACKEND_TLS = "backends: {vllm: {url: 'https://192.0.2.7:8000', models: [m], tls: {ca_file: ca.pem}}}\n"


def engine(env: str) -> str:
    """A config with an engine with these variables."""
    return f"backends: {{vllm: {{models: [m], engine: {{kind: vllm, env: {env}}}}}}}\n"


def found(text: str) -> list[tuple[str, str]]:
    """(severity, field) of each problem."""
    loaded = load_text(text, file="aiaas.yaml", env={"A": "a"})
    return [(problem.severity, problem.path) for problem in check_systemd(loaded)]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (f"server: {{host: gateway.example.com}}\n{BACKEND}", "server.host"),
        (BACKEND_TLS, "backends.vllm.tls.ca_file"),
        (f"rate_limit: {{store: 'rediss://192.0.2.1/0?ssl_ca_certs=ca.pem'}}\n{BACKEND}", "rate_limit.store"),
        (engine("{A: 'http://x:${A}@y'}"), "backends.vllm.engine.env.A"),
    ],
    ids=["name as address", "relative authorities", "relative file", "part of a value"],
)
def test_fault_is_an_error_at_its_field(text: str, field: str) -> None:
    """With nothing else beside it."""
    assert found(text) == [("error", field)]


@pytest.mark.parametrize(
    "text",
    [
        BACKEND,
        f"server: {{host: '::1'}}\n{BACKEND}",
        f"server: {{host: localhost, port: 443}}\n{BACKEND}",
        f"rate_limit: {{store: 'rediss://192.0.2.1/0?ssl_ca_certs=/etc/ssl/ca.pem'}}\n{BACKEND}",
        engine("{A: '${A}', B: '$${A} b', C: c}"),
    ],
    ids=["default", "address", "localhost", "absolute file", "whole values"],
)
def test_sound_config_has_no_problem(text: str) -> None:
    """Also with what a pod may not have: a low port, and 127.0.0.1."""
    assert found(text) == []


def test_timeouts_are_checked_as_in_a_cluster() -> None:
    """A request longer than the drain is cut at every restart."""
    text = "server: {drain_timeout: 10s}\nbackends: {vllm: {url: 'http://192.0.2.7', total_timeout: 1h, models: [m]}}\n"
    assert found(text) == [("warning", "backends.vllm.total_timeout")]


def test_file_that_cannot_be_read_has_no_further_problem() -> None:
    """Its own problems are reported by others."""
    assert found("backends: 5\n") == []
