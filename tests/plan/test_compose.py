"""The decisions behind a compose file."""

from __future__ import annotations

import pytest
import yaml

from aiaas.config.load import load_text
from aiaas.plan.compile import compile_plan
from aiaas.plan.compose import PRIVATE, StoreService
from tests.manifests.composing import BACKEND, compose_plan, engine
from tests.manifests.rendering import plan_of

CLUSTER = "kubernetes: {image: 'r/aiaas:1', host: a.b, replicas: {min: 2, max: 8}}\n"


def test_container_runs_the_plan_of_the_file() -> None:
    """Only places of files and the address differ, which the digest leaves out; a `kubernetes` section changes
    nothing."""
    text = BACKEND + "server: {drain_timeout: 42s}\nrate_limit: {requests_per_minute: 7}\n"
    config = load_text(text, file="f", env={}).config
    assert config is not None
    digest = compile_plan(config).digest
    assert compose_plan(text).gateway.digest == digest
    assert compose_plan(text + CLUSTER).gateway.digest == digest


def test_grace_is_the_clusters_without_pre_stop() -> None:
    """One function computes both; Docker sends SIGTERM at once."""
    text = BACKEND + "server: {drain_timeout: 42.2s}\n" + CLUSTER
    cluster = plan_of(text)
    assert compose_plan(text).grace == cluster.grace - cluster.pre_stop == 43 + 10


def test_one_gateway_has_all_of_every_limit() -> None:
    """Also while the store is away: the cluster's replicas are not there."""
    text = BACKEND + "rate_limit: {store: 'redis://10.0.0.8/0'}\n" + CLUSTER
    assert compose_plan(text).gateway.limits.processes == 1
    assert plan_of(text).gateway.limits.processes == 8


@pytest.mark.parametrize(
    ("host", "address", "inside"),
    [
        pytest.param("0.0.0.0", None, "0.0.0.0", id="all"),
        pytest.param("'::'", None, "::", id="all, with IPv6"),
        pytest.param("127.0.0.1", "127.0.0.1", "0.0.0.0", id="this machine only"),
        pytest.param("localhost", "127.0.0.1", "0.0.0.0", id="the same by its name"),
        pytest.param("192.168.7.1", "192.168.7.1", "0.0.0.0", id="one network"),
    ],
)
def test_host_is_the_machines_address(host: str, address: str | None, inside: str) -> None:
    """In its container the gateway listens everywhere, since only Docker forwards to it."""
    plan = compose_plan(BACKEND + f"server: {{host: {host}}}\n")
    assert (plan.address, plan.gateway.server.host) == (address, inside)


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        pytest.param("memory", None, id="none"),
        pytest.param("redis://redis:6379/0", StoreService("redis", 6379, None), id="without a password"),
        pytest.param("valkey://:${P}@counts/3", StoreService("counts", 6379, "P"), id="with a password"),
        pytest.param("redis://default:${P}@redis:7000", StoreService("redis", 7000, "P"), id="a user and a port"),
        pytest.param("redis://redis.data:6379/0", None, id="a name with dots is elsewhere"),
        pytest.param("redis://10.0.0.8:6379/0", None, id="an address is elsewhere"),
        pytest.param("rediss://redis:6379/0", None, id="TLS needs a certificate"),
        pytest.param("redis://team:${P}@redis:6379/0", None, id="a user of an ACL"),
        pytest.param("redis+sentinel://a:26379,b:26379/main", None, id="sentinels"),
        pytest.param("redis://gateway:6379/0", None, id="a name that is taken"),
    ],
)
def test_store_is_provided_if_a_compose_file_can(store: str, expected: StoreService | None) -> None:
    """A plain server by a short name, with at most a password."""
    text = BACKEND + f"rate_limit: {{store: '{store}'}}\n"
    assert compose_plan(text, {"P": "x"}).store == expected


def test_caddys_clients_are_believed() -> None:
    """Without it all clients have Caddy's address; nothing else reaches the gateway's port then."""
    text = BACKEND + "server: {trusted_proxies: [203.0.113.0/24]}\n"
    assert compose_plan(text).gateway.server.trusted_proxies == ("203.0.113.0/24",)
    assert compose_plan(text, domain="a.b").gateway.server.trusted_proxies == ("203.0.113.0/24", *PRIVATE)


def test_engines_have_their_services_addresses() -> None:
    """The gateway in its container starts no vLLM of its own."""
    plan = compose_plan(engine(args="{max-model-len: 2048}"))
    assert yaml.safe_load(plan.config_text)["backends"]["qwen"]["url"] == "http://engine-qwen:8000"
    assert [each.name for each in plan.engines] == ["engine-qwen"]


def test_machine_itself_is_known_if_it_is_named() -> None:
    """Docker resolves host.docker.internal only where a service asks for it."""
    assert not compose_plan(BACKEND).knows_machine
    assert compose_plan(BACKEND.replace("10.0.0.7", "host.docker.internal")).knows_machine


def test_plain_variables_have_their_values() -> None:
    """`kubernetes.env` may give a value that is not a secret; others come from .env."""
    text = (
        "backends: {vllm: {url: 'http://${HOST}:8000', models: [m], api_key_env: KEY}}\n"
        "kubernetes: {env: {HOST: {value: a.b}, KEY: {secret: s, key: k}}}\n"
    )
    plan = compose_plan(text, {"HOST": "a.b", "KEY": "hunter2"})
    assert plan.variables == ("HOST", "KEY")
    assert plan.values == {"HOST": "a.b"}
    assert "hunter2" not in repr(plan)
