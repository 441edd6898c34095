"""Config -> SystemdPlan: make every decision that the units of one machine need. Pure.

`aiaas.manifests.systemd` only writes the plan out. The gateway runs the deployed form of the config
(`aiaas.plan.deployed`), with the same paths as in a pod, and without `kubernetes`: there is one gateway, which has all
of every limit. An engine of kind vllm becomes a service on 127.0.0.1, at the port where `aiaas serve` would start it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from aiaas.config.address import is_address, is_loopback
from aiaas.config.check import engine_port
from aiaas.config.crosslayer import WORKER_MEMORY
from aiaas.config.deployment import addresses
from aiaas.config.hops import grace_period
from aiaas.config.kubernetes import EngineResources, Resources
from aiaas.config.load import Loaded
from aiaas.config.memory import body_budget, connection_memory
from aiaas.config.model import Config
from aiaas.config.values import amount_of
from aiaas.config.write import to_yaml
from aiaas.limits.redis_url import RedisUrl, parse_redis_url
from aiaas.plan.compile import compile_plan
from aiaas.plan.deployed import deployed_form
from aiaas.plan.kubernetes import EngineDeployment, engine_names, engines_of, plan_of_text, variables_of
from aiaas.plan.model import Plan

ENGINE_HOST: Final = "127.0.0.1"
UNIT_STEM: Final = "vllm"
MIB: Final = 1024**2
LEAST_MEMORY: Final = 512  # MiB for each worker, as a pod has by default
MEMORY_STEP: Final = 128  # MiB


@dataclass(frozen=True, slots=True)
class SystemdPlan:
    """The content of the units and of the files beside them.

    gateway      the Plan that the service runs, compiled from `config_text`
    config_text  the config of the service
    host         the address at which systemd opens the port
    variables    the names whose values come from credentials, sorted
    values       those that the config itself gives
    peers        the only hosts with which the gateway exchanges anything; None if there may be others
    store_here   whether the shared store runs on this machine
    memory       MiB that the gateway may take
    engine_memory  backend -> MiB that its engine may take, where the config says so
    grace        seconds from SIGTERM to the gateway's end at the latest
    """

    gateway: Plan
    config_text: str = field(repr=False)
    host: str
    variables: tuple[str, ...]
    values: Mapping[str, str]
    engines: tuple[EngineDeployment, ...]
    peers: tuple[str, ...] | None
    store_here: bool
    memory: int
    engine_memory: Mapping[str, int]
    grace: int


def plan_systemd(loaded: Loaded, env: Mapping[str, str]) -> SystemdPlan:
    """The SystemdPlan of a config in which neither `check` nor `check_systemd` finds an error.

    env  a value for every `${NAME}`; values may decide an address, but are not rendered
    """
    config = loaded.config
    assert config is not None
    names = engine_names(config, UNIT_STEM)
    urls = {backend: f"http://{ENGINE_HOST}:{engine_port(config, backend)}" for backend in names}
    form = deployed_form(loaded.written, config, urls)
    form.pop("kubernetes", None)
    text = to_yaml(form)
    gateway = plan_of_text(text, env)
    host, store = config.server.host, _store(config)
    variables = variables_of(config, text)
    values = {name: each.value for name, each in config.kubernetes.env.items() if each.value is not None}
    return SystemdPlan(
        gateway=gateway,
        config_text=text,
        host="127.0.0.1" if host == "localhost" else host,
        variables=variables,
        values=values,
        engines=tuple(engines_of(loaded, names, compile_plan(config, env=env))),
        peers=_peers(config),
        store_here=store is not None and any(is_loopback(place.host) for place in store.places),
        memory=_memory(config),
        engine_memory=dict(_engine_memory(config)),
        grace=grace_period(gateway.server.drain_timeout, before=0),
    )


def _peers(config: Config) -> tuple[str, ...] | None:
    """The hosts of everything that the gateway connects to, if clients come from this machine alone and nothing needs
    DNS. Sentinels and nodes of a cluster announce other servers."""
    hosts = {host for _, host in addresses(config)}
    is_known = all(is_address(host) or is_loopback(host) for host in hosts)
    store = _store(config)
    if not is_loopback(config.server.host) or not is_known or (store is not None and store.kind != "server"):
        return None
    return tuple(sorted(host for host in hosts if not is_loopback(host)))


def _store(config: Config) -> RedisUrl | None:
    return None if config.rate_limit.store == "memory" else parse_redis_url(config.rate_limit.store)


def _memory(config: Config) -> int:
    """The written limit, else room for all that the config admits at once, in MiB."""
    settings, server = config.kubernetes, config.server
    written = _written_limit(settings.resources) if "resources" in settings.model_fields_set else None
    workers = server.workers * (WORKER_MEMORY + body_budget(server.max_body_size))
    needed = workers + server.max_connections * connection_memory(tls=server.tls is not None)
    return written or max(LEAST_MEMORY * server.workers, math.ceil(needed / MIB / MEMORY_STEP) * MEMORY_STEP)


def _engine_memory(config: Config) -> Iterator[tuple[str, int]]:
    for name, backend in config.backends.items():
        pod = None if backend.engine is None else backend.engine.pod
        if pod is not None and "resources" in pod.model_fields_set:
            written = _written_limit(pod.resources)
            if written is not None:
                yield name, written


def _written_limit(resources: Resources | EngineResources) -> int | None:
    """The limit of memory that the file has, in MiB."""
    amount = resources.limits.memory if "limits" in resources.model_fields_set else None
    return None if amount is None else math.ceil(amount_of(amount) / MIB)
