"""The Plan: the settings that the gateway runs with, every decision made.

It holds frozen values, tuples and read-only mappings only. Two Plans are equal if they behave alike; the source of a
value (file, override) is not compared. Durations are seconds, sizes are bytes. The repr never shows a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from aiaas.keys.model import PriorityClass
from aiaas.limits.model import Limits
from aiaas.limits.redis_url import RedisUrl
from aiaas.openai.engine_fields import FieldRule
from aiaas.openai.resumable import ResumeMode

TRACES_PATH: Final = "/v1/traces"  # of a collector, for OTLP's spans
SHUTDOWN_OPTION: Final = "--shutdown-timeout"  # of vLLM: seconds to drain after SIGTERM


@dataclass(frozen=True, slots=True)
class TlsPlan:
    """TLS towards clients. `min_version` is "1.2" or "1.3"."""

    cert_file: Path
    key_file: Path
    min_version: str


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The side that clients reach. Meaning and reason of each field: `aiaas.config.model.Server`."""

    host: str
    port: int
    workers: int
    max_body_size: int
    max_upload_size: int
    max_header_size: int
    max_connections: int  # one worker's share
    max_connections_per_address: int | None
    header_timeout: float
    body_timeout: float
    body_total_timeout: float
    min_body_rate: int  # bytes a second; 0 is unbounded
    heartbeat: float  # 0 is off
    resume_memory: int
    drain_timeout: float
    trusted_proxies: tuple[str, ...]  # CIDRs
    cors_allow_origins: tuple[str, ...] | None
    tls: TlsPlan | None
    path_prefix: str = ""


@dataclass(frozen=True, slots=True)
class TrustPlan:
    """How the certificate of an https endpoint is verified.

    ca_file      the authorities to trust instead of the system's
    server_name  the name that the certificate must have; None: the host of the address
    section      where the config says so, for messages: "backends.vllm.tls"; "" if it cannot
    """

    ca_file: Path | None = None
    server_name: str | None = None
    section: str = ""


@dataclass(frozen=True, slots=True)
class EndpointPlan:
    """One address of a backend.

    trust  has no effect without TLS
    heads  path -> the first bytes of a request to it, complete except for per-request headers and the final CRLF:
           b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: vllm:8000\\r\\nAccept-Encoding: identity\\r\\n", and the
           backend's own Authorization if it has a key (hence not in the repr)
    drain  it gets no new requests
    """

    url: str
    host: str
    port: int
    tls: bool
    base_path: str
    heads: Mapping[str, bytes] = field(repr=False)
    trust: TrustPlan = TrustPlan()
    drain: bool = False

    def at(self, address: str) -> EndpointPlan:
        """This endpoint at one IP address of its host name; the Host header keeps the name."""
        shown = f"[{address}]" if ":" in address else address
        scheme = "https" if self.tls else "http"
        return replace(self, url=f"{scheme}://{shown}:{self.port}{self.base_path}", host=address)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """A process that `aiaas serve` starts for a backend; it listens on 127.0.0.1:port.

    kind     "vllm" or "simulator"
    model    the model to load (vllm: a name or a path); the simulator only reports it
    args     further command-line arguments, already in argv form
    env      further environment variables; they may hold secrets (hence not in the repr)
    start_timeout  seconds within which it must become healthy (a 70B model takes minutes to load)
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
    """Active probes of an endpoint; `silent_after` is for its streams, 0 turns that rule off."""

    path: str
    interval: float
    timeout: float
    unhealthy_after: int
    healthy_after: int
    silent_after: float


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """The queue of requests beyond max_inflight. `size` is one worker's share."""

    size: int
    max_wait: float


@dataclass(frozen=True, slots=True)
class FairPlan:
    """How slots are shared between keys. `reserve` is one worker's share."""

    output_weight: float
    credit: int
    reserve: int


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """One named vLLM deployment. Meaning of each field: `aiaas.config.model.Backend`.

    endpoints  the endpoints of the config; empty if `dns` is set
    dns        `host` is a name, and each of its addresses becomes an endpoint (`EndpointPlan.at`)
    max_inflight, max_pending_prefill  one worker's share
    """

    name: str
    endpoints: tuple[EndpointPlan, ...]
    timeout: float
    total_timeout: float | None
    connect_timeout: float
    max_retries: int
    balance: Literal["auto", "least_inflight", "round_robin"]
    max_inflight: int | Literal["auto"] | None
    max_pending_prefill: int
    fair: FairPlan
    queue: QueuePlan
    health: HealthPlan
    engine: EnginePlan | None
    served_models: tuple[str, ...]  # the names that vLLM itself should list
    aliases: Mapping[str, str]  # alias -> its name in `served_models`
    dns: EndpointPlan | None = None
    ask_for_usage: bool = True
    isolate_cache: bool = False
    cache_secret: bytes | None = field(default=None, repr=False)  # of the `cache_salt`, where the cache is isolated
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    resume: ResumeMode = "off"
    resume_wait: float = 10.0
    forward_headers: tuple[str, ...] = ()  # lower case, in addition to the fixed headers of `admission.py`

    @property
    def seats_sessions(self) -> bool:
        """Whether a request's session decides on its endpoint; with a name there may be several at any time."""
        return self.balance == "auto" and (self.dns is not None or len(self.endpoints) > 1)


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """A target of a route's requests: a backend, and the model's name at its vLLM.

    rewrite  the JSON string (with quotes) to splice in as `model`, or None if the client's name is already right

    Two targets are equal if they name the same backend, and the repr leaves the backend out. A Plan has its backends
    once, and each names all its models: comparing them in each route would take the square of the models.
    """

    backend: BackendPlan = field(repr=False)
    served_name: str
    rewrite: bytes | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RouteTarget):
            return NotImplemented
        one = (self.backend.name, self.served_name, self.rewrite)
        return one == (other.backend.name, other.served_name, other.rewrite)

    def __hash__(self) -> int:
        return hash((self.backend.name, self.served_name, self.rewrite))


