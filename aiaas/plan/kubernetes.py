"""Config -> KubernetesPlan: make every decision that the manifests need. Pure.

`aiaas.manifests` only writes the plan out. This module reports a config that cannot be deployed, by field, before
rendering.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from aiaas import __version__
from aiaas.config import codes
from aiaas.config.backend import Backend
from aiaas.config.chain import largest_body
from aiaas.config.check import check
from aiaas.config.environment import names_in
from aiaas.config.hops import AFTER_DRAIN, ingress_timeout, pre_stop, request_timeout
from aiaas.config.kubernetes import EnginePod, Kubernetes
from aiaas.config.load import Loaded, load_text
from aiaas.config.model import Config
from aiaas.config.problem import Problem
from aiaas.config.tree import problem_at
from aiaas.config.write import to_yaml
from aiaas.limits.redis_url import REDIS_PORT, RedisUrl, parse_redis_url
from aiaas.openai.paths import HEALTH, MODELS
from aiaas.plan.compile import compile_plan
from aiaas.plan.deployed import CONFIG_FILE, CONFIG_KEY, ENGINE_PORT, deployed_form
from aiaas.plan.model import EnginePlan, Plan
from aiaas.plan.network import Edge, edge_to
from aiaas.yamltree import Path

LONGEST_SERVICE_NAME: Final = 63  # characters of a Service's name (RFC 1035 label)
CONFIG_DIGEST_DIGITS: Final = 10
LOWEST_PORT: Final = 1024  # a lower port needs a capability that Pod Security `restricted` requires to be dropped


@dataclass(frozen=True, slots=True)
class EngineDeployment:
    """A vLLM that runs in a pod of its own.

    name         the name of its objects, and the value of its `app` label
    key          the variable with its API key, None if it needs no key
    environment  `engine.env` as written, with `${NAME}` unresolved
    """

    backend: str
    name: str
    engine: EnginePlan
    pod: EnginePod
    key: str | None
    environment: Mapping[str, str] = field(repr=False)

    @property
    def variables(self) -> frozenset[str]:
        """The names whose values come from a Secret."""
        return names_in(dict(self.environment)) | ({self.key} if self.key else set())


@dataclass(frozen=True, slots=True)
class KubernetesPlan:
    """The content of the manifests.

    settings         the `kubernetes` section, for fields that are rendered as they are
    gateway          the Plan that the pods run, compiled from `config_text`
    config_text      the deployed form of the config
    image            the gateway's image
    paths            (path, whether it is a prefix) of each path that clients may reach
    ingress_timeout  seconds of silence that a hop in front of the gateway must allow
    largest_body     bytes of a body that a hop in front of the gateway must allow
    request_timeout  seconds for a whole request at a hop that bounds it; 0 is unbounded
    variables        the names whose values the gateway takes from a Secret (`settings.env`), sorted
    outgoing         the peers to which the gateway connects, without our own engines
    pre_stop         seconds that a pod goes on accepting connections after its deletion
    grace            seconds from the deletion of a pod to its end at the latest
    """

    settings: Kubernetes
    gateway: Plan
    config_text: str = field(repr=False)
    image: str
    paths: tuple[tuple[str, bool], ...]
    ingress_timeout: int
    largest_body: int
    request_timeout: int
    variables: tuple[str, ...]
    engines: tuple[EngineDeployment, ...]
    outgoing: tuple[Edge, ...]
    pre_stop: int
    grace: int

    @property
    def app(self) -> str:
        """The name of the Deployment and the Service, and the value of the `app` label."""
        return self.named("service")

    @property
    def config_name(self) -> str:
        """The ConfigMap's name, with the digest of its content if it is immutable."""
        stem = self.named("config")
        return f"{stem}-{self.config_digest}" if self.settings.immutable_config else stem

    @property
    def config_digest(self) -> str:
        """The digest of the ConfigMap's content."""
        return hashlib.sha256(self.config_text.encode()).hexdigest()[:CONFIG_DIGEST_DIGITS]

    @property
    def keys_secret(self) -> str:
        """The name of the Secret with the key file."""
        return self.settings.keys_secret.name or self.named("keys")

    @property
    def tls_secret(self) -> str:
        """The name of the Secret with the certificate."""
        return self.settings.ingress.tls_secret or self.named("tls")

    def named(self, suffix: str) -> str:
        """The name of the gateway's object with this suffix."""
        return f"{self.settings.name}-{suffix}"


