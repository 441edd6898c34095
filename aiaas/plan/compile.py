"""Config -> Plan: make every decision that can be made before the first request.

Pure and deterministic. `aiaas.config.check` has accepted the config, so invalid values are not handled here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from aiaas.config.address import parse_dns, parse_url
from aiaas.config.backend import Backend, Model, Replica
from aiaas.config.check import engine_port
from aiaas.config.model import Config, FieldBound, WrittenRule
from aiaas.keys.model import PRIORITY_CLASSES
from aiaas.limits.model import UNLIMITED, Limits, Rate
from aiaas.limits.redis_url import RedisUrl, parse_redis_url
from aiaas.openai.engine_fields import FieldRule
from aiaas.openai.paths import GENERATE, MODELS
from aiaas.plan.endpoints import compile_endpoint
from aiaas.plan.model import (
    AuthPlan,
    BackendPlan,
    EnginePlan,
    FairPlan,
    HealthPlan,
    LimitsPlan,
    MonitoringPlan,
    Plan,
    PublicModel,
    QueuePlan,
    RequestPlan,
    Route,
    RouteTarget,
    ServerPlan,
    TlsPlan,
    TrustPlan,
)
from aiaas.plan.traces import compile_traces

DIGEST_DIGITS: Final = 12
# Twice what vLLM reads in one step by default (`--max-num-batched-tokens`, 2,048 on most GPUs): one step's prompts are
# read while the next ones wait.
AUTO_PENDING_PREFILL: Final = 4096  # prompt tokens

_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def compile_plan(
    config: Config,
    *,
    source: Path | None = None,
    overlays: tuple[Path, ...] = (),
    overrides: tuple[str, ...] = (),
    env: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """The Plan of a checked config. Paths are relative to the folder of its file `source`, also those written in the
    `overlays`; `env` has the backends' keys."""
    folder = source.parent if source is not None else Path()
    enabled = {name: backend for name, backend in config.backends.items() if backend.enabled}
    backends = {name: _backend(config, folder, name, backend, env) for name, backend in enabled.items()}
    plan = Plan(
        server=_server(config, folder),
        backends=tuple(backends.values()),
        routes=_routes(enabled, backends),
        models=_models(enabled),
        serves_models=any(MODELS in backend.offered() for backend in enabled.values()),
        auth=AuthPlan(config.auth.enabled, config.auth.api_key_prefix, folder / config.auth.keys_file),
        limits=_limits(config, folder),
        request=_request(config),
        monitoring=_monitoring(config, folder),
        digest="",
        source=source,
        overlays=overlays,
        overrides=overrides,
    )
    return dataclasses.replace(plan, digest=_digest(plan))


def _request(config: Config) -> RequestPlan:
    request = config.request
    by_class = {name: _field_rules(getattr(request.fields_by_class, name)) for name in PRIORITY_CLASSES}
    return RequestPlan(
        request.media_urls,
        request.max_choices,
        _field_rules(request.fields),
        MappingProxyType(by_class),
        request.unknown_fields,
    )


def _field_rules(written: Mapping[str, WrittenRule]) -> Mapping[str, FieldRule]:
    rules = {
        name: FieldRule("bound", rule.max) if isinstance(rule, FieldBound) else FieldRule(rule)
        for name, rule in written.items()
    }
    return MappingProxyType(rules)


def _server(config: Config, folder: Path) -> ServerPlan:
    server = config.server
    tls = server.tls
    return ServerPlan(
        host=server.host,
        port=server.port,
        workers=server.workers,
        max_body_size=server.max_body_size,
        max_upload_size=server.max_upload_size,
        max_header_size=server.max_header_size,
        max_connections=_share(server.max_connections, config),
        max_connections_per_address=server.max_connections_per_address,
        header_timeout=server.header_timeout,
        body_timeout=server.body_timeout,
        body_total_timeout=server.body_total_timeout,
        min_body_rate=server.min_body_rate,
        heartbeat=server.heartbeat,
        resume_memory=server.resume_memory,
        drain_timeout=server.drain_timeout,
        trusted_proxies=server.trusted_proxies,
        cors_allow_origins=server.cors.allow_origins if server.cors else None,
        tls=TlsPlan(folder / tls.cert_file, folder / tls.key_file, tls.min_version) if tls else None,
        path_prefix=server.path_prefix or "",
    )


