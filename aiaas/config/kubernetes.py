"""The `kubernetes` section: what the manifests need to know beyond the rest of the config. The gateway itself ignores
it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from aiaas.config.section import Section
from aiaas.config.values import AtLeast1, Count, EnvName, Flag, Quantity, Text

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
HostName = Annotated[
    str, Field(pattern=r"^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$", max_length=253)
]
Labels = dict[str, str]


class Replicas(Section):
    """How many gateways run. Equal numbers mean a fixed size, without an autoscaler."""

    min: AtLeast1 = 2
    """Fewest. 2, so that the loss of a node leaves one."""

    max: AtLeast1 = 10
    """Most."""


class ResourceAmounts(Section):
    """An amount of each resource."""

    memory: Quantity | None = None
    """Such as 256Mi. null leaves it out."""

    cpu: Quantity | None = None
    """Such as 500m or 1. null leaves it out."""


class Resources(Section):
    """What a pod asks for, and what it may take at most."""

    requests: ResourceAmounts = ResourceAmounts(memory="256Mi", cpu="500m")
    """What the scheduler reserves."""

    limits: ResourceAmounts = ResourceAmounts(memory="512Mi", cpu="1")
    """Where it is throttled (CPU) or killed (memory)."""


class Ingress(Section):
    """The Ingress, where `expose` is `ingress`."""

    class_name: Annotated[Text, Field(alias="class")] = "nginx"
    """The IngressClass."""

    cluster_issuer: Text | None = "letsencrypt-prod"
    """cert-manager's issuer of the certificate. null is none: the TLS secret must exist already."""

    tls_secret: Text | None = None
    """The Secret with the certificate. null is the name of the deployment without `-service`, plus `-tls`."""

    controller_namespace: DnsLabel = "ingress-nginx"
    """Where the controller's pods are, for the NetworkPolicy."""

    annotations: Labels = Field(default_factory=dict)
    """Further annotations; they win over those that aiaas derives."""


class Gateway(Section):
    """The Gateway API's Gateway that an HTTPRoute attaches to, where `expose` is `gateway`."""

    name: Text | None = None
    """The Gateway's name. Required where `expose` is `gateway`."""

    namespace: DnsLabel | None = None
    """Its namespace. null is our own."""

    section: Text | None = None
    """The listener's name in it. null is every listener."""


class KeysSecret(Section):
    """The Secret that holds the key file (hashed records only)."""

    create: Flag = True
    """Render it from `auth.keys_file`. false means that something else keeps it."""

    name: DnsLabel | None = None
    """Its name. null is the name of the deployment plus `-keys`."""


class SecretReference(Section):
    """One entry of a Secret in the same namespace."""

    secret: Text
    """The Secret's name."""

    key: Text
    """The entry in it."""


class ClusterDns(Section):
    """Where the cluster's DNS is, so that the NetworkPolicy lets queries through."""

    namespace: DnsLabel = "kube-system"
    """Namespace of its pods."""

    pod_labels: Labels = Field(default_factory=lambda: {"k8s-app": "kube-dns"})
    """Labels of its pods; CoreDNS bears kube-dns's."""


class NetworkPolicy(Section):
    """Who may talk to the gateway, and whom it may talk to."""

    enabled: Flag = True
    """false renders none."""

    monitoring_namespace: DnsLabel | None = "monitoring"
    """The namespace from which the metrics port may be scraped. null is none."""

    dns: ClusterDns = ClusterDns()
    """Where the cluster's DNS is."""


class KubernetesMonitoring(Section):
    """Objects for the Prometheus operator and Grafana. Off, since a cluster without their CRDs refuses them."""

    service_monitor: Flag = False
    """A ServiceMonitor."""

    rules: Flag = False
    """A PrometheusRule with alerts."""

    dashboard: Flag = False
    """A ConfigMap with a Grafana dashboard."""


class Kubernetes(Section):
    """What `aiaas render` makes."""

    name: DnsLabel = "api-router"
    """The stem of every object's name."""

    namespace: DnsLabel = "system"
    """Where everything goes."""

    image: Text | None = None
    """The container image. null is `aiaas:<version>`, with a warning."""

    host: HostName | None = None
    """The public host name. Required where something is exposed by name."""

    replicas: Replicas = Replicas()
    """How many gateways run."""

    cpu_target: Annotated[Count, Field(ge=1, le=100)] = 70
    """Average CPU, in percent of the request, that the autoscaler aims at."""

    resources: Resources = Resources()
    """What a pod asks for, and what it may take at most."""

    expose: Literal["ingress", "gateway", "loadbalancer", "none"] = "ingress"
    """How clients from outside get in."""

    ingress: Ingress = Ingress()
    """The Ingress."""

    gateway: Gateway = Gateway()
    """The Gateway to attach to."""

    keys_secret: KeysSecret = KeysSecret()
    """The Secret that holds the key file."""

    env: dict[EnvName, SecretReference] = Field(default_factory=dict)
    """Where each `${NAME}` of the config comes from in the cluster."""

    network_policy: NetworkPolicy = NetworkPolicy()
    """Who may talk to whom."""

    monitoring: KubernetesMonitoring = KubernetesMonitoring()
    """Objects for the Prometheus operator and Grafana."""

    immutable_config: Flag = True
    """Name the ConfigMap by its content, so that `kubectl rollout undo` brings back the old config too. false gives
    it a fixed name, and a checksum on the pods rolls them."""

    labels: Labels = Field(default_factory=dict)
    """Further labels of every object."""

    annotations: Labels = Field(default_factory=dict)
    """Further annotations of every object."""

    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that may run it."""

    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints that it tolerates, as Kubernetes writes them."""
