"""How long a hop in front of the gateway must wait."""

from __future__ import annotations

import pytest

from aiaas.config.hops import (
    LONGEST_PAUSE,
    UNBOUNDED_SECONDS,
    grace_period,
    ingress_timeout,
    longest_silence,
    pre_stop,
    request_timeout,
    usual_silence,
)
from aiaas.config.load import load_text
from aiaas.config.model import Config
from aiaas.proxy.upstream.forward import RETRY_AFTER_MOST, longest_backoff


def config_of(*backends: str) -> Config:
    """A config whose backends have these further fields."""
    lines = [f"  b{i}: {{url: 'http://b{i}', models: [m{i}], {fields}}}" for i, fields in enumerate(backends)]
    loaded = load_text("backends:\n" + "\n".join(lines) + "\n", file="f", env={})
    assert loaded.config is not None, loaded.problems
    return loaded.config


@pytest.mark.parametrize(
    ("backends", "usual", "longest"),
    [
        pytest.param(["timeout: 120s"], 165, 419, id="the plan: 30 s in the queue, three attempts, two pauses"),
        pytest.param(["timeout: 120s, max_retries: 0, connect_timeout: 2s"], 152, 152, id="no retries"),
        pytest.param(["timeout: 60s, max_inflight: 4"], 105, 239, id="a bound"),
        pytest.param(["timeout: 60s, max_inflight: null"], 75, 209, id="no queue"),
        pytest.param(["timeout: 60s", "timeout: 300s, max_retries: 0"], 335, 335, id="the longest of two"),
        pytest.param(["timeout: 60s", "timeout: 200s, enabled: false"], 105, 239, id="a parked one does not count"),
        pytest.param(["timeout: 60s, total_timeout: 62s, max_inflight: 1"], 62, 62, id="a total timeout bounds it"),
    ],
)
def test_the_silence(backends: list[str], usual: float, longest: float) -> None:
    """Queue, connections and timeout add up, and again for each further attempt; the slowest backend counts."""
    config = config_of(*backends)
    assert usual_silence(config) == usual
    assert longest_silence(config) == longest
    assert ingress_timeout(config) == longest + 10


def test_a_fallback_is_tried_again_as_often_as_either_says() -> None:
    """A request keeps the timeout of its first choice, and takes the queue and the attempts of its fallback."""
    text = """
backends:
  first: {url: http://a, timeout: 100s, max_retries: 0, connect_timeout: 1s, models: [a, shared]}
  second: {url: http://b, timeout: 10s, max_retries: 1, max_inflight: 1, connect_timeout: 2s, models: [b, shared]}
  other: {url: http://c, timeout: 10s, max_retries: 9, connect_timeout: 1s, models: [c]}
"""
    config = load_text(text, file="f", env={}).config
    assert config is not None
    assert longest_silence(config) == 30 + 2 * (2 + 100) + 7


def test_a_pause_is_as_long_as_the_gateway_makes_it() -> None:
    """A change of `forward`'s pauses changes how long an ingress must wait."""
    assert RETRY_AFTER_MOST + longest_backoff(100) == LONGEST_PAUSE


def test_request_is_bounded_only_if_every_backend_is() -> None:
    """One backend without total_timeout may stream for hours."""
    assert request_timeout(config_of("total_timeout: 200s", "total_timeout: 300s")) == 310
    assert request_timeout(config_of("total_timeout: 200s", "timeout: 10s")) == UNBOUNDED_SECONDS


def test_grace_period_is_rounded_up() -> None:
    """The drain, time to close connections, and what passes before the gateway learns of its end."""
    assert grace_period(300.0, before=10) == 320
    assert grace_period(0.2, before=0) == 11


def test_a_load_balancer_is_given_the_time_of_its_health_checks() -> None:
    """It sends new connections to a missing pod until three of them have failed."""
    text = "backends:\n  b: {url: 'http://b', models: [m]}\nkubernetes: {expose: %s}\n"
    found = {}
    for expose in ("ingress", "gateway", "none", "loadbalancer"):
        config = load_text(text % expose, file="f", env={}).config
        assert config is not None
        found[expose] = pre_stop(config)
    assert found == {"ingress": 10, "gateway": 10, "none": 10, "loadbalancer": 40}
