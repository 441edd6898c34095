"""Notes for the operator of a compose file: steps to take, and fields without effect, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiaas.config.address import is_address, is_loopback
from aiaas.config.compose import MACHINE
from aiaas.manifests.compose_engine import NVIDIA, token_of
from aiaas.plan.compose import ComposePlan
from aiaas.plan.deployed import CONFIG_FOLDER, TLS_CERT, TLS_KEY
from aiaas.plan.model import EndpointPlan

# Fields of `kubernetes` and of an engine's `pod` that also hold in a compose file.
_ALSO_HERE: Final = frozenset({"name", "image", "resources", "env", "authorities", "keys_secret"})
_OF_POD_HERE: Final = frozenset({"image", "gpus", "gpu_resource", "resources", "shared_memory"})
_INSTEAD: Final = {
    "replicas": "one gateway runs, and has all of every limit",
    "network_policy": "containers of one compose file reach each other and the internet",
    "monitoring": "Prometheus and Grafana are yours to set up (docs/metrics.md, docs/alerts.md)",
}


def compose_notes(plan: ComposePlan) -> tuple[str, ...]:
    """All notes, in the order of the steps."""
    return (*_files(plan), *_image(plan), *_open_side(plan), *_peers(plan), *_engines(plan), *_of_a_cluster(plan))


def _files(plan: ComposePlan) -> Iterator[str]:
    if plan.gateway.server.tls is not None:
        yield f"put the certificate chain and its key into tls/, as {TLS_CERT} and {TLS_KEY}; renewed files are noticed"
    if plan.authorities:
        yield f"put the certificate authorities into authorities/, as {', '.join(plan.authorities)}"
    for token in sorted({token for engine in plan.engines if (token := token_of(engine)) is not None}):
        yield f"put the Hugging Face token into the file secrets/{token}"
    store = plan.gateway.limits.store_url
    for file in () if store is None else filter(None, (store.cert_file, store.key_file)):
        if file.is_relative_to(CONFIG_FOLDER):
            yield f"put {file.relative_to(CONFIG_FOLDER)}, which the store's address names, into config/"


def _image(plan: ComposePlan) -> Iterator[str]:
    if plan.settings.image is None:
        yield f"no registry has {plan.image}: build it from a checkout (docker build -t {plan.image} .)"


def _open_side(plan: ComposePlan) -> Iterator[str]:
    open_to_all = plan.address is None or not is_loopback(plan.address)
    if plan.domain is not None:
        yield (
            f"Caddy gets a certificate for {plan.domain} once that name leads to this machine and the internet reaches "
            "its ports 80 and 443"
        )
    elif open_to_all and plan.gateway.server.tls is None:
        yield (
            f"port {plan.gateway.server.port} speaks plain HTTP to everybody who reaches this machine, and Docker "
            "opens it past ufw: use --domain NAME or server.tls, or write server.host: 127.0.0.1"
        )


def _peers(plan: ComposePlan) -> Iterator[str]:
    own = {engine.name for engine in plan.engines}
    for backend in plan.gateway.backends:
        for endpoint in (*backend.endpoints, *((backend.dns,) if backend.dns is not None else ())):
            if backend.engine is None and endpoint.host not in own and _is_short(endpoint):
                yield (
                    f"{endpoint.host} (backends.{backend.name}) is not in this file: attach its container to the "
                    f"network {plan.settings.name}_default, or write an address that this machine resolves"
                )
    store = plan.gateway.limits.store_url
    if store is not None and plan.store is None:
        yield (
            f"the store {plan.gateway.limits.store} is not in this file, so the gateway connects to it there; "
            "redis://:${REDIS_PASSWORD}@redis:6379/0 would add one"
        )


def _is_short(endpoint: EndpointPlan) -> bool:
    """Whether a host is a name that only a network of containers knows."""
    return "." not in endpoint.host and endpoint.host != MACHINE and not is_address(endpoint.host)


def _engines(plan: ComposePlan) -> Iterator[str]:
    with_gpus = [engine for engine in plan.engines if engine.pod.gpus]
    nvidia = [engine for engine in with_gpus if engine.pod.gpu_resource == NVIDIA]
    if nvidia:
        number = sum(engine.pod.gpus for engine in nvidia)
        first, order = 0, []
        for engine in nvidia:
            order.append(f"{engine.name} {', '.join(map(str, range(first, first + engine.pod.gpus)))}")
            first += engine.pod.gpus
        which = f" ({'; '.join(order)})" if len(nvidia) > 1 else ""
        yield f"the machine needs {number} GPU{'s' if number > 1 else ''}{which} and the NVIDIA Container Toolkit"
    for engine in with_gpus:
        if engine not in nvidia:
            yield f"{engine.name}: aiaas cannot reserve {engine.pod.gpu_resource} by Docker; add its devices yourself"
    if plan.engines:
        yield "Docker restarts an engine that exits, but not one that hangs: `docker compose ps` shows it as unhealthy"


def _of_a_cluster(plan: ComposePlan) -> Iterator[str]:
    fields = [f"kubernetes.{name}" for name in sorted(plan.written - _ALSO_HERE)]
    for engine in plan.engines:
        fields += [f"the engine's pod.{name}" for name in sorted(engine.pod.model_fields_set - _OF_POD_HERE)]
    if fields:
        yield f"these are for a cluster and have no effect here: {', '.join(dict.fromkeys(fields))}"
    for name, instead in _INSTEAD.items():
        if name in plan.written:
            yield f"without kubernetes.{name}: {instead}"
