"""Rules between fields. Each rule is a small function that yields findings; all rules run, and all findings are shown.

The rules are pure: they read no disk and no network. The commands check the files beside the config.
Rules about run time skip disabled backends, so that a backend can be parked."""

from __future__ import annotations

import difflib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from aiaas.config import addresses, codes, exposure, request_fields
from aiaas.config.accept import check_accept
from aiaas.config.backend import Backend
from aiaas.config.crosslayer import CLUSTER_RULES
from aiaas.config.load import Loaded
from aiaas.config.model import Config
from aiaas.config.networks import check_networks
from aiaas.config.otlp import check_traces
from aiaas.config.problem import Finding, Problem, Severity, by_place
from aiaas.config.tree import problem_at
from aiaas.limits.redis_url import parse_redis_url
from aiaas.openai.paths import GENERATE, MODELS
from aiaas.units import format_duration
from aiaas.yamltree import Path

# With less than a round trip in a busy network requests always time out; with more, clients give up before the store.
SHORTEST_STORE_TIMEOUT: Final = 0.005
LONGEST_STORE_TIMEOUT: Final = 5.0

# The default ports of engines are ENGINE_PORTS ports from here on.
FIRST_ENGINE_PORT: Final = 18100
ENGINE_PORTS: Final = 1000

# Arguments that `aiaas` itself puts on an engine's command line (vllm serve's names; `api-key` belongs in api_key_env).
RESERVED_ENGINE_ARGS: Final = frozenset({"host", "port", "uds", "model", "served-model-name", "api-key", "config"})

# Hop-by-hop headers (RFC 9110 section 7.6.1), headers that frame the body, credentials, and headers that aiaas writes.
RESERVED_HEADERS: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "content-encoding", "expect", "host"),
        *("authorization", "x-api-key", "cookie"),
        *("accept-encoding", "content-type", "accept", "x-request-id", "traceparent", "tracestate"),
    }
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[!-~]+")

Rule = Callable[[Config, Mapping[str, str]], Iterator[Finding]]


def check(loaded: Loaded, env: Mapping[str, str], *, deployed: bool | None = None) -> tuple[Problem, ...]:
    """Return every problem between the fields of a config, in the file's order.

    If single fields are wrong, the other fields are still checked; findings about wrong fields are dropped.

    deployed  whether to check the config for a cluster; None: if it has a `kubernetes` section
    """
    config = loaded.partial
    if config is None:
        return ()
    found = [finding for rule in RULES for finding in rule(config, env)]
    if "kubernetes" in config.model_fields_set if deployed is None else deployed:
        found += [finding for rule in CLUSTER_RULES for finding in rule(config)]
    return placed(loaded, found)


def placed(loaded: Loaded, found: Iterable[Finding]) -> tuple[Problem, ...]:
    """Return the findings as problems at their places, in the file's order, without those about wrong fields."""
    problems = [
        problem_at(code, severity, path, message, loaded.place(path))
        for code, severity, path, message in found
        if not any(_touch(path, dropped) for dropped in loaded.dropped)
    ]
    return tuple(sorted(problems, key=by_place))


def _touch(one: Path, other: Path) -> bool:
    """Return whether the two paths are equal or one contains the other."""
    return all(a == b for a, b in zip(one, other, strict=False))


def engine_port(config: Config, name: str) -> int:
    """Return the port of the engine of backend `name`.

    A default port is derived from the name, so that other changes to the file do not move it. If it is taken, use the
    next free port; the names are assigned in alphabetical order.
    """
    engines = {other: b.engine for other, b in config.backends.items() if b.engine is not None and b.enabled}
    ports = {other: engine.port for other, engine in engines.items() if engine.port is not None}
    monitoring = config.monitoring
    taken = {config.server.port, monitoring.metrics_port, monitoring.admin_port, *ports.values()}
    for other in sorted(engines.keys() - ports.keys()):
        offset = zlib.crc32(other.encode())
        candidates = (FIRST_ENGINE_PORT + (offset + step) % ENGINE_PORTS for step in range(ENGINE_PORTS))
        ports[other] = next(port for port in candidates if port not in taken)
        taken.add(ports[other])
    return ports[name]


