"""Rules for a config that is to be deployed to a cluster: what the manifests need, and what cannot work in a pod.

`aiaas validate` runs them if the config has a `kubernetes` section, `aiaas render` always; a running gateway does not,
since it ignores that section. Like all rules they are pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, Final, TypeGuard

from aiaas import __version__
from aiaas.config import codes
from aiaas.config.address import is_loopback, parse_url
from aiaas.config.check import placed
from aiaas.config.environment import names_in
from aiaas.config.kubernetes import Kubernetes
from aiaas.config.load import Loaded
from aiaas.config.model import Config
from aiaas.config.problem import Finding, Problem, dotted
from aiaas.limits.redis_url import parse_redis_url
from aiaas.yamltree import Path

LOWEST_PORT: Final = 1024  # a lower port needs a capability that Pod Security `restricted` requires to be dropped

# The value of a variable that only the cluster has. It is a host name, can be sent in a header, and is long enough for
# the secret of a cache.
STAND_IN: Final = "not-set-here-but-in-the-cluster-alone"

_SECRET_FIELDS: Final = ("api_key_env", "isolate_cache_secret_env")
_K8S: Final = "kubernetes"
_ENTRY: Final = re.compile("[-._a-zA-Z0-9]{1,253}")

DeploymentRule = Callable[[Config, frozenset[str]], Iterator[Finding]]


def check_deployment(loaded: Loaded) -> tuple[Problem, ...]:
    """Return every problem that keeps a config from being deployed as it is meant, in the file's order."""
    config = loaded.partial
    if config is None:
        return ()
    needed = pod_names(loaded.written)
    return placed(loaded, (finding for rule in DEPLOYMENT_RULES for finding in rule(config, needed)))


def literal_names(written: Any) -> frozenset[str]:
    """The NAMEs whose `${NAME}` is deployed literally, so that `aiaas render` does not need their values.

    Fields of a manifest need their values when rendered: the `kubernetes` section (`image: x:${TAG}`), and an engine of
    kind vllm except for its `env`. `written` is an unchecked file and may have any shape.
    """
    sections = dict(written) if isinstance(written, dict) else {}
    rendered = [sections.get(_K8S)]
    for backend in _backends(written):
        engine = backend.get("engine")
        if _is_vllm(engine):
            rendered.append({name: value for name, value in engine.items() if name != "env"})
    return _literal(written, parked=True) - names_in(rendered)


def pod_names(written: Any) -> frozenset[str]:
    """The NAMEs whose values the pods of the gateway and of its engines take from their environment."""
    return _literal(written, parked=False)


def _literal(written: Any, *, parked: bool) -> frozenset[str]:
    """The names outside of manifests. `parked`: the secrets of disabled backends, too."""
    sections = dict(written) if isinstance(written, dict) else {}
    literal = [value for name, value in sections.items() if name not in (_K8S, "backends")]
    for backend in _backends(written):
        fields, wanted = dict(backend), parked or backend.get("enabled") is not False
        if _is_vllm(engine := fields.get("engine")):
            del fields["engine"]
            literal += [engine.get("env")] if wanted else []
        literal.append(fields)
        literal += [f"${{{fields[at]}}}" for at in _SECRET_FIELDS if wanted and isinstance(fields.get(at), str)]
    return names_in(literal)


def _backends(written: Any) -> Iterator[dict[str, Any]]:
    backends = written.get("backends") if isinstance(written, dict) else None
    if isinstance(backends, dict):
        yield from (backend for backend in backends.values() if isinstance(backend, dict))


