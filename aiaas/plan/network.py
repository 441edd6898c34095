"""Whom the gateway talks to, as a NetworkPolicy has to name them: by pods and pod ports, or by addresses. Pure.

A NetworkPolicy knows neither Services nor host names. What is behind a name is guessed from the name's form:

    svc                                     pods of our own namespace
    svc.namespace, svc.namespace.svc[...]   pods of that namespace (but `https://example.com` is a host outside)
    192.0.2.7                               that address
    anything else                           a host outside the cluster: any address, on that port only

`backends.X.network` says it where the guess is wrong.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final, Protocol

ANYWHERE: Final = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True)
class Edge:
    """One peer and the ports at which it is reached.

    namespace   of its pods; None where `networks` say where it is
    pod_labels  of its pods; none is every pod of that namespace
    networks    CIDRs, for what is not a pod
    ports       TCP
    """

    ports: tuple[int, ...]
    namespace: str | None = None
    pod_labels: tuple[tuple[str, str], ...] = ()
    networks: tuple[str, ...] = ()


class Hints(Protocol):
    """What an operator may say about a peer (`aiaas.config.backend.Network` and its like)."""

    @property
    def namespace(self) -> str | None:
        """Namespace of the pods."""

    @property
    def pod_labels(self) -> dict[str, str] | None:
        """Labels of the pods."""

    @property
    def port(self) -> int | None:
        """Port of the pods."""


def edge_to(host: str, port: int, hints: Hints, *, own_namespace: str, tls: bool = False) -> Edge:
    """The edge to `host:port`, by what the operator says or else by the form of the name."""
    ports = (hints.port or port,)
    labels = tuple((hints.pod_labels or {}).items())
    if hints.namespace is not None:
        return Edge(ports, namespace=hints.namespace, pod_labels=labels)
    address = _address(host)
    if address is not None and not labels:
        return Edge(ports, networks=(f"{address}/{address.max_prefixlen}",))
    namespace = None if address is not None else namespace_in(host, own_namespace, tls=tls)
    if namespace is None and labels:
        namespace = own_namespace
    if namespace is None:
        return Edge(ports, networks=ANYWHERE)
    return Edge(ports, namespace=namespace, pod_labels=labels)


def namespace_in(host: str, own_namespace: str, *, tls: bool) -> str | None:
    """The namespace that a Service's host name names, or None where it does not look like one."""
    labels = host.rstrip(".").split(".")
    if len(labels) == 1:
        return own_namespace
    if len(labels) == 2 and not tls:
        return labels[1]
    return labels[1] if len(labels) > 2 and labels[2] == "svc" else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
