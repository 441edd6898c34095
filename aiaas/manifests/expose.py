"""Expose the gateway to clients outside: an Ingress with its controller's annotations, or a route of the Gateway API.

The KubernetesPlan decides what each hop must allow: bodies as large as the gateway's, a longer timeout than the
gateway's, unbuffered streams, HTTPS only. An Ingress has no fields for these, so each controller has annotations of its
own (sources: `aiaas.config.ingress`). Timeouts of a route: Gateway API, GEP-1742.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from aiaas.config.ingress import ENTRY_POINTS, HAPROXY, HAPROXY_INGRESS, NGINX, TRAEFIK, family_of
from aiaas.manifests.objects import Object, head
from aiaas.plan.kubernetes import KubernetesPlan
from aiaas.units import format_size


def ingress(plan: KubernetesPlan) -> Object:
    """The plan's Ingress."""
    settings = plan.settings.ingress
    annotations = _certificate(plan) | annotations_for(settings.class_name, plan) | settings.annotations
    paths = [
        {"path": path, "pathType": "Prefix" if prefix else "Exact", "backend": {"service": _service(plan)}}
        for path, prefix in plan.paths
    ]
    spec = {
        "ingressClassName": settings.class_name,
        "tls": [{"hosts": [plan.settings.host], "secretName": plan.tls_secret}],
        "rules": [{"host": plan.settings.host, "http": {"paths": paths}}],
    }
    made = head(plan, "networking.k8s.io/v1", "Ingress", plan.named("ingress"), annotations=annotations)
    return made | {"spec": spec}


def _service(plan: KubernetesPlan) -> Object:
    return {"name": plan.app, "port": {"number": plan.gateway.server.port}}


def _certificate(plan: KubernetesPlan) -> dict[str, str]:
    issuer = plan.settings.ingress.cluster_issuer
    return {} if issuer is None else {"cert-manager.io/cluster-issuer": issuer}


def annotations_for(class_name: str, plan: KubernetesPlan) -> dict[str, str]:
    """The annotations for the controller of an ingress class; empty if the class is unknown."""
    family = family_of(class_name)
    return {} if family is None else FAMILY_ANNOTATIONS[family.name](plan)


def _nginx(plan: KubernetesPlan) -> dict[str, str]:
    seconds = str(plan.ingress_timeout)
    annotations = {
        "proxy-body-size": nginx_size(plan.gateway.server.max_body_size),
        "proxy-read-timeout": seconds,
        "proxy-send-timeout": seconds,
        "proxy-buffering": "off",
        "ssl-redirect": "true",
    }
    if plan.gateway.server.tls is not None:
        annotations["backend-protocol"] = "HTTPS"
    return {NGINX + name: value for name, value in annotations.items()}


def _traefik(plan: KubernetesPlan) -> dict[str, str]:
    # Traefik's router bounds neither bodies nor silence, and does not buffer. On `websecure` alone it does not serve
    # plain HTTP at all; a redirect is a setting of its entry point.
    del plan
    return {ENTRY_POINTS: "websecure", f"{TRAEFIK}router.tls": "true"}


def _haproxy(plan: KubernetesPlan) -> dict[str, str]:
    # Two controllers have this name, and each ignores the other's annotations. Neither buffers answers, and the
    # controller of HAProxy Technologies does not bound bodies.
    seconds = f"{plan.ingress_timeout}s"
    annotations = {
        f"{HAPROXY}timeout-server": seconds,
        f"{HAPROXY}ssl-redirect": "true",
        f"{HAPROXY_INGRESS}timeout-server": seconds,
        f"{HAPROXY_INGRESS}ssl-redirect": "true",
        f"{HAPROXY_INGRESS}proxy-body-size": nginx_size(plan.gateway.server.max_body_size),
    }
    if plan.gateway.server.tls is not None:
        annotations |= {f"{HAPROXY}server-ssl": "true", f"{HAPROXY_INGRESS}backend-protocol": "h1-ssl"}
    return annotations


FAMILY_ANNOTATIONS: Final[dict[str, Callable[[KubernetesPlan], dict[str, str]]]] = {
    "nginx": _nginx,
    "traefik": _traefik,
    "haproxy": _haproxy,
}


def nginx_size(size: int) -> str:
    """A size in the format of nginx and haproxy-ingress (their k and m are binary)."""
    for suffix, unit in (("m", 1024**2), ("k", 1024)):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


def http_route(plan: KubernetesPlan) -> Object:
    """The plan's HTTPRoute. If a backend has no total_timeout, requests are unbounded (`0s`): otherwise some
    implementations would cut every stream after 15 s."""
    settings = plan.settings.gateway
    parent: Object = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": settings.name}
    if settings.namespace is not None:
        parent["namespace"] = settings.namespace
    if settings.section is not None:
        parent["sectionName"] = settings.section
    bound = route_duration(plan.request_timeout)
    rule = {
        "matches": [
            {"path": {"type": "PathPrefix" if prefix else "Exact", "value": path}} for path, prefix in plan.paths
        ],
        "backendRefs": [
            {"group": "", "kind": "Service", "name": plan.app, "port": plan.gateway.server.port, "weight": 1}
        ],
        "timeouts": {"request": bound, "backendRequest": bound},
    }
    spec = {"parentRefs": [parent], "hostnames": [plan.settings.host], "rules": [rule]}
    return head(plan, "gateway.networking.k8s.io/v1", "HTTPRoute", plan.named("route")) | {"spec": spec}


def route_duration(seconds: int) -> str:
    """A duration in the Gateway API's format (GEP-2257): at most five digits before a unit."""
    return f"{seconds}s" if seconds < 100_000 else f"{math.ceil(seconds / 3600)}h"


def notes(plan: KubernetesPlan) -> tuple[str, ...]:
    """Notes for the operator about steps that our manifests cannot take."""
    settings = plan.settings
    found = []
    if settings.expose == "ingress" and family_of(settings.ingress.class_name) is None:
        found.append(
            f"ingress class {settings.ingress.class_name}: aiaas does not know its annotations; set some in "
            f"kubernetes.ingress.annotations that allow bodies of {format_size(plan.gateway.server.max_body_size)} and "
            f"{plan.ingress_timeout} s of silence, turn off buffering and redirect to HTTPS; the NetworkPolicy blocks "
            f"its traffic unless that comes from pods in {settings.ingress.controller_namespace}"
        )
    if settings.expose == "loadbalancer":
        found.append(f"the Secret {plan.tls_secret} (type kubernetes.io/tls) must exist in {settings.namespace}")
    unused = settings.env.keys() - {*plan.variables, *(name for each in plan.engines for name in each.variables)}
    if unused:
        found.append(f"kubernetes.env: unused, and therefore not rendered: {', '.join(sorted(unused))}")
    return tuple(found)
