"""The `kubernetes` section: settings for the manifests only. The gateway itself ignores this section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from aiaas.config.ingress import Controller, ControllerName, controllers_of
from aiaas.config.names import (
    Annotations,
    DnsLabel,
    EntryName,
    HostName,
    ImageName,
    LabelKey,
    Labels,
    LabelValue,
    ObjectName,
    Stem,
)
from aiaas.config.policy import NetworkPolicy
from aiaas.config.section import Section
from aiaas.config.values import AtLeast0, AtLeast1, Count, EnvName, Flag, Quantity, Text


class Replicas(Section):
    """How many gateways run. Equal numbers mean a fixed size, which the autoscaler keeps, too."""

    min: AtLeast1 = 2
    """The smallest number of gateways. The default is 2, so that one is left when a node fails."""

    max: AtLeast1 = 10
    """The largest number of gateways."""


class ResourceAmounts(Section):
    """An amount of each resource."""

    memory: Quantity | None = None
    """An amount such as 256Mi. null leaves memory out."""

    cpu: Quantity | None = None
    """An amount such as 500m or 1. null leaves CPU out."""


class Resources(Section):
    """A pod's resource requests and limits."""

    requests: ResourceAmounts = ResourceAmounts(memory="256Mi", cpu="500m")
    """The amounts that the scheduler reserves."""

    limits: ResourceAmounts = ResourceAmounts(memory="512Mi", cpu="1")
    """The amounts beyond which the pod is throttled (CPU) or killed (memory)."""


class EngineResources(Section):
    """An engine pod's resource requests and limits; the defaults suit a model of medium size."""

    requests: ResourceAmounts = ResourceAmounts(memory="16Gi", cpu="4")
    """The amounts that the scheduler reserves."""

    limits: ResourceAmounts = ResourceAmounts(memory="32Gi")
    """The amounts beyond which the pod is throttled (CPU) or killed (memory)."""


class Ingress(Section):
    """The Ingress, if `expose` is `ingress`."""

    class_name: Annotated[ObjectName, Field(alias="class")] = "nginx"
    """The IngressClass."""

    controller: ControllerName | None = None
    """The program behind the class; it decides the annotations. null guesses it from the class; `none` writes no
    annotations. `ingress-nginx` is the community's controller, `nginx-inc` is F5's; `alb` is AWS's load balancer,
    `gce` is Google's."""

    cluster_issuer: ObjectName | None = "letsencrypt-prod"
    """cert-manager's issuer of the certificate. null if the TLS secret exists already."""

    tls: Flag = True
    """Whether TLS ends at the ingress. false, with a warning, renders an Ingress for plain HTTP, without redirects and
    issuer: where TLS ends in front of it, at a load balancer."""

    tls_secret: ObjectName | None = None
    """The Secret with the certificate, also for `server.tls`. null means `kubernetes.name` plus `-tls`."""

    controller_namespace: DnsLabel = "ingress-nginx"
    """Namespace of the controller's pods, for the NetworkPolicy."""

    annotations: Annotations = Field(default_factory=dict)
    """Further annotations; they override those that aiaas derives."""

    def controllers(self) -> tuple[Controller, ...]:
        """Return the controllers that may serve it; empty if aiaas knows none of that class."""
        return controllers_of(self.class_name, self.controller, self.controller_namespace)


class GatewayApi(Section):
    """The Gateway API's Gateway that the HTTPRoute attaches to, if `expose` is `gateway`."""

    name: ObjectName | None = None
    """The Gateway's name. Required if `expose` is `gateway`."""

    namespace: DnsLabel | None = None
    """The Gateway's namespace. null means aiaas's own."""

    timeouts: Flag = True
    """Whether to write the route's timeouts. Write false for implementations of Gateway API before 1.2, which do not
    know them; their own timeouts then hold, and `aiaas smoke` shows whether those are long enough."""

    section: ObjectName | None = None
    """The name of the Gateway's listener. null means every listener, also one without TLS."""

    controller_namespace: DnsLabel | None = None
    """Namespace of the pods that carry the Gateway's traffic, for the NetworkPolicy. null means the Gateway's own."""


class KeysSecret(Section):
    """The Secret that holds the key file (hashed records only)."""

    create: Flag = True
    """Whether to render the Secret from `auth.keys_file`. false if another tool manages it."""

    name: DnsLabel | None = None
    """The Secret's name. null means `kubernetes.name` plus `-keys`. Its entry is named `keys.yaml`."""


class Variable(Section):
    """The value of an environment variable: an entry of a Secret in the same namespace, or plain text."""

    secret: ObjectName | None = None
    """The Secret's name, together with `key`."""

    key: EntryName | None = None
    """The entry in the Secret."""

    value: Text | None = None
    """The value itself, if it is not a secret."""


class KubernetesMonitoring(Section):
    """Objects for the Prometheus operator and Grafana. Off by default: a cluster without their CRDs rejects them."""

    service_monitor: Flag = False
    """Whether to render a ServiceMonitor."""

    rules: Flag = False
    """Whether to render a PrometheusRule with alerts."""

    dashboard: Flag = False
    """Whether to render a ConfigMap with a Grafana dashboard."""


class Authorities(Section):
    """Certificate authorities of your own, in a ConfigMap or Secret of the same namespace."""

    config_map: ObjectName | None = None
    """The ConfigMap's name."""

    secret: ObjectName | None = None
    """The Secret's name."""

    key: EntryName = "ca.crt"
    """The entry with the certificates, in PEM."""


