"""The answers of the admin endpoint, as JSON; docs/admin.md has every field.

Times are POSIX seconds, durations seconds, tokens LLM tokens; null means unknown. No prompt, no answer and no key.
"""

from __future__ import annotations

import msgspec

from aiaas.keys.model import PriorityClass


class LimitView(msgspec.Struct, frozen=True, gc=False):
    """A limit of a key as the headers of one answer stated it."""

    limit: str
    of: int
    remaining: int
    resets_in: float | None


class AttemptView(msgspec.Struct, frozen=True, gc=False):
    """One attempt at an endpoint. `again` is the word of aiaas_retries_total where a further attempt was safe."""

    endpoint: str
    status: int | None
    failure: str | None
    again: str | None
    why_safe: str | None
    seconds: float | None


class ResumeView(msgspec.Struct, frozen=True, gc=False):
    """A stream that broke off in the middle, and what became of it; `outcome` is the word of
    aiaas_streams_resumed_total, null while it is open or where its client left."""

    first: str
    way: str | None
    outcome: str | None
    reason: str | None
    gap: float | None
    counted: bool


class RequestView(msgspec.Struct, frozen=True, gc=False, rename={"priority_class": "class"}):
    """One request, under way or ended. `ended_in` is its phase when it ended."""

    id: str
    worker: int | None
    at: float
    path: str
    user: str | None
    key_id: str | None
    model: str | None
    backend: str | None
    upstream: str | None
    priority_class: PriorityClass | None
    stream: bool
    phase: str
    waiting_for: str | None
    status: int | None
    error_code: str | None
    reason: str | None
    message: str | None
    ended_by: str | None
    ended_in: str | None
    duration: float
    body_seconds: float
    queue_seconds: float
    queue_position: int
    overhead: float | None
    ttft: float | None
    retries: int
    turn: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    estimated: bool
    events: int
    request_bytes: int
    response_bytes: int
    client_address: str
    limits: list[LimitView] | None
    attempts: list[AttemptView]
    resume: ResumeView | None = None


class RefusalView(msgspec.Struct, frozen=True, gc=False):
    """One error that aiaas itself answered with."""

    id: str
    worker: int | None
    at: float
    path: str
    status: int
    error_code: str
    message: str
    reason: str | None
    user: str | None
    key_id: str | None
    model: str | None
    client_address: str


class Requests(msgspec.Struct):
    """The answer of `/requests`: under way, the oldest first, and ended, the newest first."""

    live: list[RequestView]
    ended: list[RequestView]


class Refusals(msgspec.Struct):
    """The answer of `/refusals`: the newest first, and their numbers since the start by error code."""

    refusals: list[RefusalView]
    by_code: dict[str, int]


class ConfigView(msgspec.Struct):
    """The config in force since `since`, and its changed fields that wait for a restart. `overlays` are the files that
    are laid over `source`."""

    source: str | None
    digest: str
    since: float
    restart_needed: list[str]
    overlays: list[str] = []


class ReloadView(msgspec.Struct):
    """The last reading of the config, the key file or the certificate."""

    what: str
    ok: bool
    at: float
    last_success: float | None
    error: str | None


class KeysView(msgspec.Struct):
    """The key file."""

    enabled: bool
    loaded: int
    expired: int
    next_expiry: float | None


class StoreView(msgspec.Struct):
    """The store of limits. `up` is null for `memory`."""

    kind: str
    up: bool | None
    on_failure: str
    processes: int


class UsageStoreView(msgspec.Struct):
    """The store of usage: `none`, `file` or `redis`. `ok` is null where there is none."""

    kind: str
    ok: bool | None


class CertificateView(msgspec.Struct):
    """The certificate of `server.tls` in force."""

    expires: float
    file: str


class EndpointView(msgspec.Struct):
    """One endpoint of a backend.

    draining the config says `drain`: it gets no new requests, whatever its health
    missing  configured models that it does not list; `offered` is null while its list is unknown
    problem  how its models differ from the config, or why they are unknown
    engine   `running` or `down` for an engine that aiaas starts itself
    """

    url: str
    up: bool
    reason: str | None
    since: float
    in_flight: int
    max_inflight: int | None
    offered: list[str] | None
    missing: list[str]
    problem: str | None
    lacks: list[str]
    engine: str | None
    draining: bool = False


class CachedView(msgspec.Struct):
    """Prompt tokens that the engines had in their prefix caches, or had not."""

    hit: int = 0
    miss: int = 0


class BackendView(msgspec.Struct):
    """One backend."""

    name: str
    balance: str
    queued: int
    models: list[str]
    endpoints: list[EndpointView]
    cached_tokens: CachedView
    turns: dict[str, int]


class FlightView(msgspec.Struct):
    """Requests under way; `queued` of them wait for an endpoint.

    output_tokens  that they have brought so far: as reported, or else their events
    """

    in_flight: int
    queued: int
    output_tokens: int


class TotalsView(msgspec.Struct):
    """Since the start."""

    requests: int = 0
    errors: int = 0
    refused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class ModelView(msgspec.Struct):
    """One model since the start. Percentiles are interpolated between the buckets of the metrics.

    ttft_buckets  upper bounds (null: none) and how many were at most so long; two answers give the percentiles between
                  them
    """

    model: str
    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    ttft_p50: float | None = None
    ttft_p95: float | None = None
    ttft_buckets: list[tuple[float | None, float]] = []


class NearView(msgspec.Struct, frozen=True):
    """A key that has used most of a limit."""

    key_id: str
    user: str
    limit: str
    used: int
    of: int
    resets_in: float | None


class ProcessView(msgspec.Struct):
    """The resources that the gateway's processes use: bytes, descriptors, seconds of CPU."""

    memory: int | None = None
    descriptors: int | None = None
    descriptors_max: int | None = None
    cpu_seconds: float | None = None
    loop_lag_p99: float | None = None


class NoteView(msgspec.Struct, frozen=True):
    """A fault in words, since when there is one, and the fix where the text does not say it.

    down  something does not work, or stops working within days: `aiaas status` ends with 1
    """

    text: str
    since: float | None = None
    fix: str = ""
    down: bool = True


class Status(msgspec.Struct):
    """The whole gateway. `attention` holds its faults (`attention.py`)."""

    version: str
    now: float
    started: float
    workers: int
    workers_up: int
    draining: bool
    address: str
    config: ConfigView
    reloads: list[ReloadView]
    keys: KeysView
    store: StoreView
    usage_store: UsageStoreView
    certificate: CertificateView | None
    backends: list[BackendView]
    requests: FlightView
    totals: TotalsView
    models: list[ModelView]
    keys_near: list[NearView]
    process: ProcessView
    attention: list[NoteView] = []
