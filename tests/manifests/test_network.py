"""Network policies: which pods may talk to which."""

from __future__ import annotations

from typing import Any

import pytest

from tests.manifests.rendering import BACKEND, MINIMAL, objects_of, one, with_kubernetes


def namespace(name: str) -> Any:
    """The selector of a namespace by its name."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def tcp(*ports: int) -> Any:
    """TCP ports."""
    return [{"protocol": "TCP", "port": port} for port in ports]


def queries(*ports: int) -> list[dict[str, Any]]:
    """DNS at these ports, by UDP and TCP."""
    return [{"protocol": protocol, "port": port} for port in ports for protocol in ("UDP", "TCP")]


def block(network: str) -> dict[str, Any]:
    """Addresses that are not pods."""
    return {"ipBlock": {"cidr": network}}


def policy(text: str) -> Any:
    """The spec of the only NetworkPolicy."""
    return one(text, "NetworkPolicy")["spec"]


def test_the_plans_edges_and_those_that_it_forgot() -> None:
    """In: the ingress controller, and monitoring to the metrics port. Out: DNS by UDP and TCP, and vLLM."""
    spec = policy(MINIMAL)
    assert spec["podSelector"] == {"matchLabels": {"app": "api-router-service"}}
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [
        {"from": [namespace("ingress-nginx")], "ports": tcp(8080)},
        {"from": [namespace("monitoring")], "ports": tcp(9090)},
    ]
    dns = namespace("kube-system") | {"podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    assert spec["egress"] == [
        {"to": [dns, namespace("openshift-dns")], "ports": queries(53, 5353)},
        {"to": [block("169.254.20.10/32"), block("169.254.169.254/32")], "ports": queries(53)},
        {"to": [namespace("system")], "ports": tcp(8000)},
    ]


@pytest.mark.parametrize(
    ("network", "url", "peers", "port"),
    [
        pytest.param("{}", "http://vllm.gpu:8000", [namespace("gpu")], 8000, id="guessed from the Service's name"),
        pytest.param(
            "{pod_labels: {app: vllm}, port: 9000}",
            "http://vllm.gpu",
            [namespace("gpu") | {"podSelector": {"matchLabels": {"app": "vllm"}}}],
            9000,
            id="pods and their own port",
        ),
        pytest.param(
            "{}",
            "https://llm.example.com",
            [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}],
            443,
            id="a host outside",
        ),
        pytest.param("{}", "http://192.0.2.7:8000", [{"ipBlock": {"cidr": "192.0.2.7/32"}}], 8000, id="an address"),
    ],
)
def test_a_backend_is_reached_where_its_pods_are(network: str, url: str, peers: list[Any], port: int) -> None:
    """Pods of its own namespace at their own port, or addresses for a backend outside the cluster."""
    text = f"backends: {{a: {{url: '{url}', models: [m], network: {network}}}}}\nkubernetes: {{host: a.b}}\n"
    assert policy(text)["egress"][-1] == {"to": peers, "ports": tcp(port)}


@pytest.mark.parametrize(
    ("store", "hints", "peer", "port"),
    [
        pytest.param("redis://redis.data/0", "{}", namespace("data"), 6379, id="Redis's own port"),
        pytest.param("redis://redis:7000/0", "{}", namespace("system"), 7000, id="beside us"),
        pytest.param(
            "redis://cache.example.com:6380",
            "{namespace: data, pod_labels: {app: redis}, port: 6379}",
            namespace("data") | {"podSelector": {"matchLabels": {"app": "redis"}}},
            6379,
            id="where the operator says",
        ),
    ],
)
def test_the_shared_store_is_reached(store: str, hints: str, peer: Any, port: int) -> None:
    """A shared store is one of the Plan's edges."""
    text = with_kubernetes(network_policy=f"{{store: {hints}}}") + f"rate_limit: {{store: '{store}'}}\n"
    assert policy(text)["egress"][-1] == {"to": [peer], "ports": tcp(port)}


