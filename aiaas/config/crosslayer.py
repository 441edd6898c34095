"""Rules between the proxy and the cluster it runs in.

These rules apply to a config with a `kubernetes` section, and to every rendered config. `check.py` runs them together
with its own rules: each rule is a small pure function that yields findings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from aiaas.config import codes
from aiaas.config.address import is_address
from aiaas.config.backend import Backend
from aiaas.config.chain import CLIENT_PATIENCE
from aiaas.config.hops import AFTER_DRAIN, by_balancer, pre_stop, usual_silence
from aiaas.config.ingress_rules import INGRESS_RULES
from aiaas.config.kubernetes import EngineResources, Resources
from aiaas.config.memory import body_budget, connection_memory
from aiaas.config.model import Config
from aiaas.config.pod_rules import ENGINE_RULES, POD_RULES
from aiaas.config.problem import Finding, Severity
from aiaas.config.service_rules import SERVICE_RULES
from aiaas.config.values import amount_of
from aiaas.limits.redis_url import parse_redis_url
from aiaas.units import format_duration, format_size
from aiaas.yamltree import Path

# The default idle timeout of load balancers and ingresses (AWS's ALB, nginx).
SMALLEST_IDLE_TIMER: Final = 60.0
# The cluster autoscaler waits at most this long for a pod (--max-graceful-termination-sec).
LONGEST_GRACE: Final = 600.0
# At 100 MB/s the weights of a 20B model download in seven minutes; with less time than this a first start fails.
SHORTEST_START: Final = 300.0
# Measured (docs/bench.md): 60 MiB for an idle worker, and two slow hashes of 19 MiB at the same time.
WORKER_MEMORY: Final = (60 + 40) * 1024**2
LARGEST_SECRET: Final = 1024**2  # corev1.MaxSecretSize
LARGEST_ANNOTATION: Final = 256 * 1024  # all annotations of an object together (TotalAnnotationSizeLimitB)

ClusterRule = Callable[[Config], Iterator[Finding]]

_K8S: Final = "kubernetes"


def check_keys_secret(config: Config, size: int) -> Iterator[Finding]:
    """Check that a key file of `size` bytes fits into a Secret."""
    if not config.kubernetes.keys_secret.create:
        return
    path: Path = ("auth", "keys_file")
    if size > LARGEST_SECRET:
        message = (
            f"the keys are {-(-size // 1024):,}KiB, and a Secret holds {format_size(LARGEST_SECRET)}; prune revoked "
            "and expired ones (`aiaas keys prune`), or mount the file from a volume (docs/keys.md)"
        )
        yield codes.KEYS_SIZE, "error", path, message
    elif size * 4 // 3 > LARGEST_ANNOTATION:
        message = (
            f"the keys are {-(-size // 1024):,}KiB, and `kubectl apply` keeps a copy in an annotation, which holds "
            f"{format_size(LARGEST_ANNOTATION)}; apply with --server-side"
        )
        yield codes.KEYS_SIZE, "warning", path, message


def _enabled_at(config: Config) -> Iterator[tuple[Path, Backend]]:
    return ((("backends", name), backend) for name, backend in config.backends.items() if backend.enabled)


def _is_exposed(config: Config) -> bool:
    return config.kubernetes.expose != "none"


def _clients_wait_longer(config: Config) -> Iterator[Finding]:
    silence = usual_silence(config)
    if silence >= CLIENT_PATIENCE:
        slowest = max((backend.timeout, path) for path, backend in _enabled_at(config))[1]
        message = (
            f"the gateway may be silent for {format_duration(silence)} (queue, failed connections, timeout), and the "
            f"OpenAI SDK gives up after {format_duration(CLIENT_PATIENCE)}; make it shorter"
        )
        yield codes.HOP_TIMEOUT, "warning", (*slowest, "timeout"), message


def _heartbeat(config: Config) -> Iterator[Finding]:
    beat = config.server.heartbeat
    if _is_exposed(config) and not 0 < beat < SMALLEST_IDLE_TIMER:
        what = f"is {format_duration(beat)}" if beat else "is off"
        message = (
            f"{what}, and a load balancer in between ends a stream that is silent for "
            f"{format_duration(SMALLEST_IDLE_TIMER)} (a long prompt, a busy engine); write 15s"
        )
        yield codes.IDLE_TIMER, "warning", ("server", "heartbeat"), message


def _grace(config: Config) -> Iterator[Finding]:
    drain, around = config.server.drain_timeout, float(pre_stop(config) + AFTER_DRAIN)
    if drain + around > LONGEST_GRACE:
        message = (
            f"a pod would need {format_duration(drain + around)} to end, and the cluster autoscaler kills it after "
            f"{format_duration(LONGEST_GRACE)}; make it {format_duration(LONGEST_GRACE - around)} or less"
        )
        yield codes.DRAIN, "warning", ("server", "drain_timeout"), message


def _drain(config: Config) -> Iterator[Finding]:
    drain = config.server.drain_timeout
    for path, backend in _enabled_at(config):
        total = backend.total_timeout
        if total is not None and total > drain:
            message = (
                f"a request may take {format_duration(total)}, and a rollout ends open requests after "
                f"{format_duration(drain)} (server.drain_timeout); raise that, or lower this"
            )
            yield codes.DRAIN, "warning", (*path, "total_timeout"), message


def _replicas(config: Config) -> Iterator[Finding]:
    replicas, resources = config.kubernetes.replicas, config.kubernetes.resources
    if replicas.min > replicas.max:
        message = f"is {replicas.min}, more than max ({replicas.max}); lower it, or raise max"
        yield codes.REPLICAS, "error", (_K8S, "replicas", "min"), message
    elif replicas.min == 1:
        message = "with one gateway, draining its node is an outage; write 2"
        yield codes.REPLICAS, "warning", (_K8S, "replicas", "min"), message
    if replicas.min < replicas.max and resources.requests.cpu is None:
        message = "the autoscaler targets a percentage of the CPU request, which is not set; set it"
        yield codes.REPLICAS, "error", (_K8S, "resources", "requests", "cpu"), message


def _workers(config: Config) -> Iterator[Finding]:
    workers, limits = config.server.workers, config.kubernetes.resources.limits
    path: Path = ("server", "workers")
    cpu = None if limits.cpu is None else amount_of(limits.cpu)
    if cpu is not None and workers > max(1, math.ceil(cpu)):
        message = (
            f"{workers} workers share {limits.cpu} CPU (kubernetes.resources.limits.cpu) and throttle each other; "
            "raise the limit, or run more replicas"
        )
        yield codes.WORKERS, "warning", path, message
    memory = None if limits.memory is None else amount_of(limits.memory)
    needed = workers * (WORKER_MEMORY + body_budget(config.server.max_body_size))
    connections = config.server.max_connections * connection_memory(tls=config.server.tls is not None)
    if memory is not None and needed <= memory < needed + connections:
        message = (
            f"up to {config.server.max_connections} connections{' under TLS' if config.server.tls else ''} take "
            f"{connections // 1024**2}Mi, the gateway about {(needed + connections) // 1024**2}Mi in all, and the pod "
            f"is killed at {limits.memory}; lower it, or raise that limit"
        )
        yield codes.CONNECTION_MEMORY, "warning", ("server", "max_connections"), message
    if memory is not None and memory < needed:
        message = (
            f"{workers} worker{'s' if workers > 1 else ''} need about {needed // 1024**2}Mi under load, and the pod is "
            f"killed at {limits.memory}; raise it"
        )
        yield codes.WORKERS, "warning", (_K8S, "resources", "limits", "memory"), message


def _requests_below_limits(config: Config) -> Iterator[Finding]:
    """Check the pods of the gateway and of engines; a request in the file may exceed a default limit."""
    pods: list[tuple[Path, Resources | EngineResources]] = [((_K8S, "resources"), config.kubernetes.resources)]
    for path, backend in _enabled_at(config):
        if backend.engine is not None and backend.engine.kind == "vllm":
            pods.append(((*path, "engine", "pod", "resources"), backend.engine.pod.resources))
    for path, resources in pods:
        for name in ("memory", "cpu"):
            request, limit = getattr(resources.requests, name), getattr(resources.limits, name)
            if request is not None and limit is not None and amount_of(request) > amount_of(limit):
                message = f"is {request}, above the limit of {limit}, and the API server refuses that; raise the limit"
                yield codes.REQUEST_ABOVE_LIMIT, "error", (*path, "requests", name), message


def _counted_apart(config: Config) -> Iterator[Finding]:
    """Check several replicas with one worker each; `check.py` covers several workers."""
    limits, replicas = config.rate_limit, config.kubernetes.replicas.max
    each = limits.requests_per_minute
    if limits.enabled and limits.store == "memory" and replicas > 1 and config.server.workers == 1:
        message = (
            f"each replica counts alone (rate_limit.store: memory), so with {replicas} a key may use up to {replicas} "
            f"times its limits{'' if each is None else f', {each * replicas} requests a minute instead of {each}'}; "
            "share the counts (store: redis://host:6379/0)"
        )
        yield codes.COUNTED_APART, "warning", (_K8S, "replicas", "max"), message


def _engine_starts(config: Config) -> Iterator[Finding]:
    for path, backend in _enabled_at(config):
        engine = backend.engine
        if engine is not None and engine.kind == "vllm" and engine.start_timeout < SHORTEST_START:
            message = (
                f"the kubelet kills an engine that loads for longer than {format_duration(engine.start_timeout)}, and "
                "starts it again from the beginning; the first start downloads the weights: leave it out (30m)"
            )
            yield codes.ENGINE_START, "warning", (*path, "engine", "start_timeout"), message


def _contexts(config: Config) -> Iterator[Finding]:
    for path, backend in _enabled_at(config):
        engine = backend.engine
        if engine is None or engine.kind != "vllm":
            continue
        context = _context(engine.args)
        for index, model in enumerate(backend.served() if context is not None else ()):
            for field in ("default_output_tokens", "max_output_tokens"):
                tokens = getattr(model, field)
                if tokens is not None and context is not None and tokens > context:
                    message = f"is {tokens}, and the engine's context is {context} (max-model-len); vLLM refuses it"
                    yield codes.CONTEXT, "warning", (*path, "models", index, field), message


def _context(args: dict[str, object]) -> int | None:
    value = args.get("max-model-len", args.get("max_model_len"))
    return value if isinstance(value, int) else None


def _policy(config: Config) -> Iterator[Finding]:
    settings = config.kubernetes
    policy, wanted = settings.network_policy, settings.monitoring
    metrics = config.monitoring.prometheus
    if not policy.enabled:
        if metrics:
            message = "every pod in the cluster can read the metrics (key ids, models, load); leave the policy on"
            yield codes.POLICY, "warning", (_K8S, "network_policy", "enabled"), message
        return
    if metrics and policy.monitoring_namespace is None:
        severity: Severity = "error" if wanted.service_monitor else "warning"
        message = "nothing can reach the metrics port; set it to the namespace that Prometheus scrapes from"
        yield codes.POLICY, severity, (_K8S, "network_policy", "monitoring_namespace"), message
    ingress, gateway = settings.ingress, settings.gateway
    named = "controller_namespace" in ingress.model_fields_set
    behind_pods = settings.expose == "ingress" and not by_balancer(settings)
    if behind_pods and not named and "nginx" not in ingress.class_name:
        message = (
            f"is not set, so only pods in {ingress.controller_namespace} can reach the gateway's port; name the "
            f"namespace of the controller of {ingress.class_name}"
        )
        yield codes.POLICY, "warning", (_K8S, "ingress", "controller_namespace"), message
    if settings.expose == "gateway" and gateway.namespace is None and gateway.controller_namespace is None:
        message = (
            f"only pods in {settings.namespace} can reach the gateway's port, and a Gateway's traffic usually comes "
            "from its implementation's namespace; set gateway.controller_namespace"
        )
        yield codes.POLICY, "warning", (_K8S, "gateway"), message


def _policy_peers(config: Config) -> Iterator[Finding]:
    """Check that an entry names somebody: without peers a rule would allow everybody."""
    policy = config.kubernetes.network_policy
    for direction, entries in (("ingress", policy.ingress), ("egress", policy.egress)):
        for index, each in enumerate(entries):
            if not (each.cidrs or each.namespace or each.namespace_labels or each.pod_labels):
                message = "names nobody; write cidrs, namespace, namespace_labels or pod_labels"
                yield codes.POLICY, "error", (_K8S, "network_policy", direction, index), message


def _store_policy(config: Config) -> Iterator[Finding]:
    """Check that the policy allows the store's servers that the address does not name."""
    policy, text = config.kubernetes.network_policy, config.rate_limit.store
    if not policy.enabled or text == "memory" or policy.store.namespace is not None or policy.store.pod_labels:
        return
    with suppress(ValueError):  # check.py reports the address itself
        store = parse_redis_url(text)
        if store.kind != "server" and any(is_address(place.host) for place in store.places):
            named = "sentinels name" if store.kind == "sentinel" else "cluster names"
            message = (
                f"the NetworkPolicy lets the gateway reach these addresses, but not the servers that the {named}; "
                "configure those in kubernetes.network_policy.store, or write the name of a Service"
            )
            yield codes.POLICY, "warning", ("rate_limit", "store"), message


