"""Rules for a config that is to run in containers on one machine."""

from __future__ import annotations

import pytest

from aiaas.config.compose import check_compose
from aiaas.config.load import load_text

BACKEND = "backends: {vllm: {url: 'http://10.0.0.7:8000', models: [m]}}\n"
ENGINE = "backends: {vllm: {engine: {kind: vllm, %s}, models: [m]}}\n"


def found(text: str) -> list[str]:
    """Severity, code and field of each problem."""
    loaded = load_text(text, file="f", env={})
    assert loaded.config is not None
    return [f"{each.severity} {each.code} {each.path}" for each in check_compose(loaded)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(BACKEND, [], id="a machine elsewhere"),
        pytest.param(BACKEND.replace("10.0.0.7", "host.docker.internal"), [], id="this machine, as Docker calls it"),
        pytest.param(BACKEND.replace("10.0.0.7", "localhost"), ["error AIA405 backends.vllm.url"], id="localhost"),
        pytest.param(
            BACKEND + "rate_limit: {store: 'redis://127.0.0.1/0'}\n", ["error AIA405 rate_limit.store"], id="store here"
        ),
        pytest.param(
            BACKEND + "monitoring: {traces: {endpoint: 'http://[::1]:4318'}}\n",
            ["error AIA405 monitoring.traces.endpoint"],
            id="collector here",
        ),
        pytest.param(BACKEND + "server: {host: 127.0.0.1}\n", [], id="published on this machine only"),
        pytest.param(BACKEND + "server: {host: localhost}\n", [], id="the same by its name"),
        pytest.param(BACKEND + "server: {host: gw.lan}\n", ["error AIA103 server.host"], id="published at a name"),
    ],
)
def test_containers_reach_only_what_is_outside_of_them(text: str, expected: list[str]) -> None:
    """127.0.0.1 inside of a container is the container; a port is published at an address."""
    assert found(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            BACKEND.replace("models", "total_timeout: 6m, models"),
            ["warning AIA504 backends.vllm.total_timeout"],
            id="requests that outlast the drain",
        ),
        pytest.param(
            ENGINE % "args: {shutdown-timeout: 5}",
            ["warning AIA504 backends.vllm.engine.args.shutdown-timeout"],
            id="an engine that ends before the gateway",
        ),
        pytest.param(BACKEND + "server: {drain_timeout: 2h}\n", [], id="a drain that only a cluster's autoscaler cuts"),
        pytest.param(
            BACKEND + "server: {workers: 4}\n",
            ["warning AIA506 kubernetes.resources.limits.memory", "warning AIA506 server.workers"],
            id="more workers than the container has room for",
        ),
        pytest.param(BACKEND + "kubernetes: {replicas: {min: 1, max: 1}}\n", [], id="replicas of a cluster"),
    ],
)
def test_timeouts_and_drains_are_checked_as_in_a_cluster(text: str, expected: list[str]) -> None:
    """Without the rules about the cluster itself."""
    assert sorted(found(text)) == sorted(expected)


def test_file_that_cannot_be_read_has_no_further_problems() -> None:
    """`check_compose` judges what there is."""
    assert check_compose(load_text("backends: [", file="f", env={})) == ()
