"""The `kubernetes` section: settings for the manifests only. The gateway itself ignores it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from aiaas.config.section import Section
from aiaas.config.values import AtLeast0, AtLeast1, Count, EnvName, Flag, Port, Quantity, Text

# A Service's name begins with a letter (RFC 1035) and has 63 characters at the most; suffixes need some of them.
Stem = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
# What most objects are named by (RFC 1123 subdomain).
ObjectName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$", max_length=253)
]
EntryName = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
ImageName = Annotated[str, Field(pattern=r"^\S+$", min_length=1)]
HostName = Annotated[
    str, Field(pattern=r"^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$", max_length=253)
]
LabelKey = Annotated[
    str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")]
Labels = dict[LabelKey, LabelValue]
Annotations = dict[LabelKey, str]


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
    """A pod's resource requests and limits."""

    requests: ResourceAmounts = ResourceAmounts(memory="256Mi", cpu="500m")
    """What the scheduler reserves."""

    limits: ResourceAmounts = ResourceAmounts(memory="512Mi", cpu="1")
    """Where it is throttled (CPU) or killed (memory)."""


class EngineResources(Section):
    """An engine pod's resource requests and limits; the defaults suit a model of medium size."""

    requests: ResourceAmounts = ResourceAmounts(memory="16Gi", cpu="4")
    """What the scheduler reserves."""

    limits: ResourceAmounts = ResourceAmounts(memory="32Gi")
    """Where it is throttled (CPU) or killed (memory)."""


class Ingress(Section):
    """The Ingress, where `expose` is `ingress`."""

    class_name: Annotated[ObjectName, Field(alias="class")] = "nginx"
    """The IngressClass."""

    cluster_issuer: ObjectName | None = "letsencrypt-prod"
    """cert-manager's issuer of the certificate. null is none: the TLS secret must exist already."""

    tls_secret: ObjectName | None = None
    """The Secret with the certificate, also of `server.tls`. null is `kubernetes.name` plus `-tls`."""

    controller_namespace: DnsLabel = "ingress-nginx"
    """Namespace of the controller's pods, for the NetworkPolicy."""

    annotations: Annotations = Field(default_factory=dict)
    """Further annotations; they win over those that aiaas derives."""


class GatewayApi(Section):
    """The Gateway API's Gateway that an HTTPRoute attaches to, where `expose` is `gateway`."""

    name: ObjectName | None = None
    """The Gateway's name. Required where `expose` is `gateway`."""

    namespace: DnsLabel | None = None
    """Its namespace. null is aiaas's own."""

    section: ObjectName | None = None
    """The listener's name in it. null is every listener, so also one without TLS."""

    controller_namespace: DnsLabel | None = None
    """Namespace of the pods that carry its traffic, for the NetworkPolicy. null is the Gateway's namespace."""


class KeysSecret(Section):
    """The Secret that holds the key file (hashed records only)."""

    create: Flag = True
    """Render it from `auth.keys_file`. false means that another tool manages it."""

    name: DnsLabel | None = None
    """Its name. null is `kubernetes.name` plus `-keys`. The entry in it is `keys.yaml`."""


class SecretReference(Section):
    """One entry of a Secret in the same namespace."""

    secret: ObjectName
    """The Secret's name."""

    key: EntryName
    """The entry in it."""


class ClusterDns(Section):
    """The cluster's DNS, so that the NetworkPolicy allows queries."""

    namespace: DnsLabel = "kube-system"
    """Namespace of its pods."""

    pod_labels: Labels = Field(default_factory=lambda: {"k8s-app": "kube-dns"})
    """Labels of its pods; CoreDNS bears kube-dns's."""


class StorePods(Section):
    """The pods of the shared store (`rate_limit.store`), for the NetworkPolicy."""

    namespace: DnsLabel | None = None
    """Their namespace. null is taken from the host name in the address (`name.namespace`), else aiaas's own."""

    pod_labels: Labels | None = None
    """Their labels. null is every pod of that namespace."""

    port: Port | None = None
    """The port that they listen on. null is the port in the address, or 6379 for the servers that sentinels name."""


class NetworkPolicy(Section):
    """Allowed connections to and from the gateway."""

    enabled: Flag = True
    """false renders no policy."""

    monitoring_namespace: DnsLabel | None = "monitoring"
    """The namespace from which the metrics port may be scraped. null allows no scraping."""

    dns: ClusterDns = ClusterDns()
    """The cluster's DNS."""

    store: StorePods = StorePods()
    """The shared store's pods."""


