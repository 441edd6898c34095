"""The way in for clients."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aiaas.manifests.expose import notes, route_duration
from tests.manifests.rendering import BACKEND, MINIMAL, TLS, objects_of, one, plan_of, with_kubernetes

GATEWAY = {"expose": "gateway", "gateway": "{name: public, namespace: gateways, section: https}"}


def annotations(text: str) -> Any:
    """The annotations of the Ingress."""
    return one(text, "Ingress")["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("ingress", "says"),
    [
        ("{class: internal}", ["ingress class internal: aiaas does not know its controller (ingress.controller); set"]),
        ("{class: nginx, controller: none}", ["ingress class nginx: aiaas does not know its controller"]),
        ("{class: haproxy}", ["ingress controller haproxytech: ", "ingress controller haproxy-ingress: "]),
        ("{class: haproxy, controller: haproxytech}", ["ingress controller haproxytech: HAProxy notices"]),
        (
            "{class: openshift-default}",
            ["ingress controller openshift: the router notices each client that leaves only"],
        ),
        ("{class: alb}", ["ingress controller alb: the certificate for api.example.com must exist in ACM"]),
        ("{class: gce}", ["ingress controller gce: the Secret api-router-tls (type kubernetes.io/tls) must exist"]),
        ("{class: nginx}", []),
        ("{class: traefik}", []),
    ],
)
def test_steps_beside_the_annotations_are_said(ingress: str, says: list[str]) -> None:
    """A person has to do it: by controller, or all of it where that is unknown."""
    found = notes(plan_of(with_kubernetes(ingress=ingress)))
    assert len(found) == len(says)
    assert all(note.startswith(begin) for note, begin in zip(found, says, strict=True)), found


def test_an_unknown_controller_is_told_the_figures() -> None:
    """Bodies, silence, and its namespace for the policy."""
    [note] = notes(plan_of(with_kubernetes(ingress="{class: internal}")))
    assert "bodies of more than 32MiB and 429 s of silence" in note
    assert "unless that comes from pods in ingress-nginx" in note


def test_the_operators_annotations_win() -> None:
    """Derived values can be overridden, and others can be added."""
    given = "{annotations: {nginx.ingress.kubernetes.io/proxy-read-timeout: '600', a: b}}"
    found = annotations(with_kubernetes(ingress=given))
    assert (found["nginx.ingress.kubernetes.io/proxy-read-timeout"], found["a"]) == ("600", "b")


def test_without_an_issuer_cert_manager_is_not_asked() -> None:
    """Another tool makes the certificate, under the name that the config gives."""
    text = with_kubernetes(ingress="{cluster_issuer: null, tls_secret: wildcard}")
    assert "cert-manager.io/cluster-issuer" not in annotations(text)
    assert one(text, "Ingress")["spec"]["tls"] == [{"hosts": ["api.example.com"], "secretName": "wildcard"}]


def test_served_paths_are_routed_each_as_it_is() -> None:
    """/v1 as a prefix, others exactly, /health; never /metrics or /ready."""
    text = MINIMAL.replace("models: [m]", "models: [m], endpoints: [/v1/completions, /tokenize]")
    paths = one(text, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert [(path["path"], path["pathType"]) for path in paths] == [
        ("/v1", "Prefix"),
        ("/tokenize", "Exact"),
        ("/health", "Exact"),
    ]


def test_a_path_prefix_is_in_front_of_each_path() -> None:
    """The ingress and the route leave it in the path; the kubelet's probes do not have it."""
    text = MINIMAL.replace("models: [m]", "models: [m], endpoints: [/v1/completions, /tokenize]")
    text += "server: {path_prefix: /llm}\n"
    paths = one(text, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert [(path["path"], path["pathType"]) for path in paths] == [
        ("/llm/v1", "Prefix"),
        ("/llm/tokenize", "Exact"),
        ("/llm/health", "Exact"),
    ]
    container = one(text, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    matches = one(with_kubernetes(**GATEWAY) + "server: {path_prefix: /llm}\n", "HTTPRoute")["spec"]["rules"][0][
        "matches"
    ]
    assert matches[0] == {"path": {"type": "PathPrefix", "value": "/llm/v1"}}


def test_a_route_attaches_to_a_listener_of_the_gateway() -> None:
    """Parent, listener, host and paths; no bound on a whole request, or streams would be cut."""
    spec = one(with_kubernetes(**GATEWAY), "HTTPRoute")["spec"]
    [parent] = spec["parentRefs"]
    assert (parent["name"], parent["namespace"], parent["sectionName"]) == ("public", "gateways", "https")
    assert spec["hostnames"] == ["api.example.com"]
    assert spec["rules"][0]["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert spec["rules"][0]["matches"][0] == {"path": {"type": "PathPrefix", "value": "/v1"}}


def test_a_route_is_bounded_where_every_backend_is() -> None:
    """total_timeout, and 10 s for our own answer to arrive."""
    text = with_kubernetes(**GATEWAY).replace("models: [m]", "models: [m], total_timeout: 200s")
    assert one(text, "HTTPRoute")["spec"]["rules"][0]["timeouts"]["request"] == "210s"


def test_a_certificate_that_nobody_makes_is_said() -> None:
    """Behind a LoadBalancer the Secret must exist already."""
    [note] = notes(plan_of(with_kubernetes(expose="loadbalancer") + TLS))
    assert note == "the Secret api-router-tls (type kubernetes.io/tls) must exist in system"


@pytest.mark.parametrize(
    ("seconds", "written"), [(0, "0s"), (210, "210s"), (604_810, "169h")], ids=["no bound", "minutes", "a week"]
)
def test_a_routes_duration_fits_its_pattern(seconds: int, written: str) -> None:
    """The CRD takes five digits before a unit; a week in seconds has six."""
    assert route_duration(seconds) == written
    assert re.fullmatch(r"([0-9]{1,5}(h|m|s|ms)){1,4}", written)


def test_nothing_may_be_exposed() -> None:
    """expose: none has neither Ingress nor route, and needs no host."""
    made = objects_of(BACKEND + "kubernetes: {image: 'r/a:1', expose: none}\n")
    assert [name for name in made if name.startswith(("Ingress/", "HTTPRoute/"))] == []


def test_several_hosts_share_one_certificate() -> None:
    """Each host has the same paths; a host that is named twice counts once."""
    text = with_kubernetes(more_hosts="[llm.example.com, api.example.com]")
    spec = one(text, "Ingress")["spec"]
    assert spec["tls"] == [{"hosts": ["api.example.com", "llm.example.com"], "secretName": "api-router-tls"}]
    assert [rule["host"] for rule in spec["rules"]] == ["api.example.com", "llm.example.com"]
    assert spec["rules"][0]["http"] == spec["rules"][1]["http"]
    route = one(with_kubernetes(more_hosts="[llm.example.com]", **GATEWAY), "HTTPRoute")["spec"]
    assert route["hostnames"] == ["api.example.com", "llm.example.com"]


@pytest.mark.parametrize("class_name", ["nginx", "traefik", "haproxy", "alb", "gce", "openshift-default"])
def test_an_ingress_may_be_for_plain_http(class_name: str) -> None:
    """Where TLS ends in front of it: no certificate, no issuer, no redirect."""
    made = objects_of(with_kubernetes(ingress=f"{{class: {class_name}, tls: false}}"))
    ingress = made["Ingress/api-router-ingress"]
    assert "tls" not in ingress["spec"]
    named = " ".join(ingress["metadata"].get("annotations", {}))
    assert not [word for word in ("issuer", "redirect", "router.tls", "entrypoints", "Frontend") if word in named]
    assert not [name for name in made if name.startswith("FrontendConfig")]
    assert notes(plan_of(with_kubernetes(ingress="{class: alb, tls: false}"))) == ()


def test_a_route_may_be_without_timeouts() -> None:
    """Gateway API has them since 1.2; before, the API server refuses the field."""
    fields = GATEWAY | {"gateway": GATEWAY["gateway"].replace("{", "{timeouts: false, ", 1)}
    assert "timeouts" not in one(with_kubernetes(**fields), "HTTPRoute")["spec"]["rules"][0]