def _gateway_listener(config: Config) -> Iterator[Finding]:
    if config.kubernetes.expose == "gateway" and config.kubernetes.gateway.section is None:
        message = "is not set, so the route also attaches to plain HTTP listeners; name the listener that has TLS"
        yield codes.PLAIN_HTTP, "warning", (_K8S, "gateway", "section"), message


def _images(config: Config) -> Iterator[Finding]:
    images: list[tuple[Path, str | None]] = [((_K8S, "image"), config.kubernetes.image)]
    for path, backend in _enabled_at(config):
        if backend.engine is not None and backend.engine.kind == "vllm":
            images.append(((*path, "engine", "pod", "image"), backend.engine.pod.image))
    for path, image in images:
        if image is None or "@" in image:
            continue
        _, colon, tag = image.rpartition("/")[2].partition(":")
        if not colon or tag == "latest":
            message = f"{image} may be a different image tomorrow, and a rollback would not restore it; pin a version"
            yield codes.IMAGE_TAG, "warning", path, message


def _client_addresses(config: Config) -> Iterator[Finding]:
    by_proxy = config.kubernetes.expose in ("ingress", "gateway")
    if by_proxy and not config.auth.enabled and config.rate_limit.enabled and not config.server.trusted_proxies:
        message = (
            "without keys the limits apply to each client address, and behind an ingress all clients have the same "
            "address; name the network of the ingress's pods"
        )
        yield codes.CLIENT_ADDRESS, "warning", ("server", "trusted_proxies"), message


