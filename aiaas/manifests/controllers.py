"""The annotations of an Ingress, by controller, and the objects that Google's needs beside them.

The KubernetesPlan decides what each hop must allow: bodies as large as the gateway's, a longer timeout than the
gateway's, unbuffered streams, HTTPS only. An Ingress has no fields for these, so each controller has annotations of its
own (sources: `aiaas.config.ingress`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Final

from aiaas.config.ingress import (
    ALB,
    BODY_ROOM,
    ENTRY_POINTS,
    HAPROXY,
    HAPROXY_INGRESS,
    LONGEST_ALB_IDLE,
    NGINX,
    NGINX_INC,
    OPENSHIFT,
    TRAEFIK,
    Controller,
    ControllerName,
)
from aiaas.manifests.objects import Object, head
from aiaas.openai.paths import READY
from aiaas.plan.kubernetes import KubernetesPlan

GKE_CONFIG: Final = "cloud.google.com/v1"
FRONTEND_CONFIG: Final = "networking.gke.io/v1beta1.FrontendConfig"
_LONGEST_DRAIN: Final = 3600  # seconds; the most that AWS and Google take


# Annotations for TLS at the ingress, besides the redirects.
_TLS_ONLY: Final = (ENTRY_POINTS, f"{TRAEFIK}router.tls", f"{ALB}listen-ports", FRONTEND_CONFIG)


def controllers(plan: KubernetesPlan) -> tuple[Controller, ...]:
    """The controllers that may serve the plan's Ingress; empty if it has none, or aiaas knows none of that class."""
    settings = plan.settings.ingress
    return settings.controllers() if plan.settings.expose == "ingress" else ()


def is_behind(plan: KubernetesPlan, name: ControllerName) -> bool:
    """Whether this controller may serve the plan's Ingress."""
    return any(controller.name == name for controller in controllers(plan))


def annotations_for(plan: KubernetesPlan) -> dict[str, str]:
    """The annotations for the controllers that may serve the plan's Ingress; empty if aiaas knows none."""
    found: dict[str, str] = {}
    for controller in controllers(plan):
        found |= CONTROLLER_ANNOTATIONS[controller.name](plan)
    if not plan.settings.ingress.tls:
        for name in (*_TLS_ONLY, *(name for controller in controllers(plan) for name in controller.redirects)):
            found.pop(name, None)
    return found


def _ingress_nginx(plan: KubernetesPlan) -> dict[str, str]:
    seconds = str(plan.ingress_timeout)
    annotations = {
        "proxy-body-size": size_in_units(BODY_ROOM * plan.largest_body),
        "proxy-read-timeout": seconds,
        "proxy-send-timeout": seconds,
        "proxy-buffering": "off",
        "ssl-redirect": "true",
    }
    if plan.gateway.server.tls is not None:
        annotations["backend-protocol"] = "HTTPS"
    return {NGINX + name: value for name, value in annotations.items()}


def _nginx_inc(plan: KubernetesPlan) -> dict[str, str]:
    seconds = f"{plan.ingress_timeout}s"
    annotations = {
        "client-max-body-size": size_in_units(BODY_ROOM * plan.largest_body),
        "proxy-read-timeout": seconds,
        "proxy-send-timeout": seconds,
        "proxy-buffering": "false",
        "ssl-redirect": "true",
    }
    if plan.gateway.server.tls is not None:
        annotations["ssl-services"] = plan.app
    return {NGINX_INC + name: value for name, value in annotations.items()}


def _traefik(plan: KubernetesPlan) -> dict[str, str]:
    # Traefik's router bounds neither bodies nor silence, and does not buffer. On `websecure` alone it does not serve
    # plain HTTP at all; a redirect is a setting of its entry point.
    del plan
    return {ENTRY_POINTS: "websecure", f"{TRAEFIK}router.tls": "true"}


def _haproxytech(plan: KubernetesPlan) -> dict[str, str]:
    # Without http-no-delay HAProxy holds small events back, and sends them in lumps of 200 ms. `abortonclose` here is
    # the backend's half; `notes` names the other. Bodies are not bounded.
    annotations = {
        f"{HAPROXY}timeout-server": f"{plan.ingress_timeout}s",
        f"{HAPROXY}ssl-redirect": "true",
        f"{HAPROXY}backend-config-snippet": "option http-no-delay\n",
        f"{HAPROXY}abortonclose": "true",
    }
    return annotations | ({f"{HAPROXY}server-ssl": "true"} if plan.gateway.server.tls is not None else {})


