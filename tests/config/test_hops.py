"""How patient a hop in front of the gateway must be."""

from __future__ import annotations

import pytest

from aiaas.config.hops import NO_BOUND, ingress_timeout, longest_silence, request_timeout
from aiaas.config.load import load_text
from aiaas.config.model import Config


def config_of(*backends: str) -> Config:
    """A config whose backends have these further fields."""
    lines = [f"  b{i}: {{url: 'http://b{i}', models: [m{i}], {fields}}}" for i, fields in enumerate(backends)]
    loaded = load_text("backends:\n" + "\n".join(lines) + "\n", file="f", env={})
    assert loaded.config is not None, loaded.problems
    return loaded.config


@pytest.mark.parametrize(
    ("backends", "seconds"),
    [
        pytest.param(["timeout: 120s"], 135, id="the plan: three connections of 5 s, then 120 s"),
        pytest.param(["timeout: 120s, max_retries: 0, connect_timeout: 2s"], 122, id="no retries"),
        pytest.param(["timeout: 60s, max_inflight: 4"], 105, id="30 s in the queue"),
        pytest.param(["timeout: 60s", "timeout: 200s, max_retries: 0"], 205, id="the longest of two"),
        pytest.param(["timeout: 60s", "timeout: 200s, enabled: false"], 75, id="a parked one does not count"),
        pytest.param(["timeout: 60s, total_timeout: 62s"], 62, id="a total timeout bounds it"),
    ],
)
def test_the_longest_silence(backends: list[str], seconds: float) -> None:
    """Queue, failed connections and timeout add up; the slowest backend counts."""
    config = config_of(*backends)
    assert longest_silence(config) == seconds
    assert ingress_timeout(config) == seconds + 10


def test_a_whole_request_is_bounded_only_where_every_backend_bounds_it() -> None:
    """One backend without total_timeout may stream for hours."""
    assert request_timeout(config_of("total_timeout: 200s", "total_timeout: 300s")) == 310
    assert request_timeout(config_of("total_timeout: 200s", "timeout: 10s")) == NO_BOUND
