"""The gateway's own objects: identity, config, keys, Deployment, Service, disruption budget and autoscaler."""

from __future__ import annotations

import base64
from typing import Final

from aiaas.manifests.controllers import google_service_annotations, is_behind
from aiaas.manifests.objects import (
    READ_BY_GROUP,
    Object,
    container_security,
    from_settings,
    head,
    labels_of,
    pod_security,
    resources_of,
    selector_of,
)
from aiaas.openai.paths import HEALTH, READY
from aiaas.plan.deployed import (
    AUTHORITIES_FOLDER,
    CONFIG_FILE,
    CONFIG_FOLDER,
    CONFIG_KEY,
    DATA_FOLDER,
    KEYS_FOLDER,
    KEYS_KEY,
    TLS_FOLDER,
)
from aiaas.plan.kubernetes import KubernetesPlan

CONTAINER: Final = "api-router"
HTTPS_PORT: Final = 443
ZONE: Final = "topology.kubernetes.io/zone"
NODE: Final = "kubernetes.io/hostname"
ARGO: Final = "argocd.argoproj.io/"


def namespace(plan: KubernetesPlan) -> Object:
    """The Namespace, with Pod Security `restricted` enforced."""
    made = head(plan, "v1", "Namespace", plan.settings.namespace)
    del made["metadata"]["namespace"]
    made["metadata"]["labels"] |= {"pod-security.kubernetes.io/enforce": "restricted"}
    return made


def service_account(plan: KubernetesPlan) -> Object:
    """An identity without rights and without a token: the gateway never talks to the API server."""
    made = head(plan, "v1", "ServiceAccount", plan.app, annotations=plan.settings.service_account_annotations)
    return made | {"automountServiceAccountToken": False}


def config_map(plan: KubernetesPlan) -> Object:
    """The deployed form of the config. Immutable and named by its content, so that old ReplicaSets keep theirs."""
    annotations = _kept_when_pruned(plan) if plan.settings.immutable_config else {}
    made = head(plan, "v1", "ConfigMap", plan.config_name, annotations=annotations)
    if plan.settings.immutable_config:
        made["immutable"] = True
    return made | {"data": {CONFIG_KEY: plan.config_text}}


def _kept_when_pruned(plan: KubernetesPlan) -> dict[str, str]:
    """The marks by which Argo CD and Flux keep an object that is no longer rendered: an old ReplicaSet, to which a
    rollout or `kubectl rollout undo` goes back, still needs its ConfigMap."""
    marks = {f"{ARGO}sync-options": "Prune=false", f"{ARGO}compare-options": "IgnoreExtraneous"}
    written = plan.settings.annotations
    joined = {name: ",".join(filter(None, (written.get(name), mark))) for name, mark in marks.items()}
    return joined | {"kustomize.toolkit.fluxcd.io/prune": "disabled"}


def keys_secret(plan: KubernetesPlan, keys_text: str) -> Object:
    """The key file, which holds hashes of keys. A change does not roll the pods; the gateway reads the file again."""
    encoded = base64.b64encode(keys_text.encode()).decode("ascii")
    return head(plan, "v1", "Secret", plan.keys_secret) | {"type": "Opaque", "data": {KEYS_KEY: encoded}}


def gateway_service(plan: KubernetesPlan) -> Object:
    """The plan's Service; as a LoadBalancer it faces the internet, on port 443."""
    port = plan.gateway.server.port
    if plan.settings.expose == "loadbalancer":
        ports: Object = {"name": "https", "protocol": "TCP", "port": HTTPS_PORT, "targetPort": port}
        # Local: the pods see the clients' addresses, since nodes do not forward to each other.
        kind: Object = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    else:
        ports = {"name": "http", "protocol": "TCP", "port": port, "targetPort": port}
        kind = {"type": "ClusterIP"}
    spec = kind | {"ports": [ports], "selector": selector_of(plan.app)}
    annotations = google_service_annotations(plan) if is_behind(plan, "gce") else None
    return head(plan, "v1", "Service", plan.app, annotations=annotations) | {"spec": spec}


def gateway_deployment(plan: KubernetesPlan) -> Object:
    """The gateway's Deployment. The autoscaler alone sets `replicas`: each apply would reset them, and an apply that
    removes them from the manifest (a fixed size that becomes a range) would leave one pod until the autoscaler acts."""
    spec: Object = {
        "selector": {"matchLabels": selector_of(plan.app)},
        # An old pod ends only when a new pod is ready, and then drains as long as it needs.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {"metadata": _pod_metadata(plan), "spec": _pod(plan)},
    }
    return head(plan, "apps/v1", "Deployment", plan.app) | {"spec": spec}


def _pod_metadata(plan: KubernetesPlan) -> Object:
    monitoring = plan.gateway.monitoring
    annotations = dict(plan.settings.annotations)
    if not plan.settings.immutable_config:
        annotations["checksum/config"] = plan.config_digest
    if monitoring.prometheus and not plan.settings.monitoring.service_monitor:
        annotations |= {"prometheus.io/scrape": "true", "prometheus.io/port": str(monitoring.metrics_port)}
    metadata: Object = {"labels": labels_of(plan, plan.app)}
    return metadata | ({"annotations": annotations} if annotations else {})


