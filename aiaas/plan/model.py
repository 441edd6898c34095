"""The Plan: what will run, with every decision taken.

Frozen values, tuples and read-only mappings only. Two Plans are equal when they would do the same; where a value came
from (file, override) does not count. Durations are seconds, sizes are bytes. No field's repr shows a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from aiaas.config.model import Config
from aiaas.limits.model import Limits
from aiaas.limits.redis_url import RedisUrl

SHUTDOWN_OPTION: Final = "--shutdown-timeout"  # of vLLM: seconds to drain after SIGTERM


@dataclass(frozen=True, slots=True)
class TlsPlan:
    """TLS on the open side. `min_version` is "1.2" or "1.3"."""

    cert_file: Path
    key_file: Path
    min_version: str


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The open side. Meaning and reason of each field: `aiaas.config.model.Server`."""

    host: str
    port: int
    workers: int
    max_body_size: int
    max_header_size: int
    max_connections: int  # one worker's share
    max_connections_per_address: int | None
    header_timeout: float
    body_timeout: float
    body_total_timeout: float
    min_body_rate: int  # bytes a second; 0 is no bound
    heartbeat: float  # 0 is off
    drain_timeout: float
    trusted_proxies: tuple[str, ...]  # CIDRs
    cors_allow_origins: tuple[str, ...] | None
    tls: TlsPlan | None


@dataclass(frozen=True, slots=True)
class EndpointPlan:
    """One address of a backend.

    heads  path -> the first bytes of a request to it, complete but for the per-request headers and the final CRLF:
           b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: vllm:8000\\r\\nAccept-Encoding: identity\\r\\n" and the
           backend's own Authorization where it has one (hence no repr)
    """

    url: str
    host: str
    port: int
    tls: bool
    base_path: str
    heads: Mapping[str, bytes] = field(repr=False)

    def at(self, address: str) -> EndpointPlan:
        """The same at one IP address of its name, which the Host header goes on to say."""
        shown = f"[{address}]" if ":" in address else address
        scheme = "https" if self.tls else "http"
        return replace(self, url=f"{scheme}://{shown}:{self.port}{self.base_path}", host=address)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """A process that `aiaas serve` starts for a backend; it listens on 127.0.0.1:port.

    kind     "vllm" or "simulator"
    model    what it loads (vllm: a name or a path); the simulator only reports it
    args     further command-line arguments, already in argv form
    env      further environment for it; may hold secrets (hence no repr)
    start_timeout  seconds until it must be healthy (a 70B model takes minutes to load)
    """

    kind: Literal["vllm", "simulator"]
    model: str
    served_name: str
    args: tuple[str, ...] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    port: int
    start_timeout: float


@dataclass(frozen=True, slots=True)
class HealthPlan:
    """Active probes of an endpoint."""

    path: str
    interval: float
    timeout: float
    unhealthy_after: int
    healthy_after: int


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """What is over max_inflight waits here. `size` is one worker's share."""

    size: int
    max_wait: float


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """One named vLLM deployment. Meaning of each field: `aiaas.config.model.Backend`.

    endpoints  those that are written down; none where `dns` says what they are made from
    dns        `host` is a name, and every address that it resolves to is an endpoint (`EndpointPlan.at`)
    max_inflight  one worker's share
    """

    name: str
    endpoints: tuple[EndpointPlan, ...]
    timeout: float
    total_timeout: float | None
    connect_timeout: float
    max_retries: int
    balance: Literal["least_inflight", "round_robin", "prefix_hash"]
    max_inflight: int | None
    queue: QueuePlan
    health: HealthPlan
    engine: EnginePlan | None
    served_models: tuple[str, ...]  # the names that vLLM itself should list
    aliases: Mapping[str, str]  # each other name, and which of those it means
    dns: EndpointPlan | None = None
    ask_for_usage: bool = True
    forward_headers: tuple[str, ...] = ()  # lower case, beyond the fixed few of `admission.py`


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """Where a route's requests can go: a backend and the name that its vLLM knows the model by.

    rewrite  the JSON string (with quotes) to splice in as `model`, or None where the client's name is already right
    """

    backend: BackendPlan
    served_name: str
    rewrite: bytes | None


@dataclass(frozen=True, slots=True)
class Route:
    """A public model name at a path, and where it leads: targets[0], the rest are fallbacks in order."""

    path: str
    model: str
    targets: tuple[RouteTarget, ...]
    max_output_tokens: int | None
    default_output_tokens: int | None
    on_over_limit: Literal["reject", "clamp"]


@dataclass(frozen=True, slots=True)
class PublicModel:
    """One entry of `GET /v1/models`."""

    name: str
    backend: str
    alias_of: str | None


@dataclass(frozen=True, slots=True)
class AuthPlan:
    """Authentication; `keys_file` is absolute or relative to the working directory, already resolved."""

    enabled: bool
    api_key_prefix: str
    keys_file: Path


@dataclass(frozen=True, slots=True)
class LimitsPlan:
    """The limits of a key without its own; `default` is UNLIMITED where `enabled` is false.

    store_url  how to get into the store, with its password (hence no repr of that); None for memory
    store_timeout  seconds that a request waits for the store
    processes  of gateways, until they are counted in the store: the workers of this one, in each of the replicas where
               there is a `kubernetes` section; 1 for memory
    """

    enabled: bool
    default: Limits
    store: str  # "memory" or a redis:// URL without its password
    on_store_failure: Literal["local", "allow", "deny"]
    store_url: RedisUrl | None = None
    store_timeout: float = 0.25
    processes: int = 1


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """What is refused because it would hurt others."""

    media_urls: Literal["deny", "allow"]
    max_choices: int


@dataclass(frozen=True, slots=True)
class MonitoringPlan:
    """Metrics and logs."""

    prometheus: bool
    metrics_port: int
    log_level: Literal["debug", "info", "warning", "error"]
    usage_file: Path | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run.

    routes     path -> public model name -> Route; a path that is absent is 404
    models     for GET /v1/models, in the config's order
    serves_models  whether GET /v1/models is served (some backend names /v1/models)
    digest     12 hex digits over everything that counts, without secrets
    source     the file it came from; overrides: the environment variables in force
    config     the last config that was put in force as a whole; a changed one is compared with it (no repr: secrets)
    """

    server: ServerPlan
    backends: tuple[BackendPlan, ...]
    routes: Mapping[str, Mapping[str, Route]]
    models: tuple[PublicModel, ...]
    serves_models: bool
    auth: AuthPlan
    limits: LimitsPlan
    request: RequestPlan
    monitoring: MonitoringPlan
    digest: str
    source: Path | None = field(default=None, compare=False)
    overrides: tuple[str, ...] = field(default=(), compare=False)
    config: Config | None = field(default=None, compare=False, repr=False)
