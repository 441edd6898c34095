"""Each controller of an Ingress is told in its own words."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.config.check import check
from aiaas.config.ingress import CONTROLLERS, Controller, ControllerName
from aiaas.config.load import load_text
from aiaas.manifests.controllers import CONTROLLER_ANNOTATIONS, annotations_for, size_in_units
from tests.manifests.rendering import TLS, objects_of, one, plan_of, with_kubernetes

NGINX = {
    "nginx.ingress.kubernetes.io/proxy-body-size": "64m",
    "nginx.ingress.kubernetes.io/proxy-read-timeout": "429",
    "nginx.ingress.kubernetes.io/proxy-send-timeout": "429",
    "nginx.ingress.kubernetes.io/proxy-buffering": "off",
    "nginx.ingress.kubernetes.io/ssl-redirect": "true",
}
NGINX_INC = {
    "nginx.org/client-max-body-size": "64m",
    "nginx.org/proxy-read-timeout": "429s",
    "nginx.org/proxy-send-timeout": "429s",
    "nginx.org/proxy-buffering": "false",
    "nginx.org/ssl-redirect": "true",
}
HAPROXYTECH = {
    "haproxy.org/timeout-server": "429s",
    "haproxy.org/ssl-redirect": "true",
    "haproxy.org/backend-config-snippet": "option http-no-delay\n",
    "haproxy.org/abortonclose": "true",
}
HAPROXY_INGRESS = {
    "haproxy-ingress.github.io/timeout-server": "429s",
    "haproxy-ingress.github.io/ssl-redirect": "true",
    "haproxy-ingress.github.io/proxy-body-size": "64m",
    "haproxy-ingress.github.io/config-backend": "option http-no-delay\noption abortonclose\n",
}
TRAEFIK = {
    "traefik.ingress.kubernetes.io/router.entrypoints": "websecure",
    "traefik.ingress.kubernetes.io/router.tls": "true",
}
ALB = {
    "alb.ingress.kubernetes.io/target-type": "ip",
    "alb.ingress.kubernetes.io/healthcheck-path": "/ready",
    "alb.ingress.kubernetes.io/healthcheck-interval-seconds": "10",
    "alb.ingress.kubernetes.io/listen-ports": '[{"HTTP": 80}, {"HTTPS": 443}]',
    "alb.ingress.kubernetes.io/ssl-redirect": "443",
    "alb.ingress.kubernetes.io/load-balancer-attributes": "idle_timeout.timeout_seconds=429",
    "alb.ingress.kubernetes.io/target-group-attributes": "deregistration_delay.timeout_seconds=300",
}
GCE = {
    "kubernetes.io/ingress.class": "gce",
    "networking.gke.io/v1beta1.FrontendConfig": "api-router-frontend",
}


OPENSHIFT = {
    "haproxy.router.openshift.io/timeout": "429s",
    "haproxy.router.openshift.io/disable_cookies": "true",
}


def annotations(text: str) -> Any:
    """The annotations of the Ingress."""
    return one(text, "Ingress")["metadata"].get("annotations", {})


@pytest.mark.parametrize(
    ("ingress", "expected"),
    [
        ("{class: nginx}", NGINX),
        ("{class: nginx, controller_namespace: edge}", NGINX | NGINX_INC),
        ("{class: nginx, controller_namespace: nginx-ingress}", NGINX_INC),
        ("{class: nginx, controller: ingress-nginx}", NGINX),
        ("{class: nginx, controller: nginx-inc}", NGINX_INC),
        ("{class: traefik-internal}", TRAEFIK),
        ("{class: haproxy}", HAPROXYTECH | HAPROXY_INGRESS),
        ("{class: lb, controller: haproxytech}", HAPROXYTECH),
        ("{class: lb, controller: haproxy-ingress}", HAPROXY_INGRESS),
        ("{class: openshift-default}", OPENSHIFT),
        ("{class: internal}", {}),
        ("{class: nginx, controller: none}", {}),
    ],
)
def test_each_controller_is_told_in_its_own_words(ingress: str, expected: dict[str, str]) -> None:
    """Bodies of twice the largest form, a longer timeout (419 s at the worst, and 10), no buffering, no plain HTTP."""
    found = annotations(with_kubernetes(ingress=ingress))
    assert found == {"cert-manager.io/cluster-issuer": "letsencrypt-prod"} | expected


@pytest.mark.parametrize(("class_name", "expected"), [("alb", ALB), ("gce", GCE)])
def test_a_clouds_balancer_gets_no_issuer(class_name: str, expected: dict[str, str]) -> None:
    """Its certificates are its own."""
    assert annotations(with_kubernetes(ingress=f"{{class: {class_name}}}")) == expected


def test_a_clouds_balancer_has_time_to_see_a_pod_go() -> None:
    """Three failed health checks, ten seconds apart; clients come from no pod, so the policy lets anybody in."""
    made = objects_of(with_kubernetes(ingress="{class: alb}"))
    pod = made["Deployment/api-router-service"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] == 40
    assert "from" not in made["NetworkPolicy/api-router-network-policy"]["spec"]["ingress"][0]
    assert made["Ingress/api-router-ingress"]["spec"]["tls"] == [{"hosts": ["api.example.com"]}]


def test_googles_balancer_gets_its_own_objects() -> None:
    """30 s for a request, streams included, unless a BackendConfig says otherwise; the class is an annotation."""
    made = objects_of(with_kubernetes(ingress="{class: gce}"))
    spec = made["BackendConfig/api-router-backend"]["spec"]
    assert spec["timeoutSec"] == 86_400
    assert spec["healthCheck"] == {"type": "HTTP", "requestPath": "/ready", "port": 8080, "checkIntervalSec": 10}
    assert made["FrontendConfig/api-router-frontend"]["spec"] == {"redirectToHttps": {"enabled": True}}
    service = made["Service/api-router-service"]["metadata"]["annotations"]
    assert json.loads(service["cloud.google.com/backend-config"]) == {"default": "api-router-backend"}
    assert "ingressClassName" not in made["Ingress/api-router-ingress"]["spec"]


def test_others_get_no_object_of_google() -> None:
    """Nor annotations on the Service."""
    made = objects_of(with_kubernetes(ingress="{class: nginx}"))
    assert not [name for name in made if "Config/" in name]
    assert "annotations" not in made["Service/api-router-service"]["metadata"]


@pytest.mark.parametrize("controller", CONTROLLERS, ids=lambda each: each.name)
def test_checked_annotations_are_the_rendered_ones(controller: Controller) -> None:
    """Each annotation that bounds silence or bodies is rendered under the name that is checked, and so is one of the
    redirects."""
    found = annotations(with_kubernetes(ingress=f"{{class: c, controller: {controller.name}}}"))
    assert {*controller.silences, *controller.bodies} <= set(found)
    assert not controller.redirects or set(controller.redirects) & set(found)


def test_every_controller_has_annotations() -> None:
    """The table of the manifests has all names of the config."""
    assert set(CONTROLLER_ANNOTATIONS) == set(get_args(ControllerName))


@pytest.mark.parametrize(
    ("controller", "name", "value"),
    [
        ("ingress-nginx", "nginx.ingress.kubernetes.io/backend-protocol", "HTTPS"),
        ("nginx-inc", "nginx.org/ssl-services", "api-router-service"),
        ("haproxytech", "haproxy.org/server-ssl", "true"),
        ("haproxy-ingress", "haproxy-ingress.github.io/backend-protocol", "h1-ssl"),
        ("alb", "alb.ingress.kubernetes.io/backend-protocol", "HTTPS"),
    ],
)
def test_a_controller_is_told_that_the_pods_speak_tls(controller: str, name: str, value: str) -> None:
    """Otherwise it would send plain HTTP to a TLS port."""
    assert annotations(with_kubernetes(ingress=f"{{class: c, controller: {controller}}}") + TLS)[name] == value


def test_google_is_told_that_the_pods_speak_tls() -> None:
    """By the Service's port, and in the health check."""
    made = objects_of(with_kubernetes(ingress="{class: gce}") + TLS)
    assert made["BackendConfig/api-router-backend"]["spec"]["healthCheck"]["type"] == "HTTPS"
    service = made["Service/api-router-service"]
    protocols = json.loads(service["metadata"]["annotations"]["cloud.google.com/app-protocols"])
    assert protocols == {service["spec"]["ports"][0]["name"]: "HTTPS"}


@pytest.mark.parametrize(
    ("size", "written"),
    [
        pytest.param(10 * 1024**2, "10m", id="mebibytes"),
        pytest.param(1536 * 1024, "1536k", id="kibibytes"),
        pytest.param(10**7, "10000000", id="decimal megabytes"),
    ],
)
def test_sizes_are_exact(size: int, written: str) -> None:
    """nginx's units are binary; other sizes are written in bytes."""
    assert size_in_units(size) == written


@given(
    class_name=st.sampled_from(["nginx-public", "traefik", "haproxy", "alb", "gce"]),
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
    made = annotations_for(plan_of(text % "{}"))
    loaded = load_text(text % json.dumps(made), file="aiaas.yaml", env={})
    assert not loaded.problems
    codes = [problem.code for problem in check(loaded, {})]
    assert not {"AIA502", "AIA511"} & set(codes)
    assert [str(problem) for problem in check(loaded, {}) if "ingress gives up" in problem.message] == []