@pytest.mark.parametrize(
    ("endpoint", "hints", "peer", "port"),
    [
        pytest.param("http://otel.monitoring:4318", "{}", namespace("monitoring"), 4318, id="a Service"),
        pytest.param(
            "http://otel:80",
            "{pod_labels: {app: otel}, port: 4318}",
            namespace("system") | {"podSelector": {"matchLabels": {"app": "otel"}}},
            4318,
            id="where the operator says",
        ),
    ],
)
def test_the_collector_of_traces_is_reached(endpoint: str, hints: str, peer: Any, port: int) -> None:
    """Spans leave the pod."""
    traces = f"monitoring: {{traces: {{endpoint: '{endpoint}'}}}}\n"
    text = with_kubernetes(network_policy=f"{{collector: {hints}}}") + traces
    assert policy(text)["egress"][-1] == {"to": [peer], "ports": tcp(port)}


def test_a_collector_beside_the_gateway_needs_no_rule() -> None:
    """No policy concerns a sidecar."""
    traces = "monitoring: {traces: {endpoint: 'http://localhost:4318'}}\n"
    assert policy(with_kubernetes() + traces)["egress"] == policy(with_kubernetes())["egress"]


@pytest.mark.parametrize(
    ("store", "hints", "rules"),
    [
        pytest.param(
            "redis+sentinel://s1.data,s2.data:5000/name",
            "{}",
            [(namespace("data"), (26379, 6379)), (namespace("data"), (5000, 6379))],
            id="sentinels and what they name",
        ),
        pytest.param(
            "redis+sentinel://s.data:7000/name",
            "{port: 7000}",
            [(namespace("data"), (7000,))],
            id="all at one port",
        ),
        pytest.param(
            "redis+cluster://r1.data,r2.data",
            "{}",
            [(namespace("data"), (6379,))],
            id="nodes of a cluster in one place",
        ),
        pytest.param(
            "rediss+cluster://clustercfg.limits.euw1.cache.amazonaws.com",
            "{}",
            [(None, (6379,))],
            id="a cluster outside: any address",
        ),
    ],
)
def test_the_servers_of_a_store_are_reached(store: str, hints: str, rules: Any) -> None:
    """Sentinels and nodes in the address, and further ones that they name."""
    text = with_kubernetes(network_policy=f"{{store: {hints}}}") + f"rate_limit: {{store: '{store}'}}\n"
    anywhere = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
    expected = [{"to": anywhere if peer is None else [peer], "ports": tcp(*ports)} for peer, ports in rules]
    assert policy(text)["egress"][-len(expected) :] == expected


@pytest.mark.parametrize(
    ("fields", "peers"),
    [
        pytest.param({"ingress": "{controller_namespace: traefik}"}, [namespace("traefik")], id="an ingress"),
        pytest.param(
            {"expose": "gateway", "gateway": "{name: g, namespace: gw}"}, [namespace("gw")], id="a Gateway's namespace"
        ),
        pytest.param(
            {"expose": "gateway", "gateway": "{name: g, namespace: gw, controller_namespace: envoy}"},
            [namespace("envoy")],
            id="a Gateway whose pods are elsewhere",
        ),
        pytest.param(
            {"expose": "gateway", "gateway": "{name: g}"}, [namespace("system")], id="a Gateway of our namespace"
        ),
        pytest.param({"expose": "none"}, [{"namespaceSelector": {}}], id="nothing: any pod of the cluster"),
    ],
)
def test_requests_come_from_where_we_are_exposed(fields: dict[str, str], peers: list[Any]) -> None:
    """No other pod gets to the port; the metrics port is not among it."""
    assert policy(with_kubernetes(**fields))["ingress"][0] == {"from": peers, "ports": tcp(8080)}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(with_kubernetes(network_policy="{monitoring_namespace: null}"), id="nobody scrapes"),
        pytest.param(MINIMAL + "monitoring: {prometheus: false}\n", id="nothing to scrape"),
    ],
)
def test_the_metrics_port_is_closed_where_nobody_needs_it(text: str) -> None:
    """Only one way in is left."""
    assert len(policy(text)["ingress"]) == 1


def test_admin_port_appears_in_no_object_but_the_config() -> None:
    """Only `kubectl port-forward` reaches it: it listens on the pod's own loopback."""
    found = objects_of(MINIMAL + "monitoring: {admin_port: 19191}\n")
    named = [name for name, item in found.items() if "19191" in repr(item)]
    assert [name for name in named if not name.startswith("ConfigMap")] == []
    assert len(named) == 1


