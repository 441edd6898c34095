"""Expose the gateway to clients outside: an Ingress with its controller's annotations, or a route of the Gateway API.

Timeouts of a route: Gateway API, GEP-1742.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from aiaas.manifests.controllers import annotations_for, controllers, is_behind
from aiaas.manifests.objects import Object, head
from aiaas.plan.kubernetes import KubernetesPlan
from aiaas.units import format_size


def ingress(plan: KubernetesPlan) -> Object:
    """The plan's Ingress."""
    settings = plan.settings.ingress
    annotations = _certificate(plan) | annotations_for(plan) | settings.annotations
    paths = [
        {"path": path, "pathType": "Prefix" if prefix else "Exact", "backend": {"service": _service(plan)}}
        for path, prefix in plan.paths
    ]
    tls: Object = {"hosts": list(plan.hosts)}
    if not is_behind(plan, "alb"):  # AWS finds the certificate by its host
        tls["secretName"] = plan.tls_secret
    spec: Object = {} if is_behind(plan, "gce") else {"ingressClassName": settings.class_name}
    spec |= {"tls": [tls]} if settings.tls else {}
    spec |= {"rules": [{"host": host, "http": {"paths": paths}} for host in plan.hosts]}
    made = head(plan, "networking.k8s.io/v1", "Ingress", plan.named("ingress"), annotations=annotations)
    return made | {"spec": spec}


def _service(plan: KubernetesPlan) -> Object:
    return {"name": plan.app, "port": {"number": plan.gateway.server.port}}


def _certificate(plan: KubernetesPlan) -> dict[str, str]:
    """cert-manager's issuer. A cloud's load balancer has certificates of its own."""
    settings = plan.settings.ingress
    outside = any(controller.outside for controller in controllers(plan))
    if settings.cluster_issuer is None or outside or not settings.tls:
        return {}
    return {"cert-manager.io/cluster-issuer": settings.cluster_issuer}


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
    rule: Object = {
        "matches": [
            {"path": {"type": "PathPrefix" if prefix else "Exact", "value": path}} for path, prefix in plan.paths
        ],
        "backendRefs": [
            {"group": "", "kind": "Service", "name": plan.app, "port": plan.gateway.server.port, "weight": 1}
        ],
    }
    rule |= {"timeouts": {"request": bound, "backendRequest": bound}} if settings.timeouts else {}
    spec = {"parentRefs": [parent], "hostnames": list(plan.hosts), "rules": [rule]}
    return head(plan, "gateway.networking.k8s.io/v1", "HTTPRoute", plan.named("route")) | {"spec": spec}


def route_duration(seconds: int) -> str:
    """A duration in the Gateway API's format (GEP-2257): at most five digits before a unit."""
    return f"{seconds}s" if seconds < 100_000 else f"{math.ceil(seconds / 3600)}h"


def notes(plan: KubernetesPlan) -> tuple[str, ...]:
    """Notes for the operator about steps that our manifests cannot take."""
    settings = plan.settings
    found = list(_ingress_notes(plan)) if settings.expose == "ingress" else []
    if settings.expose == "loadbalancer":
        found.append(f"the Secret {plan.tls_secret} (type kubernetes.io/tls) must exist in {settings.namespace}")
    return tuple(found)


def _ingress_notes(plan: KubernetesPlan) -> Iterator[str]:
    settings = plan.settings.ingress
    known = [controller.name for controller in controllers(plan)]
    if not known:
        yield (
            f"ingress class {settings.class_name}: aiaas does not know its controller (ingress.controller); set "
            "annotations in kubernetes.ingress.annotations that allow bodies of more than "
            f"{format_size(plan.largest_body)} and {plan.ingress_timeout} s of silence, turn off "
            "buffering and redirect to HTTPS; the NetworkPolicy blocks its traffic unless that comes from pods in "
            f"{settings.controller_namespace}"
        )
    half = "without it, clients that leave before their first token go unnoticed, and vLLM generates for nobody"
    if "haproxytech" in known:
        yield (
            "ingress controller haproxytech: HAProxy notices each client that leaves only with `abortonclose: enabled` "
            f"in the Defaults resource that the controller's ConfigMap names (`cr-defaults`); {half}"
        )
    if "haproxy-ingress" in known:
        yield (
            "ingress controller haproxy-ingress: HAProxy notices each client that leaves only with `config-defaults: "
            f"option abortonclose` in the controller's ConfigMap; {half}"
        )
    if "openshift" in known:
        yield (
            "ingress controller openshift: the router notices each client that leaves only with "
            "`closedClientConnectionPolicy: Abort` in the IngressController (since December 2025, in OpenShift 4.18 "
            f"and later); {half}"
        )
    if "alb" in known and settings.tls:
        yield (
            f"ingress controller alb: the certificate for {', '.join(plan.hosts)} must exist in ACM; the load "
            "balancer is internal unless alb.ingress.kubernetes.io/scheme says internet-facing"
        )
    if "gce" in known and settings.tls:
        yield f"ingress controller gce: the Secret {plan.tls_secret} (type kubernetes.io/tls) must exist"
