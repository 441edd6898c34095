"""Configs that cannot be deployed, or not as they are meant, reported by field; and the variables that pods need."""

from __future__ import annotations

from typing import Any

import pytest

from aiaas.config.deployment import STAND_IN, check_deployment, literal_names, plain_values, pod_names
from aiaas.config.load import load_text
from tests.manifests.rendering import BACKEND, TLS, plan_of, plan_or_problems, with_kubernetes


def warnings_of(text: str, env: dict[str, str] | None = None) -> list[str]:
    """The warnings about a deployment, each without its place."""
    found = check_deployment(load_text(text, file="f", env=env or {}))
    return [str(problem).partition(": ")[2] for problem in found if problem.severity == "warning"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(BACKEND, "kubernetes.host: is required for expose: ingress", id="no host for the ingress"),
        pytest.param(
            BACKEND + "kubernetes: {expose: gateway, gateway: {name: g}}\n",
            "kubernetes.host: is required",
            id="no host for a Gateway",
        ),
        pytest.param(
            with_kubernetes(expose="gateway"), "kubernetes.gateway.name: is required", id="no Gateway to attach to"
        ),
        pytest.param(
            with_kubernetes(expose="loadbalancer"), "kubernetes.expose: loadbalancer needs server.tls", id="plain text"
        ),
        pytest.param(
            with_kubernetes(expose="gateway", gateway="{name: g, section: https}") + TLS,
            "server.tls: a Gateway speaks plain HTTP",
            id="TLS twice",
        ),
        pytest.param(
            with_kubernetes(ingress="{class: traefik}") + TLS,
            "server.tls: Traefik would reject the certificate",
            id="TLS behind Traefik",
        ),
        pytest.param(
            with_kubernetes() + "server: {host: 127.0.0.1}\n", "server.host: 127.0.0.1 cannot be reached", id="loopback"
        ),
        pytest.param(
            with_kubernetes() + "server: {port: 80}\n", "server.port: 80 needs a capability", id="privileged port"
        ),
        pytest.param(
            "backends: {a: {urls: ['http://a', 'http://localhost:8000'], models: [m]}}\nkubernetes: {host: a.b}\n",
            "backends.a.urls[1]: localhost is the gateway's own pod",
            id="a backend of this machine",
        ),
        pytest.param(
            with_kubernetes() + "rate_limit: {store: 'redis://127.0.0.1'}\n",
            "rate_limit.store: 127.0.0.1 is the gateway's own pod",
            id="a store of this machine",
        ),
        pytest.param(
            with_kubernetes() + "rate_limit: {store: 'rediss://r:6379/0?ssl_ca_certs=ca.pem'}\n",
            "rate_limit.store: ca.pem is not mounted",
            id="authorities of the store",
        ),
        pytest.param(
            with_kubernetes() + "rate_limit: {store: 'rediss://r/0?ssl_certfile=/c.pem&ssl_keyfile=k.pem'}\n",
            "rate_limit.store: k.pem is not mounted",
            id="a file of the store",
        ),
        pytest.param(
            "backends: {a: {url: 'https://a', models: [m], tls: {ca_file: certs/ca.pem}}}\nkubernetes: {host: a.b}\n",
            "backends.a.tls.ca_file: certs/ca.pem is not mounted into the pod; name the ConfigMap or Secret with the "
            "entry ca.pem in kubernetes.authorities",
            id="authorities of a backend",
        ),
        pytest.param(
            "backends: {a: {url: 'https://a', models: [m], tls: {ca_file: our ca.pem}}}\n"
            "kubernetes: {host: a.b, authorities: {secret: company}}\n",
            "backends.a.tls.ca_file: our ca.pem cannot be the name of an entry",
            id="authorities that no entry can be named after",
        ),
        pytest.param(
            "backends: {a: {url: 'http://${HOST}', models: [m]}}\nkubernetes: {host: a.b}\n",
            "kubernetes.env: HOST is used",
            id="a variable without a place",
        ),
        pytest.param(
            "backends: {a: {url: 'http://a', models: [m], api_key_env: HOST}}\nkubernetes: {host: a.b}\n",
            "kubernetes.env: HOST is used",
            id="a backend's key without a place",
        ),
        pytest.param(
            "backends: {a: {url: 'http://a', models: [m], isolate_cache_secret_env: HOST}}\nkubernetes: {host: a.b}\n",
            "kubernetes.env: HOST is used",
            id="the secret of a cache without a place",
        ),
        pytest.param(
            "backends: {a: {engine: {kind: vllm, env: {T: '${HOST}'}}, models: [m]}}\nkubernetes: {host: a.b}\n",
            "kubernetes.env: HOST is used",
            id="an engine's variable without a place",
        ),
    ],
)
def test_undeployable_config_is_reported_by_field(text: str, expected: str) -> None:
    """Each obstacle is one problem with its place and advice; nothing is rendered."""
    plan, problems = plan_or_problems(text, {"HOST": "vllm"})
    assert plan is None
    [problem] = problems
    assert str(problem).partition("error AIA405 ")[2].startswith(expected)
    assert problem.file == "aiaas.yaml"


