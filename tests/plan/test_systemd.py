"""aiaas.plan.systemd: the decisions for one machine."""

from __future__ import annotations

import pytest

from tests.manifests.services import BACKEND, ENGINE, plan_of

LOCAL = "server: {host: 127.0.0.1}\n"


def test_cluster_section_is_left_out_of_the_config() -> None:
    """One gateway has all of every limit."""
    text = f"rate_limit: {{store: 'redis://192.0.2.1/0'}}\nkubernetes: {{replicas: {{max: 20}}}}\n{BACKEND}"
    plan = plan_of(text)
    assert "kubernetes" not in plan.config_text
    assert plan.gateway.limits.processes == 1


def test_files_are_those_of_a_pod() -> None:
    """So that one page describes all targets."""
    text = "server: {tls: {cert_file: a.pem, key_file: a.key}}\nmonitoring: {usage_file: u.sqlite}\n" + BACKEND
    plan = plan_of(text).gateway
    assert plan.server.tls is not None
    assert str(plan.server.tls.cert_file) == "/etc/aiaas/tls/tls.crt"
    assert str(plan.monitoring.usage_file) == "/var/lib/aiaas/usage.sqlite"
    assert str(plan.auth.keys_file) == "/etc/aiaas/keys/keys.yaml"


@pytest.mark.parametrize(
    ("server", "memory"),
    [
        ("{}", 512),
        ("{workers: 2}", 1024),
        ("{max_body_size: 100MiB}", 1024),  # eight such bodies, one worker, and 2,048 connections
        ("{max_connections: 20000, tls: {cert_file: a.pem, key_file: a.key}}", 1280),
    ],
    ids=["default", "two workers", "large bodies", "many connections"],
)
def test_memory_has_room_for_all_that_the_config_admits(server: str, memory: int) -> None:
    """In steps of 128 MiB."""
    assert plan_of(f"server: {server}\n{BACKEND}").memory == memory


def test_written_limit_of_memory_counts() -> None:
    """It is meant for the same process in a pod."""
    section = "kubernetes: {resources: {limits: {memory: 2Gi}}}\n"
    assert plan_of(section + BACKEND).memory == 2048
    assert plan_of("kubernetes: {resources: {limits: {cpu: 2}}}\n" + BACKEND).memory == 512


@pytest.mark.parametrize(
    ("text", "peers"),
    [
        (LOCAL + BACKEND, ("192.0.2.7",)),
        (LOCAL + ENGINE, ()),
        (f"{LOCAL}rate_limit: {{store: 'redis://localhost/0'}}\n{BACKEND}", ("192.0.2.7",)),
        (f"{LOCAL}rate_limit: {{store: 'redis+sentinel://192.0.2.9/x'}}\n{BACKEND}", None),
        (LOCAL + BACKEND.replace("192.0.2.7", "vllm.example.com"), None),
        (BACKEND, None),
    ],
    ids=["address", "engine", "store here", "sentinel", "name", "open port"],
)
def test_peers_are_known_only_if_all_are(text: str, peers: tuple[str, ...] | None) -> None:
    """A name needs DNS, sentinels announce servers, and an open port has clients from anywhere."""
    assert plan_of(text).peers == peers


@pytest.mark.parametrize(("host", "is_here"), [("127.0.0.1", True), ("redis.example.com", False)])
def test_store_on_this_machine_is_known(host: str, is_here: bool) -> None:
    """The gateway starts after it."""
    assert plan_of(f"rate_limit: {{store: 'redis://{host}/0'}}\n{BACKEND}").store_here is is_here


def test_ports_of_engines_are_those_of_serve() -> None:
    """Derived from the backend's name, or as written."""
    text = "backends: {a: {models: [a], engine: {kind: vllm}}, b: {models: [b], engine: {kind: vllm, port: 18999}}}\n"
    plan = plan_of(text)
    assert [engine.name for engine in plan.engines] == ["vllm-a", "vllm-b"]
    ports = [engine.engine.port for engine in plan.engines]
    assert ports[1] == 18999
    assert [endpoint.port for backend in plan.gateway.backends for endpoint in backend.endpoints] == ports


def test_variables_are_those_of_the_gateway_alone() -> None:
    """An engine's token is not for the gateway."""
    text = "backends: {a: {models: [a], api_key_env: KEY, engine: {kind: vllm, env: {HF_TOKEN: '${TOKEN}'}}}}\n"
    plan = plan_of(text, {"KEY": "k", "TOKEN": "t"})
    assert plan.variables == ("KEY",)
    assert plan.engines[0].variables == {"KEY", "TOKEN"}