def _is_vllm(engine: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(engine, dict) and engine.get("kind") == "vllm"


def plain_values(written: Any) -> dict[str, str]:
    """The variables whose values the `kubernetes` section itself has."""
    settings = written.get(_K8S) if isinstance(written, dict) else None
    named = settings.get("env") if isinstance(settings, dict) else None
    entries = named.items() if isinstance(named, dict) else ()
    values = {name: entry.get("value") for name, entry in entries if isinstance(entry, dict)}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def addresses(config: Config) -> Iterator[tuple[Path, str]]:
    """The hosts of backends, of the shared store and of the collector of traces, each with its field; without those
    that cannot be read."""
    for name, backend in config.backends.items():
        with suppress(ValueError):  # check.py reports an address that cannot be read
            for path, address in backend.addresses() if backend.enabled else ():
                yield ("backends", name, *path), address.host
    if config.rate_limit.store != "memory":
        with suppress(ValueError):
            for place in parse_redis_url(config.rate_limit.store).places:
                yield ("rate_limit", "store"), place.host
    if config.monitoring.traces is not None:
        with suppress(ValueError):
            yield ("monitoring", "traces", "endpoint"), parse_url(config.monitoring.traces.endpoint).host


def _names_that_are_required(config: Config, _needed: frozenset[str]) -> Iterator[Finding]:
    settings = config.kubernetes
    if settings.expose in ("ingress", "gateway") and settings.host is None:
        message = f"is required for expose: {settings.expose}; write the public host name"
        yield codes.NOT_DEPLOYABLE, "error", (_K8S, "host"), message
    if settings.expose == "gateway" and settings.gateway.name is None:
        message = "is required for expose: gateway; name the Gateway to attach to"
        yield codes.NOT_DEPLOYABLE, "error", (_K8S, "gateway", "name"), message
    if settings.image is None:
        message = (
            f"is not set, so the pods run aiaas:{__version__}, which no registry has; name the image that you pushed"
        )
        yield codes.IMAGE_TAG, "warning", (_K8S, "image"), message


def _tls(config: Config, _needed: frozenset[str]) -> Iterator[Finding]:
    settings, tls = config.kubernetes, config.server.tls
    if settings.expose == "loadbalancer" and tls is None:
        message = (
            "loadbalancer needs server.tls, otherwise keys cross the internet in plain text; set it, or use ingress"
        )
        yield codes.NOT_DEPLOYABLE, "error", (_K8S, "expose"), message
    if tls is not None and (why := _refuses_tls(settings)) is not None:
        message = f"{why}; remove it: TLS ends in front of the gateway"
        yield codes.NOT_DEPLOYABLE, "error", ("server", "tls"), message


def _refuses_tls(settings: Kubernetes) -> str | None:
    """Why the ingress or Gateway cannot speak TLS to the pods; None if it can."""
    if settings.expose == "gateway":
        return "a Gateway speaks plain HTTP to its backends"
    known = settings.ingress.controllers()
    if settings.expose == "ingress" and any(controller.name == "traefik" for controller in known):
        return "Traefik would reject the certificate, since it is not valid for the pods' IP addresses"
    if settings.expose == "ingress" and any(controller.name == "openshift" for controller in known):
        return "OpenShift's router would need the authority of the certificate in a Route"
    return None


def _monitoring(config: Config, _needed: frozenset[str]) -> Iterator[Finding]:
    wanted = config.kubernetes.monitoring
    if not config.monitoring.prometheus and (wanted.service_monitor or wanted.rules or wanted.dashboard):
        message = "needs monitoring.prometheus, which is off; switch it on, or remove this"
        yield codes.NOT_DEPLOYABLE, "error", (_K8S, "monitoring"), message


def _store_files(config: Config, _needed: frozenset[str]) -> Iterator[Finding]:
    with suppress(ValueError):  # "memory", or an address that check.py reports
        store = parse_redis_url(config.rate_limit.store)
        for file in (store.cert_file, store.key_file):
            if file is not None and not file.is_absolute():
                message = (
                    f"{file} is not mounted into the pod; name a file of the image by its absolute path, or remove it"
                )
                yield codes.NOT_DEPLOYABLE, "error", ("rate_limit", "store"), message


def authority_files(config: Config) -> Iterator[tuple[Path, PurePosixPath]]:
    """The files of authorities that the config names, each with its field."""
    for name, backend in config.backends.items():
        if backend.enabled and backend.tls.ca_file is not None:
            yield ("backends", name, "tls", "ca_file"), PurePosixPath(backend.tls.ca_file)
    with suppress(ValueError):  # "memory", or an address that check.py reports
        if (file := parse_redis_url(config.rate_limit.store).ca_file) is not None:
            yield ("rate_limit", "store"), PurePosixPath(file)


def _authorities(config: Config, _needed: frozenset[str]) -> Iterator[Finding]:
    given = config.kubernetes.authorities
    for path, file in authority_files(config):
        if not file.is_absolute() and given is None:
            message = (
                f"{file} is not mounted into the pod; name the ConfigMap or Secret with the entry {file.name} in "
                "kubernetes.authorities, or a file of the image by its absolute path"
            )
            yield codes.NOT_DEPLOYABLE, "error", path, message
        elif not file.is_absolute() and not _ENTRY.fullmatch(file.name):
            message = f"{file.name} cannot be the name of an entry of a ConfigMap; use letters, digits, -, _ and . only"
            yield codes.NOT_DEPLOYABLE, "error", path, message
    if given is not None and (given.config_map is None) == (given.secret is None):
        message = "name the ConfigMap or the Secret that has them: {config_map: NAME} or {secret: NAME}"
        yield codes.NOT_DEPLOYABLE, "error", (_K8S, "authorities"), message


def _reachable(config: Config, _needed: frozenset[str]) -> Iterator[Finding]:
    server = config.server
    if is_loopback(server.host):
        message = f"{server.host} cannot be reached from outside the pod; write 0.0.0.0, or remove it"
        yield codes.NOT_DEPLOYABLE, "error", ("server", "host"), message
    for path, host in addresses(config):
        if is_loopback(host) and path[0] != "monitoring":  # a collector may be a sidecar
            message = f"{host} is the gateway's own pod; write the name of a Service, such as vllm.namespace"
            yield codes.NOT_DEPLOYABLE, "error", path, message
    if server.port < LOWEST_PORT:
        message = f"{server.port} needs a capability that the pod lacks; write {LOWEST_PORT} or more"
        yield codes.NOT_DEPLOYABLE, "error", ("server", "port"), message


def _variables(config: Config, needed: frozenset[str]) -> Iterator[Finding]:
    named = config.kubernetes.env
    for name in sorted(needed - named.keys()):
        message = f"{name} is used, but this section does not name its Secret; add {name}: {{secret: NAME, key: KEY}}"
        yield codes.NOT_DEPLOYABLE, "error", (_K8S, "env"), message
    secrets = {getattr(backend, field) for backend in config.backends.values() for field in _SECRET_FIELDS}
    for name, each in named.items():
        whole = each.secret is not None and each.key is not None and each.value is None
        if not whole and (each.value is None or each.secret is not None or each.key is not None):
            message = "write {secret: NAME, key: KEY} or {value: TEXT}"
            yield codes.NOT_DEPLOYABLE, "error", (_K8S, "env", name), message
        elif not whole and name in secrets:
            message = "is the key of a backend or the secret of a cache; name its Secret: {secret: NAME, key: KEY}"
            yield codes.PLAIN_SECRET, "error", (_K8S, "env", name, "value"), message
        if name not in needed:
            message = "nothing in the config uses this variable, so it is not rendered; remove it"
            yield codes.UNUSED_VARIABLE, "warning", (_K8S, "env", name), message


def _hosts_known_here(config: Config, _needed: frozenset[str]) -> Iterator[Finding]:
    """Report each host that a stand-in is part of: the NetworkPolicy cannot know where it is."""
    policy = config.kubernetes.network_policy
    named: set[Path] = {("backends", name) for name, backend in config.backends.items() if backend.network.namespace}
    if policy.store.namespace is not None:
        named.add(("rate_limit", "store"))
    if policy.collector.namespace is not None:
        named.add(("monitoring", "traces"))
    for path, host in addresses(config) if policy.enabled else ():
        if STAND_IN in host and path[:2] not in named:
            message = (
                f"the variable in {dotted(path)} is not set here, so the NetworkPolicy may block that host; set it "
                "where this command runs, or name the pods' namespace"
            )
            yield codes.POLICY, "warning", path, message


DEPLOYMENT_RULES: Final[tuple[DeploymentRule, ...]] = (
    _names_that_are_required,
    _tls,
    _monitoring,
    _store_files,
    _authorities,
    _reachable,
    _variables,
    _hosts_known_here,
)