@pytest.mark.parametrize(
    ("written", "names"),
    [
        pytest.param({"rate_limit": {"store": "redis://:${A}@r"}}, {"A"}, id="in a section"),
        pytest.param({"backends": {"x": {"url": "${A}", "api_key_env": "B"}}}, {"A", "B"}, id="address and key"),
        pytest.param({"backends": {"x": {"isolate_cache_secret_env": "B"}}}, {"B"}, id="the secret of a cache"),
        pytest.param({"kubernetes": {"image": "r:${A}"}}, set(), id="in a manifest"),
        pytest.param({"kubernetes": {"image": "r:${A}"}, "auth": {"keys_file": "${A}"}}, set(), id="in both"),
        pytest.param(
            {
                "backends": {
                    "x": {"engine": {"kind": "vllm", "model": "${A}", "args": {"a": "${B}"}, "env": {"E": "${C}"}}}
                }
            },
            {"C"},
            id="of a vLLM its environment only",
        ),
        pytest.param(
            {"backends": {"x": {"engine": {"kind": "simulator", "args": {"a": "${A}"}}}}}, {"A"}, id="simulator"
        ),
        pytest.param({"backends": [{"x": "${A}"}], "kubernetes": 3}, set(), id="no config"),
        pytest.param(None, set(), id="nothing"),
    ],
)
def test_names_that_are_deployed_as_they_stand(written: Any, names: set[str]) -> None:
    """Their values come in the cluster; fields of a manifest need their values at once."""
    assert literal_names(written) == names


@pytest.mark.parametrize(
    ("written", "names"),
    [
        pytest.param({"backends": {"x": {"enabled": False, "api_key_env": "A"}}}, set(), id="a disabled backend's key"),
        pytest.param({"backends": {"x": {"enabled": False, "url": "${A}"}}}, {"A"}, id="a disabled backend's address"),
        pytest.param({"kubernetes": {"replicas": {"max": "${A}"}, "image": "${B}"}}, set(), id="of manifests"),
        pytest.param({"kubernetes": [], "backends": {"x": 3}}, set(), id="no config"),
    ],
)
def test_pods_need_the_variables_that_they_read(written: Any, names: set[str]) -> None:
    """The ConfigMap keeps disabled backends; nothing reads the key of one."""
    assert pod_names(written) == names


def test_pods_need_what_the_plan_takes_from_secrets() -> None:
    """Two ways to the same names: from the file as written, and from the deployed form."""
    env = dict.fromkeys(("A", "B", "C", "D", "E"), "x" * 32)
    text = """backends:
  a: {url: 'http://${A}', models: [m], api_key_env: B}
  e: {engine: {kind: vllm, env: {T: '${C}'}}, models: [e], isolate_cache: key, isolate_cache_secret_env: D}
  off: {enabled: false, url: 'http://${A}', models: [o], api_key_env: E}
kubernetes:
  host: a.example.com
  env: {A: {secret: s, key: a}, B: {secret: s, key: b}, C: {secret: s, key: c}, D: {secret: s, key: d}}
"""
    plan = plan_of(text, env)
    needed = {*plan.variables}.union(*(engine.variables for engine in plan.engines))
    assert needed == pod_names(load_text(text, file="f", env=env).written) == {"A", "B", "C", "D"}