def _backend(config: Config, folder: Path, name: str, backend: Backend, env: Mapping[str, str]) -> BackendPlan:
    engine = _engine(config, name, backend)
    if engine is not None:
        replicas = [Replica(url=f"http://127.0.0.1:{engine.port}")]
    else:
        replicas = [replica for _, replica in backend.replicas()]
    key = env.get(backend.api_key_env) if backend.api_key_env else None
    ca_file = None if backend.tls.ca_file is None else folder / backend.tls.ca_file
    trust = TrustPlan(ca_file, backend.tls.server_name, f"backends.{name}.tls")
    return BackendPlan(
        name=name,
        endpoints=tuple(compile_endpoint(parse_url(e.url), backend, key, trust, drain=e.drain) for e in replicas),
        timeout=backend.timeout,
        total_timeout=backend.total_timeout,
        connect_timeout=backend.connect_timeout,
        max_retries=backend.max_retries,
        balance="auto" if backend.balance == "prefix_hash" else backend.balance,
        max_inflight=_share(backend.max_inflight, config)
        if isinstance(backend.max_inflight, int)
        else backend.max_inflight,
        max_pending_prefill=_share(_pending_prefill(backend), config),
        fair=FairPlan(backend.fair.output_weight, backend.fair.credit, backend.fair.reserve // config.server.workers),
        queue=QueuePlan(_share(backend.queue.size, config), backend.queue.max_wait),
        health=HealthPlan(
            backend.health.path,
            backend.health.interval,
            backend.health.timeout,
            backend.health.unhealthy_after,
            backend.health.healthy_after,
            backend.silent_after(),
        ),
        engine=engine,
        dns=compile_endpoint(parse_dns(backend.dns), backend, key, trust) if backend.dns is not None else None,
        served_models=tuple(model.name for model in backend.served()),
        aliases=MappingProxyType({alias: model.name for model in backend.served() for alias in model.aliases}),
        resume=backend.resume,
        resume_wait=backend.resume_wait,
        ask_for_usage=backend.ask_for_usage,
        isolate_cache=backend.isolate_cache is not None,
        cache_secret=_cache_secret(backend, env),
        scheduling=_scheduling(backend, engine),
        forward_headers=tuple(header.lower() for header in backend.forward_headers),
    )


def _cache_secret(backend: Backend, env: Mapping[str, str]) -> bytes | None:
    if backend.isolate_cache is None or backend.isolate_cache_secret_env is None:
        return None
    return env.get(backend.isolate_cache_secret_env, "").encode("utf-8", "surrogateescape")


def _pending_prefill(backend: Backend) -> int:
    return AUTO_PENDING_PREFILL if backend.max_pending_prefill == "auto" else backend.max_pending_prefill


def _scheduling(backend: Backend, engine: EnginePlan | None) -> Literal["fcfs", "priority"]:
    """The order of vLLM's own queue; an engine of ours has it in its `args`."""
    args = () if engine is None else engine.args
    return "priority" if ("--scheduling-policy", "priority") in pairwise(args) else backend.scheduling


def _share(bound: int, config: Config) -> int:
    """One worker's share of a bound, at least 1 (0 stays 0). Together the workers do not exceed the bound."""
    return min(bound, max(1, bound // config.server.workers))


def _engine(config: Config, name: str, backend: Backend) -> EnginePlan | None:
    engine = backend.engine
    if engine is None:
        return None
    served = backend.served()[0].name
    return EnginePlan(
        kind=engine.kind,
        model=engine.model or served,
        served_name=served,
        args=tuple(argument for flag, value in engine.args.items() for argument in _arguments(flag, value)),
        env=MappingProxyType(dict(engine.env)),
        port=engine_port(config, name),
        start_timeout=engine.start_timeout,
    )


def _arguments(name: str, value: object) -> Iterator[str]:
    """One argument in argv form: a flag, a flag with its values, or nothing if it is false or null."""
    if value is None or value is False:
        return
    yield "--" + name.replace("_", "-")
    if isinstance(value, tuple):
        yield from (_written(item) for item in value)
    elif value is not True:
        yield _written(value)


def _written(value: object) -> str:
    if isinstance(value, dict | bool):
        return json.dumps(value, separators=(",", ":"))
    return str(value)


def _routes(enabled: Mapping[str, Backend], plans: Mapping[str, BackendPlan]) -> Mapping[str, Mapping[str, Route]]:
    """path -> public name -> Route; one mapping for all paths that the same backends offer."""
    offered = {name: frozenset(backend.offered()) for name, backend in enabled.items()}
    tables: dict[tuple[str, ...], Mapping[str, Route]] = {(): {}}
    routes: dict[str, Mapping[str, Route]] = {}
    for path in GENERATE:
        names = tuple(name for name in enabled if path in offered[name])
        if names not in tables:
            tables[names] = MappingProxyType(_table({name: enabled[name] for name in names}, plans))
        if tables[names]:
            routes[path] = tables[names]
    return MappingProxyType(routes)


def _table(offering: Mapping[str, Backend], plans: Mapping[str, BackendPlan]) -> dict[str, Route]:
    """public name -> Route. If several backends serve a name, it becomes one route with fallbacks in the file's
    order."""
    table: dict[str, Route] = {}
    for name, backend in offering.items():
        for public, model in _public_names(backend):
            target = _target(plans[name], public, model)
            earlier = table.get(public)
            if earlier is not None:
                table[public] = dataclasses.replace(earlier, targets=(*earlier.targets, target))
                continue
            table[public] = Route(
                public, (target,), model.max_output_tokens, model.default_output_tokens, model.on_over_limit
            )
    return table


def _target(backend: BackendPlan, public: str, model: Model) -> RouteTarget:
    rewrite = None if public == model.name else json.dumps(model.name).encode("ascii")
    return RouteTarget(backend, model.name, rewrite)


def _public_names(backend: Backend) -> Iterator[tuple[str, Model]]:
    for model in backend.served():
        for public in (model.name, *model.aliases):
            yield public, model


def _models(enabled: Mapping[str, Backend]) -> tuple[PublicModel, ...]:
    """The entries of GET /v1/models: the models of backends with that path, each name once, for its first backend."""
    listed: dict[str, PublicModel] = {}
    for name, backend in enabled.items():
        if MODELS in backend.offered():
            for public, model in _public_names(backend):
                alias_of = None if public == model.name else model.name
                listed.setdefault(public, PublicModel(public, name, alias_of))
    return tuple(listed.values())


def _limits(config: Config, folder: Path) -> LimitsPlan:
    limits = config.rate_limit
    default = UNLIMITED
    if limits.enabled:
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        default = Limits(
            requests=Rate(requests, limits.burst or requests) if requests is not None else None,
            tokens=Rate(tokens, tokens) if tokens is not None else None,
            tokens_per_day=limits.tokens_per_day,
            tokens_per_month=limits.tokens_per_month,
            concurrent=limits.max_concurrent,
        )
    plan = LimitsPlan(limits.enabled, default, limits.store, limits.on_store_failure, cheap_factor=limits.cheap_factor)
    if limits.store == "memory":
        return plan
    url = _store_url(limits.store, folder)
    replicas = assumed_replicas(config) if "kubernetes" in config.model_fields_set else 1
    processes = replicas * config.server.workers
    return dataclasses.replace(
        plan, store=url.url, store_url=url, store_timeout=limits.store_timeout, processes=processes
    )


def assumed_replicas(config: Config) -> int:
    """The replicas that a gateway assumes until it has counted them: `replicas.max`, rounded up to a power of two.

    The number is in the ConfigMap, and raising the maximum a little must not roll the pods.
    """
    return 1 << (config.kubernetes.replicas.max - 1).bit_length()


def _store_url(text: str, folder: Path) -> RedisUrl:
    """The store's address; its files are relative to the config's folder."""

    def placed(file: Path | None) -> Path | None:
        return None if file is None else folder / file

    url = parse_redis_url(text)
    ca, cert, key = placed(url.ca_file), placed(url.cert_file), placed(url.key_file)
    return dataclasses.replace(url, ca_file=ca, cert_file=cert, key_file=key)


def _monitoring(config: Config, folder: Path) -> MonitoringPlan:
    monitoring = config.monitoring
    usage_file = folder / monitoring.usage_file if monitoring.usage_file is not None else None
    traces = None if monitoring.traces is None else compile_traces(monitoring.traces)
    return MonitoringPlan(
        monitoring.prometheus, monitoring.metrics_port, monitoring.admin_port, monitoring.log_level, usage_file, traces
    )


def _digest(plan: Plan) -> str:
    """Hex digits of a hash of the Plan. Plans with equal digests behave alike. The hash ignores the values of secrets
    and the paths of files, since a pod mounts files elsewhere than the operator keeps them.

    Each route is encoded alone: encoding thousands of them in one call would keep the GIL from a running gateway."""
    digest = hashlib.sha256(_encode(canonical(dataclasses.replace(plan, routes={}))))
    seen: dict[int, str] = {}
    for path, table in sorted(plan.routes.items()):
        first = seen.setdefault(id(table), path)
        digest.update(_encode([path, first]))
        for _, route in sorted(table.items()) if first == path else ():
            digest.update(_encode(canonical(route)))
    return digest.hexdigest()[:DIGEST_DIGITS]


def _encode(value: Any) -> bytes:
    return _ENCODER.encode(value).encode("ascii")


# Secrets, and what does not change the gateway's behaviour.
_LEFT_OUT: Final = frozenset({"heads", "env", "cache_secret", "password", "sentinel_password", "digest"})


def canonical(value: Any) -> Any:
    """A Plan, or part of it, in JSON's types, without secrets and without fields that a comparison ignores. A route has
    the names of its backends: with the backends themselves, it would grow with the square of the models."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, RouteTarget):
        rewrite = canonical(value.rewrite)
        return {"backend": value.backend.name, "served_name": value.served_name, "rewrite": rewrite}
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value) if each.compare and each.name not in _LEFT_OUT]
        return {name: canonical(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [canonical(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("ascii")
    return "(a file)" if isinstance(value, Path) else value
