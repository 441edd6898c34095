"""The annotations of Ingress controllers: their names, and the meaning of their values.

The manifests write these annotations, and the checker reads those that the operator wrote. A controller is recognised
by the name of its class (`nginx`, `nginx-internal`, `haproxy`); about other classes aiaas knows nothing.

Sources: ingress-nginx, user-guide/nginx-configuration/annotations; Traefik, reference/routing-configuration/kubernetes/
ingress; haproxytech/kubernetes-ingress, documentation/annotations; haproxy-ingress.github.io, docs/configuration/keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

NGINX: Final = "nginx.ingress.kubernetes.io/"
HAPROXY: Final = "haproxy.org/"
HAPROXY_INGRESS: Final = "haproxy-ingress.github.io/"
TRAEFIK: Final = "traefik.ingress.kubernetes.io/"

_SECONDS: Final = {"": 1.0, "us": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"([0-9]+)(us|ms|s|m|h|d|)")
_SIZE = re.compile(r"([0-9]+)([kKmMgG]?)")
_BYTES: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


@dataclass(frozen=True, slots=True)
class IngressFamily:
    """A controller, or two controllers with the same class name. Each tuple holds the full names of annotations.

    silences   seconds without a byte after which the controller gives up, towards the gateway or the client
    bodies     the largest body; 0 means no bound
    redirects  whether plain HTTP is redirected to HTTPS
    bounded    whether the controller bounds silence at all
    """

    name: str
    silences: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()
    redirects: tuple[str, ...] = ()
    bounded: bool = True


INGRESS_FAMILIES: Final = (
    IngressFamily(
        "nginx",
        (f"{NGINX}proxy-read-timeout", f"{NGINX}proxy-send-timeout"),
        (f"{NGINX}proxy-body-size",),
        (f"{NGINX}ssl-redirect",),
    ),
    IngressFamily("traefik", bounded=False),
    IngressFamily(
        "haproxy",
        (f"{HAPROXY}timeout-server", f"{HAPROXY_INGRESS}timeout-server"),
        (f"{HAPROXY_INGRESS}proxy-body-size",),
        (f"{HAPROXY}ssl-redirect", f"{HAPROXY_INGRESS}ssl-redirect"),
    ),
)
ENTRY_POINTS: Final = f"{TRAEFIK}router.entrypoints"


def family_of(class_name: str) -> IngressFamily | None:
    """Return the controller of an ingress class; None if it is unknown."""
    return next((family for family in INGRESS_FAMILIES if family.name in class_name.lower()), None)


def seconds_of(value: str) -> float | None:
    """Return a controller's timeout (`120`, `120s`, `2m`) in seconds; None if it is not a timeout."""
    match = _TIME.fullmatch(value.strip())
    return None if match is None else int(match[1]) * _SECONDS[match[2]]


def bytes_of(value: str) -> int | None:
    """Return a controller's size (`10m`, `0` for no bound) in bytes; None if it is not a size."""
    match = _SIZE.fullmatch(value.strip())
    return None if match is None else int(match[1]) * _BYTES[match[2].lower()]