@pytest.mark.parametrize(
    ("dns", "rules"),
    [
        ("{namespace: dns}", [{"to": [namespace("dns")], "ports": queries(53, 5353)}]),
        ("{namespace: dns, pod_labels: {}, port: 1053}", [{"to": [namespace("dns")], "ports": queries(1053)}]),
        (
            "{pod_labels: {app: dns}}",
            [
                {
                    "to": [namespace("kube-system") | {"podSelector": {"matchLabels": {"app": "dns"}}}],
                    "ports": queries(53, 5353),
                }
            ],
        ),
        ("{cidrs: [10.0.0.10/32]}", [{"to": [block("10.0.0.10/32")], "ports": queries(53)}]),
        (
            "{namespace: dns, cidrs: [10.0.0.10/32]}",
            [
                {"to": [namespace("dns")], "ports": queries(53, 5353)},
                {"to": [block("10.0.0.10/32")], "ports": queries(53)},
            ],
        ),
    ],
    ids=["a namespace", "a port", "labels", "no pods", "both"],
)
def test_the_clusters_dns_may_be_elsewhere(dns: str, rules: list[Any]) -> None:
    """As configured, and nowhere else: the metadata server is at one of the usual addresses."""
    assert policy(with_kubernetes(network_policy=f"{{dns: {dns}}}"))["egress"][:-1] == rules


def test_a_disabled_policy_is_not_rendered() -> None:
    """Neither the gateway's nor those of engines."""
    text = "backends: {a: {engine: {kind: vllm}, models: [m]}}\n"
    text += "kubernetes: {host: a.b, network_policy: {enabled: false}}\n"
    assert [name for name in objects_of(text) if name.startswith("NetworkPolicy/")] == []


def test_engine_admits_only_the_gateway_and_monitoring() -> None:
    """The engine has no keys of its own; outwards it fetches its weights."""
    text = BACKEND + "  own: {engine: {kind: vllm}, models: [n]}\nkubernetes: {host: a.b}\n"
    made = objects_of(text)
    engine = made["NetworkPolicy/api-router-engine-own"]["spec"]
    assert engine["policyTypes"] == ["Ingress"]
    gateway = {"podSelector": {"matchLabels": {"app": "api-router-service"}}}
    assert engine["ingress"] == [
        {"from": [gateway], "ports": tcp(8000)},
        {"from": [namespace("monitoring")], "ports": tcp(8000)},
    ]
    to_engine = {"podSelector": {"matchLabels": {"app": "api-router-engine-own"}}}
    egress = made["NetworkPolicy/api-router-network-policy"]["spec"]["egress"]
    assert {"to": [to_engine], "ports": tcp(8000)} in egress


def test_further_sources_and_destinations_are_rules_of_their_own() -> None:
    """Sources reach the API's port unless they name others; destinations are reached at every port, or at theirs."""
    policies = """{ingress: [
      {cidrs: [10.0.0.0/8, 2001:db8::/32]},
      {namespace: apps, pod_labels: {app: chat}, ports: [8080, 9090]},
      {namespace_labels: {policy-group.network.openshift.io/host-network: ''}},
      {pod_labels: {app: mesh}}],
    egress: [{cidrs: [192.0.2.1/32], ports: [3128]}, {namespace: istio-system}]}"""
    spec = policy(with_kubernetes(network_policy=" ".join(policies.split())))
    chat = namespace("apps") | {"podSelector": {"matchLabels": {"app": "chat"}}}
    mesh = namespace("system") | {"podSelector": {"matchLabels": {"app": "mesh"}}}
    nodes = {"namespaceSelector": {"matchLabels": {"policy-group.network.openshift.io/host-network": ""}}}
    assert spec["ingress"][2:] == [
        {"from": [block("10.0.0.0/8"), block("2001:db8::/32")], "ports": tcp(8080)},
        {"from": [chat], "ports": tcp(8080, 9090)},
        {"from": [nodes], "ports": tcp(8080)},
        {"from": [mesh], "ports": tcp(8080)},
    ]
    assert spec["egress"][-2:] == [
        {"to": [block("192.0.2.1/32")], "ports": tcp(3128)},
        {"to": [namespace("istio-system")]},
    ]
