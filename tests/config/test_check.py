"""Rules between fields. Their messages are in cases/; here are the properties of all of them."""

from __future__ import annotations

import pytest

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


def ports_of(*lines: str) -> dict[str, int]:
    """The ports of all engines of a config; each line is a backend, or a section."""
    backends = [f"  {line}\n" for line in lines if "models" in line]
    text = "backends:\n" + "".join(backends) + "".join(f"{line}\n" for line in lines if "models" not in line)
    loaded = load_text(text, file="f", env={})
    assert loaded.config is not None
    assert check(loaded, {}) == ()
    running = {name: b for name, b in loaded.config.backends.items() if b.enabled and b.engine is not None}
    return {name: engine_port(loaded.config, name) for name in running}


B = "b: {engine: {kind: simulator}, models: [b]}"


@pytest.mark.parametrize(
    "others",
    [
        ["a: {url: 'http://a', models: [a]}", B],
        [B, "a: {url: 'http://a', models: [a]}"],
        ["a: {engine: {kind: simulator}, models: [a]}", B],
        ["p21: {enabled: false, engine: {kind: simulator}, models: [p]}", B],
        ["a: {engine: {kind: simulator, port: 18999}, models: [a]}", B],
    ],
    ids=["one above", "one below", "another engine", "a disabled one", "one with a port"],
)
def test_a_default_port_follows_from_the_name_alone(others: list[str]) -> None:
    """Whatever else is in the file."""
    assert ports_of(*others)["b"] == ports_of(B)["b"] == 18781


def test_default_ports_never_clash() -> None:
    """Neither with each other nor with a port that the config names."""
    many = [f"n{number}: {{engine: {{kind: simulator}}, models: [m{number}]}}" for number in range(60)]
    ports = ports_of(*many)
    assert len(set(ports.values())) == 60
    assert all(18100 <= port < 19100 for port in ports.values())
    assert ports == ports_of(*many[::-1])
    last = [f"{name}: {{engine: {{kind: simulator}}, models: [{name}]}}" for name in ("n1251", "n1006")]
    assert ports_of(*last) == {"n1006": 19099, "n1251": 18100}
    for taken in ("server: {port: 18781}", "monitoring: {metrics_port: 18781}"):
        assert ports_of(B, taken) == {"b": 18782}
    assert ports_of(B, "a: {engine: {kind: simulator, port: 18781}, models: [a]}") == {"b": 18782, "a": 18781}


def test_a_plain_config_has_no_problem() -> None:
    """The defaults go together."""
    assert check(load_text(MINIMAL, file="f", env={}), {}) == ()