def _haproxy_ingress(plan: KubernetesPlan) -> dict[str, str]:
    annotations = {
        "timeout-server": f"{plan.ingress_timeout}s",
        "ssl-redirect": "true",
        "proxy-body-size": size_in_units(BODY_ROOM * plan.largest_body),
        "config-backend": "option http-no-delay\noption abortonclose\n",
    }
    if plan.gateway.server.tls is not None:
        annotations["backend-protocol"] = "h1-ssl"
    return {HAPROXY_INGRESS + name: value for name, value in annotations.items()}


def _openshift(plan: KubernetesPlan) -> dict[str, str]:
    # The router makes a Route of the Ingress, with its annotations; it redirects by itself, and bounds no bodies. Its
    # own cookies would keep a client at one gateway.
    return {f"{OPENSHIFT}timeout": f"{plan.ingress_timeout}s", f"{OPENSHIFT}disable_cookies": "true"}


def _alb(plan: KubernetesPlan) -> dict[str, str]:
    annotations = {
        "target-type": "ip",
        "healthcheck-path": READY,
        "healthcheck-interval-seconds": "10",
        "listen-ports": json.dumps([{"HTTP": 80}, {"HTTPS": 443}]),
        "ssl-redirect": "443",
        "load-balancer-attributes": f"idle_timeout.timeout_seconds={min(plan.ingress_timeout, LONGEST_ALB_IDLE)}",
        "target-group-attributes": f"deregistration_delay.timeout_seconds={_drain(plan)}",
    }
    if plan.gateway.server.tls is not None:
        annotations |= {"backend-protocol": "HTTPS", "healthcheck-protocol": "HTTPS"}
    return {ALB + name: value for name, value in annotations.items()}


def _gce(plan: KubernetesPlan) -> dict[str, str]:
    # GKE reads the class from this annotation, and not from spec.ingressClassName.
    return {
        "kubernetes.io/ingress.class": plan.settings.ingress.class_name,
        FRONTEND_CONFIG: plan.named("frontend"),
    }


def _none(plan: KubernetesPlan) -> dict[str, str]:
    del plan
    return {}


CONTROLLER_ANNOTATIONS: Final[dict[ControllerName, Callable[[KubernetesPlan], dict[str, str]]]] = {
    "ingress-nginx": _ingress_nginx,
    "nginx-inc": _nginx_inc,
    "traefik": _traefik,
    "haproxytech": _haproxytech,
    "haproxy-ingress": _haproxy_ingress,
    "openshift": _openshift,
    "alb": _alb,
    "gce": _gce,
    "none": _none,
}


def google_service_annotations(plan: KubernetesPlan) -> dict[str, str]:
    """The annotations of a Service behind Google's load balancer: our BackendConfig, and traffic to the pods."""
    annotations = {
        "cloud.google.com/backend-config": json.dumps({"default": plan.named("backend")}),
        "cloud.google.com/neg": json.dumps({"ingress": True}),
    }
    if plan.gateway.server.tls is not None:
        annotations["cloud.google.com/app-protocols"] = json.dumps({"http": "HTTPS"})
    return annotations


def google_objects(plan: KubernetesPlan) -> tuple[Object, ...]:
    """Google's own objects: its load balancer ends every request after 30 s unless a BackendConfig says otherwise, and
    answers plain HTTP unless a FrontendConfig redirects it.

    `timeoutSec` bounds the whole request, streams included, so it is a day where the gateway sets no bound.
    """
    server = plan.gateway.server
    backend = {
        "timeoutSec": plan.request_timeout or 86_400,
        "connectionDraining": {"drainingTimeoutSec": _drain(plan)},
        "healthCheck": {
            "type": "HTTP" if server.tls is None else "HTTPS",
            "requestPath": READY,
            "port": server.port,
            "checkIntervalSec": 10,
        },
    }
    made = (head(plan, GKE_CONFIG, "BackendConfig", plan.named("backend")) | {"spec": backend},)
    if not plan.settings.ingress.tls:
        return made
    frontend = head(plan, "networking.gke.io/v1beta1", "FrontendConfig", plan.named("frontend"))
    return (*made, frontend | {"spec": {"redirectToHttps": {"enabled": True}}})


def _drain(plan: KubernetesPlan) -> int:
    """The seconds for which a load balancer leaves the open requests of a pod that goes."""
    return min(math.ceil(plan.gateway.server.drain_timeout), _LONGEST_DRAIN)


def size_in_units(size: int) -> str:
    """A size in the format of nginx and haproxy-ingress (their k and m are binary)."""
    for suffix, unit in (("m", 1024**2), ("k", 1024)):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)
