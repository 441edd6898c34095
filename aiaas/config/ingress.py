"""The controllers of an Ingress: their annotations, and the meaning of their values.

The manifests write these annotations, and the checker reads those that the operator wrote. `ingress.controller` names
the controller; without it the class does (`nginx`, `nginx-internal`, `haproxy`). Two controllers share the class name
`nginx`, and two `haproxy`: where the namespace does not tell which, an Ingress gets the annotations of both, since each
ignores the other's.

Sources: ingress-nginx, user-guide/nginx-configuration/annotations; nginx/kubernetes-ingress, internal/configs/
annotations.go; Traefik, reference/routing-configuration/kubernetes/ingress; haproxytech/kubernetes-ingress,
documentation/annotations; haproxy-ingress.github.io, docs/configuration/keys; OpenShift, "Route configuration"; AWS
Load Balancer Controller, guide/ingress/annotations; GKE, "Ingress configuration".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

ControllerName = Literal[
    "ingress-nginx", "nginx-inc", "traefik", "haproxytech", "haproxy-ingress", "openshift", "alb", "gce", "none"
]

NGINX: Final = "nginx.ingress.kubernetes.io/"
NGINX_INC: Final = "nginx.org/"
HAPROXY: Final = "haproxy.org/"
HAPROXY_INGRESS: Final = "haproxy-ingress.github.io/"
TRAEFIK: Final = "traefik.ingress.kubernetes.io/"
OPENSHIFT: Final = "haproxy.router.openshift.io/"
ALB: Final = "alb.ingress.kubernetes.io/"

_SECONDS: Final = {"": 1.0, "us": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"([0-9]+)(us|ms|s|m|h|d|)")
_SIZE = re.compile(r"([0-9]+)([kKmMgG]?)")
_BYTES: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


@dataclass(frozen=True, slots=True)
class Controller:
    """One controller. Each tuple holds the full names of annotations.

    silences   seconds without a byte after which the controller gives up, towards the gateway or the client
    bodies     the largest body; 0 means no bound
    redirects  whether plain HTTP is redirected to HTTPS
    resends    when a request is sent a second time
    rewrites   changes of the path
    refuses    the controller's own limits, which it answers with a page of its own
    bounded    whether the controller bounds silence at all
    unitless   whether its timeouts are whole numbers of seconds, and nothing else
    outside    whether it is a cloud's load balancer, and no pods of the cluster
    """

    name: ControllerName
    silences: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()
    redirects: tuple[str, ...] = ()
    resends: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    bounded: bool = True
    unitless: bool = False
    outside: bool = False


CONTROLLERS: Final = (
    Controller(
        "ingress-nginx",
        silences=(f"{NGINX}proxy-read-timeout", f"{NGINX}proxy-send-timeout"),
        bodies=(f"{NGINX}proxy-body-size",),
        redirects=(f"{NGINX}ssl-redirect",),
        resends=(f"{NGINX}proxy-next-upstream",),
        rewrites=(f"{NGINX}rewrite-target", f"{NGINX}app-root"),
        refuses=(f"{NGINX}limit-rps", f"{NGINX}limit-rpm", f"{NGINX}limit-connections"),
        unitless=True,
    ),
    Controller(
        "nginx-inc",
        silences=(f"{NGINX_INC}proxy-read-timeout", f"{NGINX_INC}proxy-send-timeout"),
        bodies=(f"{NGINX_INC}client-max-body-size",),
        redirects=(f"{NGINX_INC}ssl-redirect", "ingress.kubernetes.io/ssl-redirect"),
        resends=(f"{NGINX_INC}proxy-next-upstream",),
        rewrites=(f"{NGINX_INC}rewrites", f"{NGINX_INC}rewrite-target"),
        refuses=(f"{NGINX_INC}limit-req-rate",),
    ),
    Controller("traefik", bounded=False),
    Controller(
        "haproxytech",
        silences=(f"{HAPROXY}timeout-server",),
        redirects=(f"{HAPROXY}ssl-redirect",),
        rewrites=(f"{HAPROXY}path-rewrite",),
        refuses=(f"{HAPROXY}rate-limit-requests",),
    ),
    Controller(
        "haproxy-ingress",
        silences=(f"{HAPROXY_INGRESS}timeout-server",),
        bodies=(f"{HAPROXY_INGRESS}proxy-body-size",),
        redirects=(f"{HAPROXY_INGRESS}ssl-redirect",),
        rewrites=(f"{HAPROXY_INGRESS}rewrite-target",),
        refuses=(f"{HAPROXY_INGRESS}limit-rps", f"{HAPROXY_INGRESS}limit-connections"),
    ),
    Controller(
        "openshift",
        silences=(f"{OPENSHIFT}timeout",),
        rewrites=(f"{OPENSHIFT}rewrite-target",),
        refuses=(f"{OPENSHIFT}rate-limit-connections",),
    ),
    Controller("alb", redirects=(f"{ALB}ssl-redirect",), outside=True),
    Controller("gce", bounded=False, outside=True),
)
ENTRY_POINTS: Final = f"{TRAEFIK}router.entrypoints"
# A controller answers a body over its bound with a page of HTML, so its bound is above the gateway's: a body that is a
# little too large gets the gateway's 413.
BODY_ROOM: Final = 2
LONGEST_ALB_IDLE: Final = 4000  # seconds; the most that a load balancer of AWS takes

# Classes whose names do not name their controller: AKS's application routing and MicroK8s run ingress-nginx.
_CLASSES: Final = {"webapprouting.kubernetes.azure.com": "nginx", "public": "nginx", "gce-internal": "gce"}
# Where their own charts and manifests install them.
_NAMESPACES: Final[dict[str, ControllerName]] = {
    "ingress-nginx": "ingress-nginx",
    "app-routing-system": "ingress-nginx",
    "nginx-ingress": "nginx-inc",
    "haproxy-controller": "haproxytech",
    "traefik": "traefik",
    "openshift-ingress": "openshift",
}
_GUESSES: Final[dict[str, tuple[ControllerName, ...]]] = {
    "nginx": ("ingress-nginx", "nginx-inc"),
    "traefik": ("traefik",),
    "haproxy": ("haproxytech", "haproxy-ingress"),
    "openshift": ("openshift",),
}


def controllers_of(
    class_name: str, named: ControllerName | None = None, namespace: str | None = None
) -> tuple[Controller, ...]:
    """Return the controllers that may serve an ingress class, empty where aiaas knows none.

    named      the controller that the operator names (`ingress.controller`)
    namespace  that of the controller's pods; it tells two of the same class name apart where it is a usual one
    """
    names = (named,) if named is not None else _guess(class_name.lower())
    usual = _NAMESPACES.get(namespace or "")
    if named is None and usual in names:
        names = (usual,)
    return tuple(controller for controller in CONTROLLERS if controller.name in names)


def usual_controller(namespace: str) -> ControllerName | None:
    """Return the controller that is usually installed into this namespace."""
    return _NAMESPACES.get(namespace)


def _guess(class_name: str) -> tuple[ControllerName, ...]:
    known = _CLASSES.get(class_name, class_name)
    if known in ("alb", "gce"):
        return ("alb",) if known == "alb" else ("gce",)
    return next((names for part, names in _GUESSES.items() if part in known), ())


def seconds_of(value: str) -> float | None:
    """Return a controller's timeout (`120`, `120s`, `2m`) in seconds; None if it is not a timeout."""
    match = _TIME.fullmatch(value.strip())
    return None if match is None else int(match[1]) * _SECONDS[match[2]]


def bytes_of(value: str) -> int | None:
    """Return a controller's size (`10m`, `0` for no bound) in bytes; None if it is not a size."""
    match = _SIZE.fullmatch(value.strip())
    return None if match is None else int(match[1]) * _BYTES[match[2].lower()]