def plan_kubernetes(loaded: Loaded, env: Mapping[str, str]) -> tuple[KubernetesPlan | None, tuple[Problem, ...]]:
    """The KubernetesPlan of a checked config; None and the problems if the config cannot be deployed.

    env  a value for every `${NAME}`; values may decide a backend's address, but are not rendered
    """
    config = loaded.config
    assert config is not None
    settings = config.kubernetes
    names = {backend: _engine_name(settings.name, backend) for backend in _vllm_engines(config)}
    urls = {backend: f"http://{name}.{settings.namespace}:{ENGINE_PORT}" for backend, name in names.items()}
    text = to_yaml(deployed_form(loaded.written, config, urls))
    engines = tuple(_engines(loaded, names, compile_plan(config, env=env)))
    secrets = {name for each in _enabled(config) for name in (each.api_key_env, each.isolate_cache_secret_env)}
    variables = names_in(text) | {name for name in secrets if name is not None}
    needed = variables.union(*(engine.variables for engine in engines))
    problems = tuple(
        problem_at(codes.NOT_DEPLOYABLE, "error", path, message, loaded.place(path))
        for path, message in _obstacles(config, needed)
    )
    if problems:
        return None, problems
    gateway = plan_of_text(text, env)
    plan = KubernetesPlan(
        settings=settings,
        gateway=gateway,
        config_text=text,
        image=settings.image or f"aiaas:{__version__}",
        paths=_paths(gateway),
        ingress_timeout=ingress_timeout(config),
        largest_body=largest_body(config),
        request_timeout=request_timeout(config),
        variables=tuple(sorted(variables)),
        engines=engines,
        outgoing=tuple(dict.fromkeys(_edges(config))),
        pre_stop=pre_stop(config),
        grace=pre_stop(config) + math.ceil(gateway.server.drain_timeout) + AFTER_DRAIN,
    )
    return plan, ()


def plan_of_text(text: str, env: Mapping[str, str]) -> Plan:
    """The Plan of a pod whose ConfigMap holds `text`."""
    loaded = load_text(text, file=CONFIG_KEY, env=env)
    wrong = [str(problem) for problem in loaded.problems + check(loaded, env) if problem.severity == "error"]
    assert not wrong, wrong
    assert loaded.config is not None
    return compile_plan(loaded.config, source=CONFIG_FILE, overrides=loaded.overrides, env=env)


def _enabled(config: Config) -> Iterator[Backend]:
    return (backend for backend in config.backends.values() if backend.enabled)


def _vllm_engines(config: Config) -> list[str]:
    """The backends with an engine of kind vllm, also disabled ones, since the config needs their addresses as well."""
    return [name for name, backend in config.backends.items() if backend.engine and backend.engine.kind == "vllm"]


def _engine_name(stem: str, backend: str) -> str:
    """The name of the Service for the engine of `backend`. If the backend's name does not fit into a Service's name, a
    digest keeps the names unique (`A.b` and `a-b`)."""
    slug = re.sub(r"[^a-z0-9]+", "-", backend.lower()).strip("-")
    name = f"{stem}-engine-{slug}"
    if slug == backend and len(name) <= LONGEST_SERVICE_NAME:
        return name
    digest = hashlib.sha256(backend.encode()).hexdigest()[:6]
    return f"{name[: LONGEST_SERVICE_NAME - 7].rstrip('-')}-{digest}"


def _engines(loaded: Loaded, names: Mapping[str, str], plan: Plan) -> Iterator[EngineDeployment]:
    config = loaded.config
    assert config is not None
    for backend in plan.backends:
        settings = config.backends[backend.name]
        if backend.name in names and backend.engine is not None and settings.engine is not None:
            written = loaded.written["backends"][backend.name]["engine"]
            yield EngineDeployment(
                backend=backend.name,
                name=names[backend.name],
                engine=backend.engine,
                pod=settings.engine.pod,
                key=settings.api_key_env,
                environment=dict(written.get("env") or {}),
            )


