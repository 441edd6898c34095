"""The way in for clients."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.config.check import check
from aiaas.config.ingress import INGRESS_FAMILIES, IngressFamily
from aiaas.config.load import load_text
from aiaas.manifests.expose import annotations_for, nginx_size, notes, route_duration
from tests.manifests.rendering import BACKEND, MINIMAL, TLS, objects_of, one, plan_of, with_kubernetes

GATEWAY = {"expose": "gateway", "gateway": "{name: public, namespace: gateways, section: https}"}


def annotations(text: str) -> Any:
    """The annotations of the Ingress."""
    return one(text, "Ingress")["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        pytest.param(
            "nginx",
            {
                "nginx.ingress.kubernetes.io/proxy-body-size": "10m",
                "nginx.ingress.kubernetes.io/proxy-read-timeout": "429",
                "nginx.ingress.kubernetes.io/proxy-send-timeout": "429",
                "nginx.ingress.kubernetes.io/proxy-buffering": "off",
                "nginx.ingress.kubernetes.io/ssl-redirect": "true",
            },
            id="ingress-nginx",
        ),
        pytest.param(
            "traefik-internal",
            {
                "traefik.ingress.kubernetes.io/router.entrypoints": "websecure",
                "traefik.ingress.kubernetes.io/router.tls": "true",
            },
            id="a class of Traefik's",
        ),
        pytest.param(
            "haproxy",
            {
                "haproxy.org/timeout-server": "429s",
                "haproxy.org/ssl-redirect": "true",
                "haproxy-ingress.github.io/timeout-server": "429s",
                "haproxy-ingress.github.io/ssl-redirect": "true",
                "haproxy-ingress.github.io/proxy-body-size": "10m",
            },
            id="both of HAProxy's",
        ),
        pytest.param("alb", {}, id="one that aiaas does not know"),
    ],
)
def test_each_controller_is_told_in_its_own_words(class_name: str, expected: dict[str, str]) -> None:
    """Bodies as large as the gateway's, a longer timeout (389 s at the worst, and 10), no buffering, no plain HTTP."""
    found = annotations(with_kubernetes(ingress=f"{{class: {class_name}}}"))
    assert found == {"cert-manager.io/cluster-issuer": "letsencrypt-prod"} | expected


@pytest.mark.parametrize("family", INGRESS_FAMILIES, ids=lambda family: family.name)
def test_checked_annotations_are_the_rendered_ones(family: IngressFamily) -> None:
    """Each annotation that bounds silence or bodies, or redirects, is rendered under the name that is checked."""
    found = annotations(with_kubernetes(ingress=f"{{class: {family.name}}}"))
    assert {*family.silences, *family.bodies, *family.redirects} <= set(found)


def test_an_unknown_class_is_said() -> None:
    """A person has to do what our annotations cannot."""
    [note] = notes(plan_of(with_kubernetes(ingress="{class: alb}")))
    assert note.startswith(
        "ingress class alb: aiaas does not know its annotations; set some in kubernetes.ingress.annotations"
    )
    assert "bodies of 10MiB and 429 s of silence" in note
    assert notes(plan_of(MINIMAL)) == ()


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


@pytest.mark.parametrize(
    ("size", "written"),
    [
        pytest.param(10 * 1024**2, "10m", id="the plan's"),
        pytest.param(1536 * 1024, "1536k", id="kibibytes"),
        pytest.param(10**7, "10000000", id="decimal megabytes"),
    ],
)
def test_sizes_are_exactly_ours(size: int, written: str) -> None:
    """nginx's units are binary; other sizes are written in bytes."""
    assert nginx_size(size) == written


def test_served_paths_are_routed_each_as_it_is() -> None:
    """/v1 as a prefix, others exactly, /health; never /metrics or /ready."""
    text = MINIMAL.replace("models: [m]", "models: [m], endpoints: [/v1/completions, /tokenize]")
    paths = one(text, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert [(path["path"], path["pathType"]) for path in paths] == [
        ("/v1", "Prefix"),
        ("/tokenize", "Exact"),
        ("/health", "Exact"),
    ]


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


@pytest.mark.parametrize(
    ("class_name", "name", "value"),
    [
        pytest.param("nginx", "nginx.ingress.kubernetes.io/backend-protocol", "HTTPS", id="ingress-nginx"),
        pytest.param("haproxy", "haproxy.org/server-ssl", "true", id="HAProxy Technologies"),
        pytest.param("haproxy", "haproxy-ingress.github.io/backend-protocol", "h1-ssl", id="haproxy-ingress"),
    ],
)
def test_a_controller_is_told_that_the_pods_speak_tls(class_name: str, name: str, value: str) -> None:
    """Otherwise it would send plain HTTP to a TLS port."""
    assert annotations(with_kubernetes(ingress=f"{{class: {class_name}}}") + TLS)[name] == value


def test_a_certificate_that_nobody_makes_is_said() -> None:
    """Behind a LoadBalancer the Secret must exist already."""
    [note] = notes(plan_of(with_kubernetes(expose="loadbalancer") + TLS))
    assert note == "the Secret api-router-tls (type kubernetes.io/tls) must exist in system"


def test_a_variable_that_nobody_uses_is_said() -> None:
    """A renamed variable would silently leave its Secret behind."""
    text = with_kubernetes(env="{HOST: {secret: s, key: k}, OLD: {secret: s, key: k}}").replace(
        "oss-20b.system", "${HOST}"
    )
    [note] = notes(plan_of(text, {"HOST": "h.system"}))
    assert note == "kubernetes.env: unused, and therefore not rendered: OLD"


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


@given(
    class_name=st.sampled_from(["nginx-public", "traefik", "haproxy"]),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "timeout": st.integers(1, 900),
            "total_timeout": st.integers(901, 4000),
            "connect_timeout": st.integers(1, 60),
        },
    ),
    retries=st.integers(0, 5),
    body=st.integers(1024, 2**28),
)
def test_derived_annotations_satisfy_the_checker(
    class_name: str, fields: dict[str, int], retries: int, body: int
) -> None:
    """Set by the operator, no annotation of ours is a finding: both sides read the same figures."""
    times = "".join(f", {name}: {seconds}s" for name, seconds in fields.items())
    text = f"""
server: {{max_body_size: {body}B}}
backends: {{v: {{url: 'http://v', models: [m], max_retries: {retries}{times}}}}}
kubernetes: {{host: h.example, ingress: {{class: {class_name}, controller_namespace: c, annotations: %s}}}}
"""
    made = annotations_for(class_name, plan_of(text % "{}"))
    loaded = load_text(text % json.dumps(made), file="aiaas.yaml", env={})
    assert not loaded.problems
    codes = [problem.code for problem in check(loaded, {})]
    assert not {"AIA502", "AIA511"} & set(codes)
    assert [str(problem) for problem in check(loaded, {}) if "ingress gives up" in problem.message] == []
