"""Config -> KubernetesPlan: make every decision that the manifests need. Pure.

`aiaas.manifests` only writes the plan out. `aiaas.config.deployment` reports the fields that prevent a deployment.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from aiaas import __version__
from aiaas.config.address import is_loopback, parse_url
from aiaas.config.backend import Backend
from aiaas.config.chain import largest_body
from aiaas.config.check import check
from aiaas.config.environment import names_in
from aiaas.config.hops import grace_period, ingress_timeout, pre_stop, request_timeout
from aiaas.config.kubernetes import EnginePod, Kubernetes
from aiaas.config.load import Loaded, load_text
from aiaas.config.model import Config, Monitoring
from aiaas.config.write import to_yaml
from aiaas.limits.redis_url import REDIS_PORT, RedisUrl, parse_redis_url
from aiaas.openai.paths import HEALTH, MODELS
from aiaas.plan.compile import compile_plan
from aiaas.plan.deployed import CONFIG_FILE, CONFIG_KEY, ENGINE_PORT, deployed_form
from aiaas.plan.model import EnginePlan, Plan
from aiaas.plan.network import Edge, edge_to

LONGEST_SERVICE_NAME: Final = 63  # characters of a Service's name (RFC 1035 label)
CONFIG_DIGEST_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class EngineDeployment:
    """A vLLM that runs in a pod or container of its own.

    name         its host name; in a cluster the name of its objects, and the value of its `app` label
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
    monitoring       the `monitoring` section, for the alerts
    gateway          the Plan that the pods run, compiled from `config_text`
    config_text      the deployed form of the config
    image            the gateway's image
    paths            (path, whether it is a prefix) of each path that clients may reach
    ingress_timeout  seconds of silence that a hop in front of the gateway must allow
    largest_body     bytes of a body that a hop in front of the gateway must allow
    request_timeout  seconds for a whole request at a hop that bounds it; 0 is unbounded
    variables        the names whose values the gateway takes from its environment (`settings.env`), sorted
    outgoing         the peers to which the gateway connects, without our own engines
    pre_stop         seconds that a pod goes on accepting connections after its deletion
    grace            seconds from the deletion of a pod to its end at the latest
    """

    settings: Kubernetes
    monitoring: Monitoring
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

    @property
    def hosts(self) -> tuple[str, ...]:
        """The public host names, each once."""
        return tuple(dict.fromkeys(name for name in (self.settings.host, *self.settings.more_hosts) if name))

    def named(self, suffix: str) -> str:
        """The name of the gateway's object with this suffix."""
        return f"{self.settings.name}-{suffix}"


def plan_kubernetes(loaded: Loaded, env: Mapping[str, str]) -> KubernetesPlan:
    """The KubernetesPlan of a config in which neither `check` nor `check_deployment` finds an error.

    env  a value for every `${NAME}`; values may decide a backend's address, but are not rendered
    """
    config = loaded.config
    assert config is not None
    settings = config.kubernetes
    names = engine_names(config, f"{settings.name}-engine")
    urls = {backend: f"http://{name}.{settings.namespace}:{ENGINE_PORT}" for backend, name in names.items()}
    text = to_yaml(deployed_form(loaded.written, config, urls))
    engines = tuple(engines_of(loaded, names, compile_plan(config, env=env)))
    gateway = plan_of_text(text, env)
    return KubernetesPlan(
        settings=settings,
        monitoring=config.monitoring,
        gateway=gateway,
        config_text=text,
        image=settings.image or f"aiaas:{__version__}",
        paths=_paths(gateway),
        ingress_timeout=ingress_timeout(config),
        largest_body=largest_body(config),
        request_timeout=request_timeout(config),
        variables=variables_of(config, text),
        engines=engines,
        outgoing=tuple(dict.fromkeys(_edges(config))),
        pre_stop=pre_stop(config),
        grace=grace_period(gateway.server.drain_timeout, before=pre_stop(config)),
    )