def test_all_obstacles_come_beside_wrong_fields() -> None:
    """A wrong value elsewhere hides nothing, and a field with a wrong value has only that problem."""
    text = "server: {host: 127.0.0.1, port: no}\n" + BACKEND + "kubernetes: {expose: gateway}\n"
    found = check_deployment(load_text(text, file="f", env={}))
    assert [problem.path for problem in found if problem.severity == "error"] == [
        "server.host",
        "kubernetes.host",
        "kubernetes.gateway.name",
    ]


def test_an_unset_image_is_a_warning() -> None:
    """No registry has aiaas:<version>."""
    [found] = warnings_of(BACKEND + "kubernetes: {host: api.example.com}\n")
    assert found.startswith("warning AIA512 kubernetes.image: is not set")
    assert warnings_of(with_kubernetes()) == []


def test_an_unused_variable_is_a_warning_at_its_entry() -> None:
    """It is not rendered, so a misspelt name would stay unnoticed."""
    text = with_kubernetes(env="{USED: {secret: s, key: a}, UNUSED: {secret: s, key: b}}").replace("vllm-", "${USED}-")
    [found] = warnings_of(text, {"USED": "a"})
    assert found.startswith("warning AIA408 kubernetes.env.UNUSED: nothing in the config uses this variable")


@pytest.mark.parametrize(
    ("more", "count"),
    [
        pytest.param("", 1, id="unknown"),
        pytest.param("network: {namespace: models}, ", 0, id="with its namespace"),
    ],
)
def test_a_host_that_only_the_cluster_knows_is_a_warning(more: str, count: int) -> None:
    """The NetworkPolicy cannot name the pods behind it."""
    text = with_kubernetes(env="{HOST: {secret: s, key: a}}").replace("{url:", "{" + more + "url:")
    found = warnings_of(text.replace("vllm-gpt-oss-20b.system", "${HOST}"), {"HOST": STAND_IN})
    assert len(found) == count
    assert all("the variable in backends.vllm.url is not set here" in each for each in found)


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        pytest.param("{secret: s, key: k}", None, id="a Secret's entry"),
        pytest.param("{secret: s}", "kubernetes.env.KEY: write {secret", id="without its key"),
        pytest.param("{}", "kubernetes.env.KEY: write {secret", id="nothing"),
        pytest.param("{secret: s, key: k, value: v}", "kubernetes.env.KEY: write {secret", id="both"),
        pytest.param("{value: v}", "kubernetes.env.KEY.value: is the key of a backend", id="a key in plain text"),
    ],
)
def test_a_variable_has_one_kind_of_value(entry: str, found: str | None) -> None:
    """And a backend's key is never in plain text."""
    text = with_kubernetes(env=f"{{KEY: {entry}}}").replace("models:", "api_key_env: KEY, models:")
    problems = check_deployment(load_text(text, file="f", env={"KEY": "k"}))
    assert [f"{problem.path}: {problem.message}"[: len(found or "")] for problem in problems] == (
        [found] if found else []
    )


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ({"kubernetes": {"env": {"A": {"value": "a"}, "B": {"secret": "s"}, "C": 3, "D": {"value": 4}}}}, {"A": "a"}),
        ({"kubernetes": {"env": []}}, {}),
        ({"kubernetes": 3}, {}),
        (None, {}),
    ],
)
def test_values_of_the_config_itself_are_known(written: Any, values: dict[str, str]) -> None:
    """From a file of any shape."""
    assert plain_values(written) == values


@pytest.mark.parametrize(
    ("given", "right"), [("{config_map: a}", True), ("{}", False), ("{config_map: a, secret: b}", False)]
)
def test_authorities_come_from_one_object(given: str, right: bool) -> None:
    """A ConfigMap or a Secret."""
    found = check_deployment(load_text(with_kubernetes(authorities=given), file="f", env={}))
    assert [problem.path for problem in found] == ([] if right else ["kubernetes.authorities"])
