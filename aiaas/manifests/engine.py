"""A vLLM in a pod of its own, for a backend with `engine: {kind: vllm}`. `compose.py` starts it the same way.

On one machine `aiaas serve` starts the engine (`aiaas.engines`). In a cluster the engine cannot share a pod with the
gateway, which is rolled and scaled, while a model takes minutes to load and needs a GPU of its own. So the engine gets
a Deployment, a Service and a volume.

The gateway relies on these settings of vLLM: `--shutdown-timeout`, without which SIGTERM leaves requests hanging
(transcripts 131, 139); a keep-alive far longer than the gateway's (the gateway closes idle connections after 4 s, vLLM
by default after 5: transcript 81); the served name; `/health`.
"""

from __future__ import annotations

import math
import re
from typing import Final

from aiaas.config.environment import names_in
from aiaas.config.hops import PRE_STOP
from aiaas.config.pod_rules import PARALLEL
from aiaas.manifests.objects import (
    Object,
    amounts_of,
    container_security,
    from_settings,
    head,
    labels_of,
    pod_security,
    quantity,
    selector_of,
)
from aiaas.openai.paths import HEALTH
from aiaas.plan.deployed import ENGINE_PORT
from aiaas.plan.kubernetes import EngineDeployment, KubernetesPlan
from aiaas.plan.model import SHUTDOWN_OPTION, Plan

CACHE: Final = "/cache"
KEEP_ALIVE: Final = 75  # seconds
PROBE_PERIOD: Final = 10  # seconds
AFTER_SHUTDOWN: Final = 30  # seconds for vLLM to free the GPU and exit

# The image runs as root by default. Another user has neither a home folder nor a name, so put everything that vLLM
# writes on the volume, and set USER, since torch asks getpass for the user's name.
DEFAULTS: Final = {
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE),
    "HOME": CACHE,
    "USER": "vllm",
    "HF_HOME": f"{CACHE}/huggingface",
    "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/torchinductor",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
}


def claim(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    """The volume for the weights, so that a restart does not download them again."""
    spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": quantity(engine.pod.storage)}},
    }
    if engine.pod.storage_class is not None:
        spec["storageClassName"] = engine.pod.storage_class
    return head(plan, "v1", "PersistentVolumeClaim", engine.name, app=engine.name) | {"spec": spec}


