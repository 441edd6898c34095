"""The gateway's peers in the terms of a NetworkPolicy: pods and pod ports, or addresses. Pure.

A NetworkPolicy knows neither Services nor host names. So guess the pods or addresses from the form of a host name:

    svc                                     pods of our own namespace
    svc.namespace, svc.namespace.svc[...]   pods of that namespace (but `https://example.com` is a host outside)
    192.0.2.7                               that address
    anything else                           a host outside the cluster: any address, on that port only

Set `backends.X.network` if the guess is wrong.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final, Protocol

from aiaas.config.address import namespace_in

ANYWHERE: Final = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True)
class Edge:
    """One peer and the TCP ports at which the gateway reaches it.

    namespace   the namespace of its pods; None if `networks` holds its addresses
    pod_labels  the labels of its pods; if empty, every pod of that namespace
    networks    CIDRs of a peer that is not a pod
    """

    ports: tuple[int, ...]
    namespace: str | None = None
    pod_labels: tuple[tuple[str, str], ...] = ()
    networks: tuple[str, ...] = ()


class Hints(Protocol):
    """An operator's settings for a peer (`aiaas.config.backend.Network` and the like)."""

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
    """The edge to `host:port`, by the operator's settings, otherwise by the form of the name."""
    ports = (hints.port or port,)
    labels = tuple((hints.pod_labels or {}).items())
    if hints.namespace is not None:
        return Edge(ports, namespace=hints.namespace, pod_labels=labels)
    address = _address(host)
    if address is not None and not labels:
        return Edge(ports, networks=(f"{address}/{address.max_prefixlen}",))
    namespace = namespace_in(host, own_namespace, tls=tls)
    if namespace is None and labels:
        namespace = own_namespace
    if namespace is None:
        return Edge(ports, networks=ANYWHERE)
    return Edge(ports, namespace=namespace, pod_labels=labels)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