def _each(config: Config, *, enabled_only: bool = False) -> Iterator[tuple[Path, Backend]]:
    for name, backend in config.backends.items():
        if backend.enabled or not enabled_only:
            yield ("backends", name), backend


def _some_backend(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    if not any(backend.enabled for backend in config.backends.values()):
        yield codes.NO_BACKEND, "error", ("backends",), "no backend is enabled; set enabled: true in at least one"


def _model_names(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    for path, backend in _each(config):
        path = (*path, "models")
        if not backend.models:
            yield codes.MISSING_FIELD, "error", path, "is empty; list the models that the backend serves"
        seen: set[str] = set()
        short = [index for index, entry in enumerate(backend.models) if isinstance(entry, str)]
        if short and len(short) < len(backend.models):
            message = "names and mappings are mixed; write all of them as names, or all as {name: ...}"
            yield codes.WRONG_VALUE, "error", (*path, short[0]), message
        for index, entry in enumerate(backend.models):
            if isinstance(entry, str):
                names: list[tuple[Path, str]] = [((*path, index), entry)]
            else:
                names = [((*path, index, "name"), entry.name)]
                names += [((*path, index, "aliases", i), alias) for i, alias in enumerate(entry.aliases)]
            for place, name in names:
                if name in seen:
                    message = f"{name!r} is listed already; each name and alias of a backend must mean one model"
                    yield codes.MODEL_NAME_TWICE, "error", place, message
                seen.add(name)


def _fallbacks(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for path, backend in _each(config, enabled_only=True):
        names = [name for model in backend.served() for name in (model.name, *model.aliases)]
        for name in dict.fromkeys(names):
            if name in first:
                message = f"{name!r} is served by {first[name]} too; this backend is its fallback"
                yield codes.MODEL_FALLBACK, "warning", (*path, "models"), message
            first.setdefault(name, str(path[1]))


def _endpoint_paths(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    known = (*GENERATE, MODELS)
    for path, backend in _each(config):
        place = (*path, "endpoints")
        for index, endpoint in enumerate(listed := backend.offered()):
            if endpoint not in known:
                close = difflib.get_close_matches(endpoint.rstrip("/"), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"
                yield codes.ENDPOINT_PATH, "error", (*place, index), f"{endpoint[:60]!r} is not served; {hint}"
            elif endpoint in listed[:index]:
                yield codes.ENDPOINT_PATH, "error", (*place, index), f"{endpoint} is listed twice; keep one"
        if backend.enabled and not set(listed) & set(GENERATE):
            message = f"has no path that generates answers; add one of {', '.join(GENERATE[:2])}, ..."
            yield codes.ENDPOINT_PATH, "warning", place, message


def _ports(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    taken: dict[int, str] = {config.server.port: "server.port"}
    listeners: list[tuple[Path, str, int]] = []
    if config.monitoring.prometheus:
        # Report the field that the file sets: an operator who sets server.port to 9090 may not know metrics_port.
        written = "metrics_port" in config.monitoring.model_fields_set or "port" not in config.server.model_fields_set
        path: Path = ("monitoring", "metrics_port") if written else ("server", "port")
        listeners.append((path, "monitoring.metrics_port", config.monitoring.metrics_port))
    for path, backend in _each(config, enabled_only=True):
        if backend.engine is not None:
            listeners.append(((*path, "engine", "port"), f"the engine of {path[1]}", engine_port(config, str(path[1]))))
    for path, what, port in listeners:
        if port in taken:
            other = what if path == ("server", "port") else taken[port]
            yield codes.PORT_CLASH, "error", path, f"{port} is also the port of {other}; choose another port"
        taken.setdefault(port, what)
    if (port := config.monitoring.admin_port) in taken:
        # The gateway serves without this port. So where the config does not name it, the clash must not stop anybody.
        level: Severity = "error" if "admin_port" in config.monitoring.model_fields_set else "warning"
        message = f"{port} is also the port of {taken[port]}; choose another port, or 0 to do without it"
        yield codes.PORT_CLASH, level, ("monitoring", "admin_port"), message


def _auth(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    if not config.auth.enabled:
        message = "authentication is off: anybody who can reach the port may use the models"
        yield codes.AUTH_OFF, "warning", ("auth", "enabled"), message


def _limits(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    limits = config.rate_limit
    if limits.burst is not None and limits.requests_per_minute is None:
        message = "needs requests_per_minute, the rate that refills it; set that rate, or remove burst"
        yield codes.BURST_ALONE, "error", ("rate_limit", "burst"), message
    bucket = limits.tokens_per_minute if limits.enabled else None
    for path, backend in _each(config, enabled_only=True):
        for index, model in enumerate(backend.served()):
            place = (*path, "models", index)
            most, default = model.max_output_tokens, model.default_output_tokens
            if most is not None and default is not None and default > most:
                message = f"is {default}, more than max_output_tokens ({most}); write {most} or less"
                yield codes.TOKEN_BOUNDS, "error", (*place, "default_output_tokens"), message
            reserved = default if default is not None else most
            if bucket is not None and reserved is not None and reserved > bucket:
                message = (
                    f"a request that sets no bound reserves {reserved} tokens, more than a key gets per minute "
                    f"(rate_limit.tokens_per_minute: {bucket}), and is rejected; set a smaller default_output_tokens"
                )
                yield codes.TOKEN_BOUNDS, "warning", place, message


def _store(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    if config.rate_limit.store != "memory":
        try:
            parse_redis_url(config.rate_limit.store)
        except ValueError as error:
            yield codes.STORE_URL, "error", ("rate_limit", "store"), str(error)
    if not SHORTEST_STORE_TIMEOUT <= config.rate_limit.store_timeout <= LONGEST_STORE_TIMEOUT:
        bounds = f"{format_duration(SHORTEST_STORE_TIMEOUT)} to {format_duration(LONGEST_STORE_TIMEOUT)}"
        message = f"is {format_duration(config.rate_limit.store_timeout)}; write {bounds}"
        yield codes.WRONG_VALUE, "error", ("rate_limit", "store_timeout"), message


def _backend_keys(config: Config, env: Mapping[str, str]) -> Iterator[Finding]:
    for path, backend in _each(config, enabled_only=True):
        name = backend.api_key_env
        place = (*path, "api_key_env")
        if name is None:
            continue
        if not env.get(name):
            message = f"the environment variable {name} is not set; set it to the backend's key where this command runs"
            yield codes.BACKEND_KEY, "error", place, message
        elif not _HEADER_VALUE.fullmatch(env[name]):
            message = f"the value of {name} cannot be sent in a header: it contains spaces or non-ASCII characters"
            yield codes.BACKEND_KEY, "error", place, message


def _engines(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    for path, backend in _each(config):
        if backend.engine is None:
            continue
        if len(backend.served()) > 1:
            message = "an engine serves one model; give each other model a backend of its own, or make it an alias"
            yield codes.ENGINE_MODELS, "error", (*path, "models", 1), message
        names: dict[str, str] = {}
        for argument in backend.engine.args:
            place = (*path, "engine", "args", argument)
            name = argument.replace("_", "-").lstrip("-")
            if argument.startswith("-"):
                yield codes.ENGINE_ARGS, "error", place, f"write it without the dashes: {name}"
            elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
                yield codes.ENGINE_ARGS, "error", place, "is not a valid argument name; use letters, digits and dashes"
            elif name in RESERVED_ENGINE_ARGS:
                yield (
                    codes.ENGINE_ARGS,
                    "error",
                    place,
                    f"aiaas sets --{name} itself; {_ENGINE_HINTS.get(name, 'remove it')}",
                )
            elif name in names:
                yield codes.ENGINE_ARGS, "error", place, f"is the same argument as {names[name]}; keep one"
            names.setdefault(name, argument)


_ENGINE_HINTS: Final = {
    "port": "use engine.port",
    "model": "use engine.model",
    "served-model-name": "write the name first in models",
    "api-key": "the engine listens on 127.0.0.1 only and needs no key",
}


def _forwarded(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    for path, backend in _each(config):
        for index, header in enumerate(backend.forward_headers):
            place = (*path, "forward_headers", index)
            if not _HEADER_NAME.fullmatch(header):
                yield codes.FORWARD_HEADER, "error", place, f"{header[:60]!r} is not a valid header name"
            elif header.lower() in RESERVED_HEADERS:
                yield codes.FORWARD_HEADER, "error", place, f"{header} cannot be forwarded; remove it"


def _timeouts(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    heartbeat, server = config.server.heartbeat, config.server
    if server.body_timeout > server.body_total_timeout:
        message = f"is longer than body_total_timeout ({format_duration(server.body_total_timeout)}); make it shorter"
        yield codes.TIMEOUT_ORDER, "warning", ("server", "body_timeout"), message
    for path, backend in _each(config, enabled_only=True):
        timeout = backend.timeout
        if heartbeat >= timeout:
            message = (
                f"{format_duration(heartbeat)} is not shorter than the timeout of {path[1]} "
                f"({format_duration(timeout)}), so a stream ends before its first comment"
            )
            yield codes.HEARTBEAT, "warning", ("server", "heartbeat"), message
        if backend.total_timeout is not None and backend.total_timeout <= timeout:
            message = f"is not longer than timeout ({format_duration(timeout)}), so it has no effect"
            yield codes.TIMEOUT_ORDER, "warning", (*path, "total_timeout"), message
        if backend.connect_timeout > timeout:
            message = f"is longer than timeout ({format_duration(timeout)}); make it shorter"
            yield codes.TIMEOUT_ORDER, "warning", (*path, "connect_timeout"), message


def _workers(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    workers = config.server.workers
    limits = config.rate_limit
    bounds = (limits.requests_per_minute, limits.tokens_per_minute, limits.tokens_per_day, limits.tokens_per_month)
    is_limited = limits.enabled and any(bound is not None for bound in (*bounds, limits.max_concurrent))
    if workers > 1 and is_limited and limits.store == "memory":
        replicas = config.kubernetes.replicas.max if "kubernetes" in config.model_fields_set else 1
        count = workers * replicas
        each = limits.requests_per_minute
        message = (
            f"each worker counts alone (rate_limit.store: memory), so with {workers} workers"
            f"{f' in each of {replicas} replicas' if replicas > 1 else ''} a key may use up to {count} times its limits"
            f"{'' if each is None else f', {each * count} requests a minute instead of {each}'}; share the counts "
            "(store: redis://host:6379/0), or divide each limit by that number"
        )
        yield codes.COUNTED_APART, "warning", ("server", "workers"), message
    for path, backend in _each(config, enabled_only=True):
        if isinstance(backend.max_inflight, int) and backend.max_inflight < workers:
            message = (
                f"is {backend.max_inflight}, but each of the {workers} workers lets at least 1 through, so an endpoint "
                f"gets up to {workers}; set fewer workers"
            )
            yield codes.COUNTED_APART, "warning", (*path, "max_inflight"), message


def _connections(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    server = config.server
    in_front = "kubernetes" in config.model_fields_set and config.kubernetes.expose in ("ingress", "gateway")
    if server.tls is not None and server.max_connections_per_address is None and not in_front:
        message = (
            "clients connect directly to the gateway, and one client can take all connections; set "
            "server.max_connections_per_address, such as 200"
        )
        yield codes.CONNECTIONS_OF_ONE, "warning", ("server", "tls"), message


RULES: Final[tuple[Rule, ...]] = (
    _some_backend,
    *addresses.ADDRESS_RULES,
    _model_names,
    _fallbacks,
    _endpoint_paths,
    _ports,
    check_networks,
    *exposure.EXPOSURE_RULES,
    *request_fields.FIELD_RULES,
    check_accept,
    _auth,
    _limits,
    _store,
    _backend_keys,
    _engines,
    _forwarded,
    _timeouts,
    _workers,
    _connections,
    check_traces,
)