@dataclass(frozen=True, slots=True)
class Route:
    """A public model name and its targets: targets[0], then fallbacks in order."""

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
    """Authentication; `keys_file` is absolute or relative to the working directory, not to the config."""

    enabled: bool
    api_key_prefix: str
    keys_file: Path


@dataclass(frozen=True, slots=True)
class LimitsPlan:
    """The limits of a key without limits of its own; `default` is UNLIMITED if `enabled` is false.

    store_url  the store's address with its password (which its repr hides); None for memory
    store_timeout  seconds that a request waits for the store
    cheap_factor  how many cheap requests a key has for each request of its rate
    processes  the assumed number of gateway processes until they are counted in the store: the workers, times the
               assumed replicas if the config has a `kubernetes` section; 1 for memory
    """

    enabled: bool
    default: Limits
    store: str  # "memory" or a redis:// URL without its password
    on_store_failure: Literal["local", "allow", "deny"]
    store_url: RedisUrl | None = None
    store_timeout: float = 0.25
    processes: int = 1
    cheap_factor: int = 10


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """Refusals of requests that would harm other users.

    fields           the operator's rules for fields of the engine, in place of the table's
    fields_by_class  those for the keys of one class, in place of `fields`
    """

    media_urls: Literal["deny", "allow"]
    max_choices: int
    fields: Mapping[str, FieldRule] = field(default_factory=dict)
    fields_by_class: Mapping[PriorityClass, Mapping[str, FieldRule]] = field(default_factory=dict)
    unknown_fields: Literal["pass", "reject"] = "pass"

    def ruled_fields(self) -> frozenset[str]:
        """The fields for which the operator has written a rule, for all keys or for some."""
        return frozenset(self.fields).union(*self.fields_by_class.values())


@dataclass(frozen=True, slots=True)
class TracesPlan:
    """Traces: where spans go, and which traces are exported.

    collector     its `heads` have TRACES_PATH, and the configured headers
    sample_ratio  of the requests that are neither slow nor failed
    slow_after, slow_ttft  seconds; infinite: no bound
    """

    collector: EndpointPlan
    sample_ratio: float
    slow_after: float
    slow_ttft: float
    engine_spans: Literal["sampled", "all"]


@dataclass(frozen=True, slots=True)
class MonitoringPlan:
    """Metrics, logs and traces."""

    prometheus: bool
    metrics_port: int
    admin_port: int  # 0 is off
    log_level: Literal["debug", "info", "warning", "error"]
    usage_file: Path | None
    traces: TracesPlan | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All settings that the gateway runs with.

    routes     path -> public model name -> Route; an absent path is 404. Paths that the same backends offer share
               their routes: with all paths by default, thousands of models would else be there a dozen times
    models     the entries of GET /v1/models, in the config's order
    serves_models  whether GET /v1/models is served (a backend has /v1/models among its endpoints)
    digest     DIGEST_DIGITS hex digits of a hash of the settings, without secrets
    source     the config's file
    overlays   the files that are laid over it, in this order
    overrides  the environment variables that override the config
    config     the last config that took effect as a whole, pickled, for `aiaas.plan.read` to compare with a changed one
               (secrets: not in the repr)
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
    overlays: tuple[Path, ...] = field(default=(), compare=False)
    overrides: tuple[str, ...] = field(default=(), compare=False)
    config: bytes | None = field(default=None, compare=False, repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The config's files, each laid over those before it; empty if it does not come from a file."""
        return () if self.source is None else (self.source, *self.overlays)

    @property
    def ca_files(self) -> Mapping[Path, str]:
        """The files whose authorities backends are verified with, each with the section that names it first."""
        trusts = [endpoint.trust for backend in reversed(self.backends) for endpoint in backend.endpoints]
        return {trust.ca_file: trust.section for trust in trusts if trust.ca_file is not None}

    def ca_files_beside(self, other: Plan) -> Mapping[Path, str]:
        """Those of `ca_files` that another Plan does not have."""
        return {file: section for file, section in self.ca_files.items() if file not in other.ca_files}