def engine_service(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    """The Service, whose address the gateway's config has as `url`."""
    port = {"name": "http", "protocol": "TCP", "port": ENGINE_PORT, "targetPort": ENGINE_PORT}
    spec = {"type": "ClusterIP", "ports": [port], "selector": selector_of(engine.name)}
    return head(plan, "v1", "Service", engine.name, app=engine.name) | {"spec": spec}


def engine_deployment(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    """The Deployment, of one replica: GPU and volume belong to one pod, so the old pod ends before a new pod starts."""
    metadata: Object = {"labels": labels_of(plan, engine.name)}
    annotations = dict(plan.settings.annotations)
    if plan.gateway.monitoring.prometheus:
        annotations |= {"prometheus.io/scrape": "true", "prometheus.io/port": str(ENGINE_PORT)}
    if annotations:
        metadata["annotations"] = annotations
    spec: Object = {
        "replicas": 1,
        "selector": {"matchLabels": selector_of(engine.name)},
        "strategy": {"type": "Recreate"},
        "progressDeadlineSeconds": math.ceil(engine.engine.start_timeout) + 600,  # 600 s to pull gigabytes of image
        "template": {"metadata": metadata, "spec": _pod(plan, engine)},
    }
    return head(plan, "apps/v1", "Deployment", engine.name, app=engine.name) | {"spec": spec}


def _pod(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    pod = engine.pod
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service named `vllm` would inject VLLM_PORT, which vLLM reads
        "terminationGracePeriodSeconds": engine_grace(plan.gateway, engine, before=PRE_STOP),
        # Change the group of a fresh volume only: changing 100 GB of weights at every start would take minutes.
        "securityContext": pod_security(plan) | {"fsGroupChangePolicy": "OnRootMismatch"},
    }
    if plan.settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in plan.settings.image_pull_secrets]
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [toleration.as_written() for toleration in pod.tolerations]
    shared_memory = {"medium": "Memory", "sizeLimit": quantity(pod.shared_memory)}
    return spec | {
        "containers": [_container(plan, engine)],
        "volumes": [
            {"name": "cache", "persistentVolumeClaim": {"claimName": pod.claim or engine.name}},
            {"name": "shm", "emptyDir": shared_memory},  # with a container's default of 64 MiB NCCL fails
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _container(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    return {
        "name": "vllm",
        "image": engine.pod.image,
        "command": ["vllm", "serve"],
        "args": [escaped(argument) for argument in arguments(plan.gateway, engine)],
        "ports": [{"name": "http", "protocol": "TCP", "containerPort": ENGINE_PORT}],
        "env": environment(plan, engine),
        "resources": _resources(engine),
        # The other probes start once the model is loaded; a probe that kills a loading engine would kill it every time.
        "startupProbe": _probe(
            periodSeconds=PROBE_PERIOD,
            timeoutSeconds=5,
            failureThreshold=math.ceil(engine.engine.start_timeout / PROBE_PERIOD),
        ),
        "readinessProbe": _probe(periodSeconds=5, timeoutSeconds=5, failureThreshold=3),
        # A dead engine exits by itself, so this probe is for a hanging one. Compiling may stall vLLM for two minutes.
        "livenessProbe": _probe(periodSeconds=PROBE_PERIOD, timeoutSeconds=10, failureThreshold=12),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP}}},
        "securityContext": container_security(read_only=False),  # torch and its compilers write to unknown places
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _probe(**numbers: int) -> Object:
    return {"httpGet": {"path": HEALTH, "port": "http"}} | numbers


def _resources(engine: EngineDeployment) -> Object:
    pod = engine.pod
    gpus = {pod.gpu_resource: str(pod.gpus)} if pod.gpus else {}  # an extended resource has equal request and limit
    both = {
        "requests": amounts_of(pod.resources.requests) | gpus,
        "limits": amounts_of(pod.resources.limits) | gpus,
    }
    return {name: amounts for name, amounts in both.items() if amounts}


def engine_grace(gateway: Plan, engine: EngineDeployment, *, before: int) -> int:
    """Seconds from the order to stop an engine to its end at the latest; `before` of them pass before SIGTERM."""
    return before + shutdown_timeout(gateway, engine) + AFTER_SHUTDOWN


def shutdown_timeout(gateway: Plan, engine: EngineDeployment) -> int:
    """Seconds that vLLM may take to finish requests in flight: the operator's, else the gateway's drain_timeout."""
    args = engine.engine.args
    if SHUTDOWN_OPTION in args[:-1]:
        return math.ceil(float(args[args.index(SHUTDOWN_OPTION) + 1]))
    return math.ceil(gateway.server.drain_timeout)


def arguments(
    gateway: Plan, engine: EngineDeployment, *, host: str = "0.0.0.0", port: int = ENGINE_PORT
) -> tuple[str, ...]:
    """The command line after `vllm serve`. Our options come last, since vLLM takes the last of two equal options."""
    args = engine.engine.args
    argv = [engine.engine.model, *args]
    if engine.pod.gpus > 1 and not {f"--{name}" for name in PARALLEL} & set(args):
        argv += ["--tensor-parallel-size", str(engine.pod.gpus)]
    if SHUTDOWN_OPTION not in args:
        argv += [SHUTDOWN_OPTION, str(shutdown_timeout(gateway, engine))]
    argv += ["--served-model-name", engine.engine.served_name, "--host", host, "--port", str(port)]
    return tuple(argv)


REFERENCE: Final = re.compile(r"\$\$\{|\$\{(\w+)\}|\$")


def environment(plan: KubernetesPlan, engine: EngineDeployment) -> list[Object]:
    """The engine's environment variables, each once."""
    entries: dict[str, Object] = {}
    for name, value in (DEFAULTS | dict(engine.environment)).items():
        whole = re.fullmatch(r"\$\{(\w+)\}", value)
        if whole is not None:  # the value is `${NAME}` alone: refer to its Secret
            entries[name] = from_settings(plan, whole[1], variable=name)
            continue
        # `${NAME}` inside a longer text becomes Kubernetes' own `$(NAME)`, which must be defined before.
        for inner in sorted(names_in(value) - entries.keys()):
            entries[inner] = from_settings(plan, inner)
        entries[name] = {"name": name, "value": REFERENCE.sub(_expanded, value)}
    if engine.key is not None:
        entries["VLLM_API_KEY"] = from_settings(plan, engine.key, variable="VLLM_API_KEY")
    return list(entries.values())


def _expanded(match: re.Match[str]) -> str:
    if match[1]:
        return f"$({match[1]})"
    return "$${" if match[0] == "$${" else "$$"


def escaped(text: str) -> str:
    """`text` with each `$` doubled, so that Kubernetes does not expand `$(NAME)`."""
    return text.replace("$", "$$")