def _obstacles(config: Config, needed: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """The fields that prevent a deployment, each with a message."""
    settings, server = config.kubernetes, config.server
    expose: Path = ("kubernetes", "expose")
    if settings.expose in ("ingress", "gateway") and settings.host is None:
        yield ("kubernetes", "host"), f"is required for expose: {settings.expose}; write the public host name"
    if settings.expose == "gateway" and settings.gateway.name is None:
        yield ("kubernetes", "gateway", "name"), "is required for expose: gateway; name the Gateway to attach to"
    if settings.expose == "loadbalancer" and server.tls is None:
        yield (
            expose,
            "loadbalancer needs server.tls, otherwise keys cross the internet in plain text; set it, or use ingress",
        )
    if server.tls is not None and (why := _refuses_tls(settings)) is not None:
        yield ("server", "tls"), f"{why}; remove it: TLS ends in front of the gateway"
    wanted = settings.monitoring
    if not config.monitoring.prometheus and (wanted.service_monitor or wanted.rules or wanted.dashboard):
        yield ("kubernetes", "monitoring"), "needs monitoring.prometheus, which is off; switch it on, or remove this"
    for file in _store_files(config):
        message = f"{file} is not mounted into the pod; name a file of the image by its absolute path, or remove it"
        yield ("rate_limit", "store"), message
    if _is_loopback(server.host):
        yield ("server", "host"), f"{server.host} cannot be reached from outside the pod; write 0.0.0.0, or remove it"
    for path, host in addresses(config):
        if _is_loopback(host):
            yield path, f"{host} is the gateway's own pod; write the name of a Service, such as vllm.namespace"
    if server.port < LOWEST_PORT:
        yield ("server", "port"), f"{server.port} needs a capability that the pod lacks; write {LOWEST_PORT} or more"
    for name in sorted(needed - settings.env.keys()):
        message = f"{name} is used, but this section does not name its Secret; add {name}: {{secret: NAME, key: KEY}}"
        yield ("kubernetes", "env"), message


def _refuses_tls(settings: Kubernetes) -> str | None:
    """Why the ingress or Gateway cannot speak TLS to the pods; None if it can."""
    if settings.expose == "gateway":
        return "a Gateway speaks plain HTTP to its backends"
    known = settings.ingress.controllers()
    if settings.expose == "ingress" and any(controller.name == "traefik" for controller in known):
        return "Traefik would reject the certificate, since it is not valid for the pods' IP addresses"
    return None


def _store_files(config: Config) -> Iterator[str]:
    """The files in the store's address whose paths are relative to the config."""
    if config.rate_limit.store != "memory":
        store = parse_redis_url(config.rate_limit.store)
        named = (store.ca_file, store.cert_file, store.key_file)
        yield from (file for file in named if file is not None and not file.startswith("/"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _paths(plan: Plan) -> tuple[tuple[str, bool], ...]:
    """The paths to route from outside: `/v1` if any path below it is served, the others one by one, and /health. /ready
    is only for the kubelet, and metrics are internal."""
    served = [*plan.routes, *([MODELS] if plan.serves_models else [])]
    prefixes = [("/v1", True)] if any(path.startswith("/v1/") for path in served) else []
    others = [(path, False) for path in sorted(set(served)) if not path.startswith("/v1/")]
    return (*prefixes, *others, (HEALTH, False))


def addresses(config: Config) -> Iterator[tuple[Path, str]]:
    """The hosts of backends and of the shared store, each with its field."""
    for name, backend in config.backends.items():
        for path, address in backend.addresses() if backend.enabled else ():
            yield ("backends", name, *path), address.host
    if config.rate_limit.store != "memory":
        for place in parse_redis_url(config.rate_limit.store).places:
            yield ("rate_limit", "store"), place.host


def _edges(config: Config) -> Iterator[Edge]:
    """The edges to backends without an engine of ours, and to the shared store."""
    own = config.kubernetes.namespace
    for backend in _enabled(config):
        for _, address in backend.addresses():
            yield edge_to(address.host, address.port, backend.network, own_namespace=own, tls=address.tls)
    if config.rate_limit.store != "memory":
        yield from dict.fromkeys(_store_edges(parse_redis_url(config.rate_limit.store), config))


def _store_edges(store: RedisUrl, config: Config) -> Iterator[Edge]:
    """The edges to the servers in the address. Servers that sentinels or a cluster announce are assumed to run in the
    same place."""
    hints = config.kubernetes.network_policy.store
    for place in store.places:
        edge = edge_to(place.host, place.port, hints, own_namespace=config.kubernetes.namespace)
        if store.kind == "sentinel":
            edge = replace(edge, ports=tuple(dict.fromkeys((place.port, hints.port or REDIS_PORT))))
        yield edge
