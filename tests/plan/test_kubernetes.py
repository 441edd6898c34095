"""The decisions behind the manifests."""

from __future__ import annotations

import pytest

from tests.manifests.rendering import plan_of, with_kubernetes

ENGINE = "backends:\n  {name}: {{engine: {{kind: vllm}}, models: [m]}}\nkubernetes: {{host: a.example.com{more}}}\n"


@pytest.mark.parametrize(
    ("endpoints", "paths"),
    [
        pytest.param("[/v1/completions]", (("/v1", True), ("/health", False)), id="one below /v1"),
        pytest.param(
            "[/tokenize, /v1/models]", (("/v1", True), ("/tokenize", False), ("/health", False)), id="models count"
        ),
        pytest.param("[/tokenize]", (("/tokenize", False), ("/health", False)), id="none below /v1"),
    ],
)
def test_served_paths_are_routed_and_no_others(endpoints: str, paths: tuple[tuple[str, bool], ...]) -> None:
    """The backend's own paths are reached from outside, and /health; /ready and /metrics are not."""
    text = f"backends: {{a: {{url: 'http://a', models: [m], endpoints: {endpoints}}}}}\nkubernetes: {{host: a.b}}\n"
    assert plan_of(text).paths == paths


def test_names_begin_with_the_plans_stem() -> None:
    """With nothing configured the objects have the plan's names."""
    plan = plan_of(with_kubernetes(immutable_config="false"))
    assert (plan.app, plan.config_name, plan.keys_secret, plan.tls_secret) == (
        *("api-router-service", "api-router-config", "api-router-keys", "api-router-tls"),
    )


def test_an_immutable_config_map_is_named_by_its_content() -> None:
    """Another config is another ConfigMap; another annotation of the ingress is not."""
    name = plan_of(with_kubernetes()).config_name
    assert name.startswith("api-router-config-")
    assert plan_of(with_kubernetes(ingress="{annotations: {a: b}}")).config_name == name
    assert plan_of(with_kubernetes() + "request: {max_choices: 2}\n").config_name != name


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        pytest.param("qwen", "api-router-engine-qwen", id="a plain name"),
        pytest.param("Qwen.3", "api-router-engine-qwen-3-", id="one that no Service may have"),
        pytest.param("q" * 60, "api-router-engine-" + "q" * 38 + "-", id="a long one"),
    ],
)
def test_an_engines_name_fits_a_service(backend: str, name: str) -> None:
    """At most 63 lower-case letters, digits and dashes; two backends never share one."""
    [engine] = plan_of(ENGINE.format(name=backend, more="")).engines
    assert engine.name.startswith(name)
    assert len(engine.name) <= 63
    assert engine.name == name or engine.name.removeprefix(name).isalnum()


def test_the_grace_period_outlasts_pre_stop_and_drain() -> None:
    """10 s until proxies have noticed, the drain, 10 s to leave."""
    assert plan_of(with_kubernetes() + "server: {drain_timeout: 90500ms}\n").grace == 10 + 91 + 10


def test_each_peer_is_an_edge_once() -> None:
    """Two replicas of one namespace and port are one peer; engines that the gateway starts are not peers."""
    text = """
backends:
  a: {urls: ["http://v-1.gpu:8000", "http://v-2.gpu:8000", "http://v-3.gpu:9000"], models: [m]}
  b: {engine: {kind: vllm}, models: [n]}
  c: {enabled: false, url: "http://elsewhere.example.com", models: [o]}
kubernetes: {host: a.b}
"""
    assert [(edge.namespace, edge.ports) for edge in plan_of(text).outgoing] == [("gpu", (8000,)), ("gpu", (9000,))]


def test_a_name_that_resolves_to_many_is_an_edge_too() -> None:
    """`dns: name:port` leads to the pods of a headless Service."""
    text = "backends: {a: {dns: 'vllm.gpu:8000', models: [m]}}\nkubernetes: {host: a.b}\n"
    assert [(edge.namespace, edge.ports) for edge in plan_of(text).outgoing] == [("gpu", (8000,))]


def test_no_repr_shows_what_an_engines_environment_holds() -> None:
    """The values of engine.env stay out of tracebacks and logs."""
    text = "backends: {a: {engine: {kind: vllm, env: {X: hunter2}}, models: [m]}}\nkubernetes: {host: a.b}\n"
    assert "hunter2" not in repr(plan_of(text).engines)
