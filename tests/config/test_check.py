"""Rules between fields. What each says is in cases/; here is what holds for all of them."""

from __future__ import annotations

from aiaas.config.check import check, engine_port
from aiaas.config.load import load_text

MINIMAL = "backends:\n  vllm:\n    url: http://vllm:8000\n    models: [m]\n"


def test_checks_run_beside_errors_in_single_fields() -> None:
    """A wrong value does not hide a contradiction elsewhere, nor does it earn a second problem of its own."""
    text = (
        "auth: {enabled: 3}\nrate_limit: {requests_per_minute: null, burst: 5}\nbackends:\n  a: {url: 7, models: [m]}\n"
    )
    loaded = load_text(text, file="f", env={})
    assert [problem.code for problem in loaded.problems] == ["AIA103", "AIA103"]
    assert [problem.path for problem in check(loaded, {})] == ["rate_limit.burst"]


def test_a_disabled_backend_needs_no_key_and_takes_no_port() -> None:
    """A parked backend is not held to what matters only when it runs."""
    text = MINIMAL + "  parked: {enabled: false, engine: {kind: vllm, port: 8080}, models: [m], api_key_env: UNSET}\n"
    loaded = load_text(text, file="f", env={})
    assert check(loaded, {}) == ()


def test_an_engines_port_is_its_place_in_the_file() -> None:
    """Disabling one backend does not move the others' engines."""
    text = "backends:\n  a: {enabled: false, url: 'http://a', models: [a]}\n"
    text += "  b: {engine: {kind: simulator}, models: [b]}\n"
    loaded = load_text(text, file="f", env={})
    assert loaded.config is not None
    assert engine_port(loaded.config, "b") == 18101


def test_a_plain_config_has_no_problem() -> None:
    """The defaults go together."""
    assert check(load_text(MINIMAL, file="f", env={}), {}) == ()