class KubernetesMonitoring(Section):
    """Objects for the Prometheus operator and Grafana. Off, since a cluster without their CRDs refuses them."""

    service_monitor: Flag = False
    """A ServiceMonitor."""

    rules: Flag = False
    """A PrometheusRule with alerts."""

    dashboard: Flag = False
    """A ConfigMap with a Grafana dashboard."""


class EnginePod(Section):
    """The pod that `aiaas render` makes of an engine of kind `vllm`. `aiaas serve` ignores it."""

    image: ImageName = "vllm/vllm-openai:v0.32.0"
    """The container image; `vllm` is on its PATH. The default is the version that aiaas is tested with."""

    gpus: AtLeast0 = 1
    """GPUs of the pod. With more than one the model is split over them (`--tensor-parallel-size`), unless the engine's
    `args` say otherwise."""

    gpu_resource: Text = "nvidia.com/gpu"
    """The device plugin's name for a GPU."""

    resources: EngineResources = EngineResources()
    """Its other resources. The memory is the host's; a model passes through it on its way to the GPU."""

    shared_memory: Quantity = "2Gi"
    """Size of /dev/shm, over which the processes of one engine talk. It counts as memory of the pod."""

    storage: Quantity = "100Gi"
    """Size of the volume that keeps weights and compiled kernels from start to start."""

    storage_class: ObjectName | None = None
    """Its StorageClass. null is the cluster's default."""

    claim: DnsLabel | None = None
    """A PersistentVolumeClaim that exists already. null makes one."""

    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that may run it."""

    tolerations: tuple[dict[str, Any], ...] = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)
    """Taints that it tolerates, as Kubernetes writes them. The default is the usual taint of GPU nodes."""


class Kubernetes(Section):
    """Settings of `aiaas render`."""

    name: Stem = "api-router"
    """The stem of every object's name."""

    namespace: DnsLabel = "system"
    """The namespace of every object."""

    create_namespace: Flag = False
    """Render the Namespace, too, with Pod Security `restricted` enforced in it."""

    image: ImageName | None = None
    """The container image. null is `aiaas:<version>`, with a warning."""

    image_pull_secrets: tuple[DnsLabel, ...] = ()
    """Secrets with the credentials of the image's registry."""

    host: HostName | None = None
    """The public host name. Required if `expose` is `ingress` or `gateway`."""

    replicas: Replicas = Replicas()
    """How many gateways run."""

    cpu_target: Annotated[Count, Field(ge=1, le=100)] = 70
    """Average CPU, in percent of the request, that the autoscaler aims at."""

    inflight_target: AtLeast1 | None = None
    """Average requests in flight of a pod that the autoscaler aims at besides: requests wait for the engine, so many
    may be open while the CPU has little to do. Needs an adapter (prometheus-adapter, KEDA) that serves
    `aiaas_requests_in_flight` as a pod metric. null leaves it out."""

    resources: Resources = Resources()
    """A pod's resource requests and limits."""

    expose: Literal["ingress", "gateway", "loadbalancer", "none"] = "ingress"
    """How clients reach the gateway from outside."""

    ingress: Ingress = Ingress()
    """The Ingress."""

    gateway: GatewayApi = GatewayApi()
    """The Gateway to attach to."""

    keys_secret: KeysSecret = KeysSecret()
    """The Secret that holds the key file."""

    env: dict[EnvName, SecretReference] = Field(default_factory=dict)
    """The Secret entry for each `${NAME}` of the config."""

    network_policy: NetworkPolicy = NetworkPolicy()
    """Allowed connections."""

    monitoring: KubernetesMonitoring = KubernetesMonitoring()
    """Objects for the Prometheus operator and Grafana."""

    immutable_config: Flag = True
    """Name the ConfigMap by its content, so that `kubectl rollout undo` brings back the old config too. false gives
    it a fixed name, and a checksum on the pods rolls them."""

    labels: Labels = Field(default_factory=dict)
    """Further labels of every object."""

    annotations: Annotations = Field(default_factory=dict)
    """Further annotations of every object."""

    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that may run it."""

    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints that it tolerates, as Kubernetes writes them."""