def plan_of_text(text: str, env: Mapping[str, str]) -> Plan:
    """The Plan of a pod whose ConfigMap holds `text`."""
    loaded = load_text(text, file=CONFIG_KEY, env=env)
    wrong = [str(problem) for problem in loaded.problems + check(loaded, env) if problem.severity == "error"]
    assert not wrong, wrong
    assert loaded.config is not None
    return compile_plan(loaded.config, source=CONFIG_FILE, overrides=loaded.overrides, env=env)


def _enabled(config: Config) -> Iterator[Backend]:
    return (backend for backend in config.backends.values() if backend.enabled)


def variables_of(config: Config, text: str) -> tuple[str, ...]:
    """The names whose values the gateway takes from its environment, sorted; `text` is its config."""
    secrets = {name for each in _enabled(config) for name in (each.api_key_env, each.isolate_cache_secret_env)}
    return tuple(sorted(names_in(text) | {name for name in secrets if name is not None}))


def engine_names(config: Config, stem: str) -> dict[str, str]:
    """Backend -> the host name of its engine, for engines of kind vllm; also of disabled backends, since the config
    needs their addresses as well."""
    engines = {name: backend.engine for name, backend in config.backends.items() if backend.engine}
    return {name: _engine_name(stem, name) for name, engine in engines.items() if engine.kind == "vllm"}


def _engine_name(stem: str, backend: str) -> str:
    """If the backend's name does not fit into a Service's name, a digest keeps the names unique (`A.b` and `a-b`)."""
    slug = re.sub(r"[^a-z0-9]+", "-", backend.lower()).strip("-")
    name = f"{stem}-{slug}"
    if slug == backend and len(name) <= LONGEST_SERVICE_NAME:
        return name
    digest = hashlib.sha256(backend.encode()).hexdigest()[:6]
    return f"{name[: LONGEST_SERVICE_NAME - 7].rstrip('-')}-{digest}"


def engines_of(loaded: Loaded, names: Mapping[str, str], plan: Plan) -> Iterator[EngineDeployment]:
    """The engines of kind vllm, by the `names` of `engine_names` and the `plan` of the whole config."""
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


def _paths(plan: Plan) -> tuple[tuple[str, bool], ...]:
    """The paths to route from outside, each behind the path prefix: `/v1` if any path below it is served, the others
    one by one, and /health. /ready is only for the kubelet, and metrics are internal."""
    before = plan.server.path_prefix
    served = [*plan.routes, *([MODELS] if plan.serves_models else [])]
    prefixes = [("/v1", True)] if any(path.startswith("/v1/") for path in served) else []
    others = [(path, False) for path in sorted(set(served)) if not path.startswith("/v1/")]
    return tuple((before + path, prefix) for path, prefix in (*prefixes, *others, (HEALTH, False)))


def _edges(config: Config) -> Iterator[Edge]:
    """The edges to backends without an engine of ours, to the shared store, and to the collector of traces."""
    own = config.kubernetes.namespace
    for backend in _enabled(config):
        for _, address in backend.addresses():
            yield edge_to(address.host, address.port, backend.network, own_namespace=own, tls=address.tls)
    if config.rate_limit.store != "memory":
        yield from dict.fromkeys(_store_edges(parse_redis_url(config.rate_limit.store), config))
    if config.monitoring.traces is not None:
        address, hints = parse_url(config.monitoring.traces.endpoint), config.kubernetes.network_policy.collector
        if not is_loopback(address.host):  # a sidecar's address, which no policy concerns
            yield edge_to(address.host, address.port, hints, own_namespace=own, tls=address.tls)


def _store_edges(store: RedisUrl, config: Config) -> Iterator[Edge]:
    """The edges to the servers in the address. Servers that sentinels or a cluster announce are assumed to run in the
    same place."""
    hints = config.kubernetes.network_policy.store
    for place in store.places:
        edge = edge_to(place.host, place.port, hints, own_namespace=config.kubernetes.namespace)
        if store.kind == "sentinel":
            edge = replace(edge, ports=tuple(dict.fromkeys((place.port, hints.port or REDIS_PORT))))
        yield edge
