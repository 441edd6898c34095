"""The section `kubernetes.network_policy`: allowed connections beside those that follow from the config."""

from __future__ import annotations

from pydantic import Field

from aiaas.config.names import DnsLabel, Labels
from aiaas.config.section import Section
from aiaas.config.values import Flag, Port, Text


class ClusterDns(Section):
    """The cluster's DNS, so that the NetworkPolicy allows queries. Without any of these fields it allows the usual
    places: CoreDNS in kube-system, OpenShift's DNS, NodeLocal DNSCache and GKE's Cloud DNS."""

    namespace: DnsLabel | None = None
    """Namespace of the DNS pods. null means kube-system, if `pod_labels` is set."""

    pod_labels: Labels = Field(default_factory=dict)
    """Labels of the DNS pods. Empty means every pod of the namespace."""

    port: Port | None = None
    """The port that the DNS pods listen on. null means 53 and 5353 (OpenShift)."""

    cidrs: tuple[Text, ...] = ()
    """DNS servers that are not pods, as networks, such as `169.254.20.10/32`; at port 53."""


class StorePods(Section):
    """The pods of the shared store (`rate_limit.store`), for the NetworkPolicy."""

    namespace: DnsLabel | None = None
    """Namespace of the store's pods. null means the namespace in the address's host name (`name.namespace`), else
    aiaas's own."""

    pod_labels: Labels | None = None
    """Labels of the store's pods. null means every pod of that namespace."""

    port: Port | None = None
    """The port that the store's pods listen on. null means the port in the address, or 6379 for the servers that
    sentinels name."""


class CollectorPods(Section):
    """The pods of the collector (`monitoring.traces.endpoint`), for the NetworkPolicy."""

    namespace: DnsLabel | None = None
    """Namespace of the collector's pods. null means the namespace in the URL's host name (`name.namespace`), else
    aiaas's own."""

    pod_labels: Labels | None = None
    """Labels of the collector's pods. null means every pod of that namespace."""

    port: Port | None = None
    """The port that the collector's pods listen on. null means the port in the URL."""


class Peers(Section):
    """Sources or destinations: pods by their namespace and labels, addresses, or both."""

    namespace: DnsLabel | None = None
    """The namespace of the pods. null means aiaas's own, if only `pod_labels` is set."""

    namespace_labels: Labels = Field(default_factory=dict)
    """Labels of the namespaces of the pods, such as `policy-group.network.openshift.io/host-network: ""`."""

    pod_labels: Labels = Field(default_factory=dict)
    """Labels of the pods. Empty means every pod of the namespaces."""

    cidrs: tuple[Text, ...] = ()
    """Networks of peers that are not pods: nodes, load balancers, an egress proxy."""

    ports: tuple[Port, ...] = ()
    """TCP ports: those of the gateway for `ingress`, those of the peers for `egress`. Empty means the port of the API
    for `ingress`, and every port for `egress`."""


class NetworkPolicy(Section):
    """Allowed connections to and from the gateway."""

    enabled: Flag = True
    """false renders no policy."""

    monitoring_namespace: DnsLabel | None = "monitoring"
    """The namespace that Prometheus scrapes the metrics port from. null allows no scraping."""

    dns: ClusterDns = ClusterDns()
    """The cluster's DNS."""

    store: StorePods = StorePods()
    """The shared store's pods."""

    collector: CollectorPods = CollectorPods()
    """The collector's pods."""

    ingress: tuple[Peers, ...] = ()
    """Further sources: controllers in the host's network, load balancers, clients in the cluster, a service mesh."""

    egress: tuple[Peers, ...] = ()
    """Further destinations, such as an egress proxy or a service mesh."""