def _pod(plan: KubernetesPlan) -> Object:
    settings = plan.settings
    spec: Object = {
        "serviceAccountName": plan.app,
        "automountServiceAccountToken": False,
        # A Service named `prometheus` would set PROMETHEUS_PORT in the pod, which overrides a field of the config.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": plan.grace,
        "securityContext": pod_security(plan),
        "topologySpreadConstraints": [_spread(plan, ZONE), _spread(plan, NODE)],
    }
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if settings.node_selector:
        spec["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        spec["tolerations"] = [toleration.as_written() for toleration in settings.tolerations]
    return spec | {"containers": [_container(plan)], "volumes": _volumes(plan)}


def _spread(plan: KubernetesPlan, topology: str) -> Object:
    """Spread the pods over nodes and zones if possible; a single node or zone does not stop them."""
    return {
        "maxSkew": 1,
        "topologyKey": topology,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector_of(plan.app)},
    }


def _container(plan: KubernetesPlan) -> Object:
    container: Object = {
        "name": CONTAINER,
        "image": plan.image,
        "command": ["aiaas"],
        "args": ["serve", "--config", str(CONFIG_FILE)],
        "ports": _ports(plan),
    }
    variables = [from_settings(plan, name) for name in plan.variables]
    if (given := plan.settings.authorities) is not None:
        # OpenSSL reads it besides its folder, which has the public authorities.
        variables.append({"name": "SSL_CERT_FILE", "value": f"{AUTHORITIES_FOLDER}/{given.key}"})
    if variables:
        container["env"] = variables
    return container | {
        "resources": resources_of(plan.settings.resources),
        # A start takes a second or two; the other probes wait until then.
        "startupProbe": _probe(plan, HEALTH, periodSeconds=1, timeoutSeconds=2, failureThreshold=60),
        "readinessProbe": _probe(plan, READY, periodSeconds=5, timeoutSeconds=2, failureThreshold=2),
        "livenessProbe": _probe(plan, HEALTH, periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        "lifecycle": {"preStop": {"sleep": {"seconds": plan.pre_stop}}},
        "securityContext": container_security(read_only=True),
        "volumeMounts": [
            {"name": name, "mountPath": path} | ({} if writable else {"readOnly": True})
            for name, path, writable in _mounts(plan)
        ],
    }


def _ports(plan: KubernetesPlan) -> list[Object]:
    monitoring = plan.gateway.monitoring
    ports = [{"name": "http", "protocol": "TCP", "containerPort": plan.gateway.server.port}]
    if monitoring.prometheus:
        ports.append({"name": "metrics", "protocol": "TCP", "containerPort": monitoring.metrics_port})
    return ports


def _probe(plan: KubernetesPlan, path: str, **numbers: int) -> Object:
    get: Object = {"path": path, "port": "http"}
    if plan.gateway.server.tls is not None:
        get["scheme"] = "HTTPS"
    return {"httpGet": get} | numbers


def _mounts(plan: KubernetesPlan) -> list[tuple[str, str, bool]]:
    """(volume, folder, writable). Mount folders, not single files, since Kubernetes never updates a `subPath`."""
    mounts = [("config", CONFIG_FOLDER, False)]
    if plan.gateway.auth.enabled:
        mounts.append(("keys", KEYS_FOLDER, False))
    if plan.gateway.server.tls is not None:
        mounts.append(("tls", TLS_FOLDER, False))
    if plan.settings.authorities is not None:
        mounts.append(("authorities", AUTHORITIES_FOLDER, False))
    if plan.gateway.monitoring.usage_file is not None:
        mounts.append(("data", DATA_FOLDER, True))
    return [*mounts, ("tmp", "/tmp", True)]


def _volumes(plan: KubernetesPlan) -> list[Object]:
    sources: dict[str, Object] = {
        "config": {"configMap": {"name": plan.config_name}},
        "keys": {"secret": {"secretName": plan.keys_secret, "defaultMode": READ_BY_GROUP}},
        "tls": {"secret": {"secretName": plan.tls_secret, "defaultMode": READ_BY_GROUP}},
        "authorities": _authorities(plan),
        "data": {"emptyDir": {"sizeLimit": "1Gi"}},
        "tmp": {"emptyDir": {"sizeLimit": "64Mi"}},
    }
    return [{"name": name} | sources[name] for name, _, _ in _mounts(plan)]


def _authorities(plan: KubernetesPlan) -> Object:
    given = plan.settings.authorities
    if given is not None and given.secret is not None:
        return {"secret": {"secretName": given.secret, "defaultMode": READ_BY_GROUP}}
    return {"configMap": {"name": given.config_map if given is not None else None}}


def disruption_budget(plan: KubernetesPlan) -> Object:
    """The PodDisruptionBudget: a node's maintenance may evict one gateway pod at a time."""
    spec: Object = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",  # a pod that never became ready must not block a node's drain
        "selector": {"matchLabels": selector_of(plan.app)},
    }
    return head(plan, "policy/v1", "PodDisruptionBudget", plan.named("pdb")) | {"spec": spec}


def autoscaler(plan: KubernetesPlan) -> Object:
    """The plan's HPA, on CPU and, with `inflight_target`, on requests in flight. Equal bounds are a fixed size, which
    the HPA keeps whatever the metrics say, and without them."""
    cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": plan.settings.cpu_target}}
    metrics: list[Object] = [{"type": "Resource", "resource": cpu}]
    if plan.settings.inflight_target is not None:
        target = {"type": "AverageValue", "averageValue": str(plan.settings.inflight_target)}
        metrics.append({"type": "Pods", "pods": {"metric": {"name": "aiaas_requests_in_flight"}, "target": target}})
    spec: Object = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": plan.app},
        "minReplicas": plan.settings.replicas.min,
        "maxReplicas": plan.settings.replicas.max,
        "metrics": metrics,
    }
    return head(plan, "autoscaling/v2", "HorizontalPodAutoscaler", plan.named("hpa")) | {"spec": spec}