def _lost_with_the_pod(config: Config) -> Iterator[Finding]:
    if config.monitoring.usage_file is not None:
        message = (
            "each pod counts by itself and loses its counts when it ends; count in the shared store (rate_limit.store)"
        )
        yield codes.USAGE_IN_POD, "warning", ("monitoring", "usage_file"), message
    if not config.kubernetes.immutable_config:
        message = "`kubectl rollout undo` brings back the old pods but not their config; leave it on"
        yield codes.CONFIG_NAME, "warning", (_K8S, "immutable_config"), message


# Those that hold wherever the gateway runs.
MACHINE_RULES: Final[tuple[ClusterRule, ...]] = (_clients_wait_longer, _heartbeat, _drain, _contexts, *ENGINE_RULES)
# Those that hold wherever the gateway and its engines run in containers.
CONTAINER_RULES: Final[tuple[ClusterRule, ...]] = (*MACHINE_RULES, _workers, _images)
CLUSTER_RULES: Final[tuple[ClusterRule, ...]] = (
    *CONTAINER_RULES,
    _grace,
    _replicas,
    _requests_below_limits,
    _counted_apart,
    _engine_starts,
    _policy,
    _policy_peers,
    _store_policy,
    *SERVICE_RULES,
    *POD_RULES,
    *INGRESS_RULES,
    _gateway_listener,
    _client_addresses,
    _lost_with_the_pod,
)