class Toleration(Section):
    """A taint that a pod tolerates, with the names of Kubernetes."""

    key: LabelKey | None = None
    """The taint's key. null, with `operator: Exists`, tolerates every taint."""

    operator: Literal["Exists", "Equal"] | None = None
    """`Exists` tolerates every value of the key, `Equal` (the same as null) one."""

    value: LabelValue | None = None
    """The taint's value, if the operator is `Equal`."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect. null tolerates every effect."""

    seconds: Annotated[AtLeast0 | None, Field(alias="tolerationSeconds")] = None
    """How long a running pod stays on a node that gets the taint, with `effect: NoExecute`. null means forever."""

    def as_written(self) -> dict[str, Any]:
        """Return the toleration as an object of Kubernetes has it."""
        return self.model_dump(by_alias=True, exclude_none=True)


class EnginePod(Section):
    """The pod that `aiaas render` makes of an engine of kind `vllm`. `aiaas serve` ignores it."""

    image: ImageName = "vllm/vllm-openai:v0.32.0"
    """The container image, with `vllm` on its PATH. The default is the version that aiaas is tested with."""

    gpus: AtLeast0 = 1
    """GPUs of the pod. vLLM splits the model over several GPUs (`--tensor-parallel-size`), unless the engine's `args`
    say otherwise."""

    gpu_resource: Text = "nvidia.com/gpu"
    """The device plugin's name for a GPU."""

    resources: EngineResources = EngineResources()
    """The pod's other resources. `memory` is host memory; a model passes through it on its way to the GPU."""

    shared_memory: Quantity = "2Gi"
    """Size of /dev/shm, which the processes of one engine use to communicate. It counts as memory of the pod."""

    storage: Quantity = "100Gi"
    """Size of the volume that keeps weights and compiled kernels from start to start."""

    storage_class: ObjectName | None = None
    """The volume's StorageClass. null means the cluster's default."""

    claim: DnsLabel | None = None
    """An existing PersistentVolumeClaim. null renders a new one."""

    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that may run the pod."""

    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),)
    """Taints that the pod tolerates. The default is the usual taint of GPU nodes."""


class Patch(Section):
    """A change of rendered objects, merged as `kubectl patch` does it (docs/manifests.md)."""

    kind: Annotated[str, Field(min_length=1)]
    """The kind of the objects, such as Deployment."""

    name: ObjectName | None = None
    """The name of the object, such as `api-router-service`. null means every object of the kind."""

    merge: dict[str, Any]
    """The fields to change, in the form of Kubernetes: `{spec: {template: {spec: {priorityClassName: high}}}}`. null
    removes a field; `$patch: delete` removes a mapping, an item of a list, or the whole object."""


class Kubernetes(Section):
    """Settings of `aiaas render`."""

    name: Stem = "api-router"
    """The name, or the first part of the name, of every object."""

    namespace: DnsLabel = "system"
    """The namespace of every object."""

    platform: Literal["kubernetes", "openshift"] = "kubernetes"
    """`openshift` leaves user, group and fsGroup out of the pods, since OpenShift assigns them from the namespace's own
    range and refuses others."""

    create_namespace: Flag = False
    """Whether to render the Namespace, too, with Pod Security `restricted` enforced."""

    image: ImageName | None = None
    """The container image. null means `aiaas:<version>`, with a warning."""

    image_pull_secrets: tuple[ObjectName, ...] = ()
    """Secrets with the credentials of the image's registry."""

    host: HostName | None = None
    """The public host name. Required if `expose` is `ingress` or `gateway`."""

    more_hosts: tuple[HostName, ...] = ()
    """Further public host names."""

    replicas: Replicas = Replicas()
    """How many gateways run."""

    cpu_target: Annotated[Count, Field(ge=1, le=100)] = 70
    """The autoscaler's target for the average CPU use, in percent of the CPU request."""

    inflight_target: AtLeast1 | None = None
    """The autoscaler's second target: average requests in flight per pod. Requests wait for the engine, so hundreds of
    them can be open while the CPU is nearly idle. This needs an adapter (prometheus-adapter, KEDA) that serves
    `aiaas_requests_in_flight` as a pod metric. null leaves this target out."""

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

    env: dict[EnvName, Variable] = Field(default_factory=dict)
    """The value of each `${NAME}` of the config in the cluster: `{secret: NAME, key: KEY}` or `{value: TEXT}`."""

    authorities: Authorities | None = None
    """Certificate authorities that the gateway trusts beside the public ones, for backends and a shared store with
    certificates of your own. The pods read them at their start. `backends.X.tls.ca_file` may name an entry, to trust it
    alone for one backend. null trusts the public ones."""

    service_account_annotations: Annotations = Field(default_factory=dict)
    """Annotations of the ServiceAccount, such as a cloud's role (`eks.amazonaws.com/role-arn`)."""

    network_policy: NetworkPolicy = NetworkPolicy()
    """Allowed connections."""

    monitoring: KubernetesMonitoring = KubernetesMonitoring()
    """Objects for the Prometheus operator and Grafana."""

    immutable_config: Flag = True
    """Whether to name the ConfigMap by its content, so that `kubectl rollout undo` also restores the old config. false
    gives it a fixed name, and a checksum on the pods makes a changed config roll them."""

    labels: Labels = Field(default_factory=dict)
    """Further labels of every object."""

    annotations: Annotations = Field(default_factory=dict)
    """Further annotations of every object."""

    patches: tuple[Patch, ...] = ()
    """Changes of the rendered objects, for everything that has no field here. A patch cannot take away what the gateway
    relies on: probes, selectors, preStop, the mounted config."""

    extra: tuple[dict[str, Any], ...] = ()
    """Further objects, rendered as they are."""

    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that may run the gateway."""

    tolerations: tuple[Toleration, ...] = ()
    """Taints that the gateway's pods tolerate."""
