"""A vLLM in a pod of its own, for a backend with `engine: {kind: vllm}`.

On one machine `aiaas serve` starts it (`aiaas.engines`); in a cluster it cannot share a pod with the gateway, which is
rolled and scaled, while a model takes minutes to load and a GPU to itself. So it gets a Deployment, a Service and a
volume.

What the gateway relies on: `--shutdown-timeout`, without which SIGTERM leaves requests hanging (transcripts 131, 139);
idle connections that outlive ours by far (we drop them after 4 s, vLLM by default after 5: transcript 81); the served
name; `/health`.
"""

from __future__ import annotations

import math
import re
from typing import Final

from aiaas.config.environment import names_in
from aiaas.config.hops import PRE_STOP
from aiaas.manifests.objects import (
    Object,
    amounts_of,
    container_security,
    from_secret,
    head,
    labels_of,
    pod_security,
    quantity,
    selector_of,
)
from aiaas.openai.paths import HEALTH
from aiaas.plan.deployed import ENGINE_PORT
from aiaas.plan.kubernetes import EngineDeployment, KubernetesPlan
from aiaas.plan.model import SHUTDOWN_OPTION

CACHE: Final = "/cache"
KEEP_ALIVE: Final = 75  # seconds
PROBE_PERIOD: Final = 10  # seconds
AFTER_SHUTDOWN: Final = 30  # seconds to free a GPU and leave
PARALLEL: Final = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")

# The image runs as root by default. As another user it has no home and no name: everything that it writes goes to the
# volume, and torch asks getpass for a name.
HOME: Final = {
    "HOME": CACHE,
    "USER": "vllm",
    "HF_HOME": f"{CACHE}/huggingface",
    "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/torchinductor",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
}


def claim(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    """The volume that keeps the weights, so that a restart does not fetch them again."""
    spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": quantity(engine.pod.storage)}},
    }
    if engine.pod.storage_class is not None:
        spec["storageClassName"] = engine.pod.storage_class
    return head(plan, "v1", "PersistentVolumeClaim", engine.name, app=engine.name) | {"spec": spec}


def engine_service(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    """The address that stands in the gateway's config."""
    port = {"name": "http", "protocol": "TCP", "port": ENGINE_PORT, "targetPort": ENGINE_PORT}
    spec = {"type": "ClusterIP", "ports": [port], "selector": selector_of(engine.name)}
    return head(plan, "v1", "Service", engine.name, app=engine.name) | {"spec": spec}


def engine_deployment(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    """One replica: the GPU and the volume belong to one pod, so the old one goes before the new one comes."""
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
        "progressDeadlineSeconds": math.ceil(engine.engine.start_timeout) + 600,  # and the image is gigabytes
        "template": {"metadata": metadata, "spec": _pod(plan, engine)},
    }
    return head(plan, "apps/v1", "Deployment", engine.name, app=engine.name) | {"spec": spec}


def _pod(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    pod = engine.pod
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service named `vllm` would inject VLLM_PORT, which vLLM reads
        "terminationGracePeriodSeconds": PRE_STOP + shutdown_timeout(plan, engine) + AFTER_SHUTDOWN,
        # Only a fresh volume is handed over to the group: going through 100 GB of weights at every start takes minutes.
        "securityContext": pod_security() | {"fsGroupChangePolicy": "OnRootMismatch"},
    }
    if plan.settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in plan.settings.image_pull_secrets]
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in pod.tolerations]
    shared_memory = {"medium": "Memory", "sizeLimit": quantity(pod.shared_memory)}
    return spec | {
        "containers": [_container(plan, engine)],
        "volumes": [
            {"name": "cache", "persistentVolumeClaim": {"claimName": pod.claim or engine.name}},
            {"name": "shm", "emptyDir": shared_memory},  # a container has 64 MiB otherwise, and NCCL fails
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _container(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    return {
        "name": "vllm",
        "image": engine.pod.image,
        "command": ["vllm", "serve"],
        "args": [escaped(argument) for argument in arguments(plan, engine)],
        "ports": [{"name": "http", "protocol": "TCP", "containerPort": ENGINE_PORT}],
        "env": environment(plan, engine),
        "resources": _resources(engine),
        # Until the model is loaded neither of the others asks; a probe that kills a loading engine would do so forever.
        "startupProbe": _probe(
            periodSeconds=PROBE_PERIOD,
            timeoutSeconds=5,
            failureThreshold=math.ceil(engine.engine.start_timeout / PROBE_PERIOD),
        ),
        "readinessProbe": _probe(periodSeconds=5, timeoutSeconds=5, failureThreshold=3),
        # A dead engine leaves by itself. This is for one that hangs, and two minutes are no hang: compiling stalls it.
        "livenessProbe": _probe(periodSeconds=PROBE_PERIOD, timeoutSeconds=10, failureThreshold=12),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP}}},
        "securityContext": container_security(read_only=False),  # what torch and its compilers write is not all known
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


def shutdown_timeout(plan: KubernetesPlan, engine: EngineDeployment) -> int:
    """Seconds that vLLM may take to finish what is in flight: the operator's, else as long as the gateway's drain."""
    args = engine.engine.args
    if SHUTDOWN_OPTION in args[:-1]:
        return math.ceil(float(args[args.index(SHUTDOWN_OPTION) + 1]))
    return math.ceil(plan.gateway.server.drain_timeout)


def arguments(plan: KubernetesPlan, engine: EngineDeployment) -> tuple[str, ...]:
    """The command line after `vllm serve`; ours come last, since of two equal options vLLM takes the last."""
    args = engine.engine.args
    argv = [engine.engine.model, *args]
    if engine.pod.gpus > 1 and not set(PARALLEL) & set(args):
        argv += ["--tensor-parallel-size", str(engine.pod.gpus)]
    if SHUTDOWN_OPTION not in args:
        argv += [SHUTDOWN_OPTION, str(shutdown_timeout(plan, engine))]
    argv += ["--served-model-name", engine.engine.served_name, "--host", "0.0.0.0", "--port", str(ENGINE_PORT)]
    return tuple(argv)


_REFERENCE = re.compile(r"\$\$\{|\$\{(\w+)\}|\$")


def environment(plan: KubernetesPlan, engine: EngineDeployment) -> list[Object]:
    """The engine's variables, each once. A value of `${NAME}` alone is a reference to its Secret; inside a longer text
    it becomes Kubernetes' own `$(NAME)`, which has to be defined before."""
    entries: dict[str, Object] = {}
    plain = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE)} | HOME
    for name, value in (plain | dict(engine.environment)).items():
        whole = re.fullmatch(r"\$\{(\w+)\}", value)
        if whole is not None:
            entries[name] = from_secret(plan, whole[1], variable=name)
            continue
        for inner in sorted(names_in(value) - entries.keys()):
            entries[inner] = from_secret(plan, inner)
        entries[name] = {"name": name, "value": _REFERENCE.sub(_expanded, value)}
    if engine.key is not None:
        entries["VLLM_API_KEY"] = from_secret(plan, engine.key, variable="VLLM_API_KEY")
    return list(entries.values())


def _expanded(match: re.Match[str]) -> str:
    if match[1]:
        return f"$({match[1]})"
    return "$${" if match[0] == "$${" else "$$"


def escaped(text: str) -> str:
    """Text in which Kubernetes finds no `$(NAME)` to expand."""
    return text.replace("$", "$$")
