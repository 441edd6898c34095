"""The config's fields. Their docstrings are the manual: docs/config.md and the JSON Schema are generated from them.

Each field states its meaning, its unit, the meaning of null, and the reason for its default. Rules about a single field
are types here; rules between fields are in `aiaas.config.check`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from aiaas.config.backend import LONG_FORM, SHORT_FORM, Backend, entry_form
from aiaas.config.kubernetes import Kubernetes
from aiaas.config.section import Section
from aiaas.config.values import (
    AtLeast0,
    AtLeast1,
    Count,
    Duration,
    Flag,
    Origin,
    PathPrefix,
    Port,
    PositiveDuration,
    Size,
    Text,
    TtftBound,
)

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),  # LOG_LEVEL=INFO is common
]
RequestField = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,79}$")]
BackendName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]


class CorsOrigins(Section):
    """Web pages that may call the gateway from a browser."""

    allow_origins: Annotated[tuple[Origin, ...], Field(min_length=1)]
    """Origins such as `https://chat.example.com`, without a path; `*` allows any origin. Visitors can read everything
    in a page, so a key in a page needs limits of its own."""


class Tls(Section):
    """TLS for clients, for a deployment without an ingress. A renewed certificate is loaded without a restart."""

    cert_file: Text
    """Certificate chain in PEM, relative to the config file."""

    key_file: Text
    """Its private key in PEM, relative to the config file."""

    min_version: Literal["1.2", "1.3"] = "1.2"
    """The oldest TLS version to accept. Quote it: YAML reads an unquoted version as a number."""


class Server(Section):
    """The client side: the address to connect to, and bounds on connections and requests."""

    host: Annotated[Text, Field(pattern=r"^[^\s/]+$")] = "0.0.0.0"
    """Address to listen on; `::` listens on IPv6 as well, `127.0.0.1` on this machine only. The default suits
    containers."""

    port: Port = 8080
    """Port to listen on."""

    workers: AtLeast1 = 1
    """Processes that share the port, each for one CPU core. One worker serves some thousand requests a second; prefer
    more replicas to more workers (workers.md). `max_inflight` and the queue are divided between the workers, key limits
    in memory are not."""

    max_body_size: Annotated[Size, Field(ge=1024, le=1024**3)] = 10 * 1024**2
    """The largest request body; larger bodies get 413. A megabyte of text already exceeds any model's context, but
    images are larger."""

    max_upload_size: Annotated[Size, Field(ge=1024, le=1024**4)] = 32 * 1024**2
    """The largest form of `/v1/audio/transcriptions` and `/v1/audio/translations`; larger forms get 413. The file is
    passed on while it arrives, so its size takes no memory. The default has room for the 25 MiB that vLLM takes
    (`VLLM_MAX_AUDIO_CLIP_FILESIZE_MB`)."""

    max_header_size: Annotated[Size, Field(ge=1024, le=1024**2)] = 32 * 1024
    """The largest request head; larger heads get 431."""

    max_connections: Annotated[Count, Field(ge=16, le=1_000_000)] = 2048
    """Connections that may be open at once. To make room for a new connection, aiaas closes the least useful one: first
    connections of clients that have not sent a valid key, then idle connections. A connection takes 12 KiB, with TLS
    56 KiB: the default fits a pod of 512 MiB. Several workers share this number."""

    max_connections_per_address: AtLeast1 | None = None
    """Connections of one client address (IPv6: of one /64); further connections are refused. null means no bound; leave
    it null behind an ingress, where all connections come from the same address. Each worker counts separately."""

    header_timeout: PositiveDuration = 10.0
    """The longest time from the first byte of a request to the end of its head; then 408."""

    body_timeout: PositiveDuration = 30.0
    """The longest silence inside a request body; then 408."""

    body_total_timeout: PositiveDuration = 300.0
    """The longest time for a whole request body; then 408. With the default, 10 MiB need 35 kB a second."""

    min_body_rate: Size = 1024
    """The lowest average rate of a request body, in bytes a second, after the first `body_timeout`; slower bodies get
    408. 0 means no bound."""

    heartbeat: Duration = 15.0
    """Write a comment into a stream after this much silence, so that proxies in between keep the connection. 0 turns
    the heartbeat off. The default is a quarter of 60 s, the usual idle timeout of ingresses and load balancers."""

    resume_memory: Size = 64 * 1024**2
    """The memory for the text of open streams of backends with `resume`; some 40 KiB for 4,000 tokens. A stream for
    which there is no room ends with an error event if its endpoint dies. Each worker has this much."""

    drain_timeout: Duration = 300.0
    """How long requests in flight may go on at shutdown; then open streams end with an error event."""

    trusted_proxies: tuple[Text, ...] = ()
    """Networks (CIDR) from which aiaas believes `X-Forwarded-For` (or, without that, `Forwarded`), `X-Request-Id`, and
    the flag `sampled` of `traceparent`. Empty by default, since anybody can send these headers."""

    path_prefix: PathPrefix | None = None
    """The prefix in front of all paths, such as `/llm` for `https://host/llm/v1/...`, where several services share a
    host. The ingress routes it and leaves it in the path; aiaas takes it off, so that log and metrics do not show it.
    Paths without it are served, too: for probes, and behind a proxy that takes it off. null means no prefix."""

    cors: CorsOrigins | None = None
    """Web pages that may call the gateway from a browser. null does not allow any page."""

    tls: Tls | None = None
    """TLS on this port. null means plain HTTP, as behind an ingress. Changed fields inside `tls` are loaded without a
    restart; turning TLS on or off needs one."""


class Auth(Section):
    """Authentication of clients."""

    enabled: Flag = True
    """false admits everybody; limits then apply per client address (IPv6: per /64)."""

    api_key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,16}$")] = "sk-"
    """The prefix of every key. OpenAI's clients and secret scanners expect the default."""

    keys_file: Text = "keys.yaml"
    """The key file (hashed records), relative to the config file. `aiaas keys create` makes it."""


class RateLimit(Section):
    """The limits of keys without limits of their own. Each key is counted separately."""

    enabled: Flag = True
    """false turns all limits off, a key's own included."""

    requests_per_minute: AtLeast1 | None = 10
    """Requests a minute, on average. null means no limit. The default is low on purpose, so that you choose one."""

    burst: AtLeast1 | None = None
    """Requests that may arrive at once after an idle period (the size of the token bucket). null means the value of
    `requests_per_minute`."""

    tokens_per_minute: AtLeast1 | None = None
    """Input and output tokens a minute. null means no limit."""

    tokens_per_day: AtLeast1 | None = None
    """Tokens in a UTC day. null means no quota."""

    tokens_per_month: AtLeast1 | None = None
    """Tokens in a UTC month. null means no quota."""

    max_concurrent: AtLeast1 | None = None
    """Requests in flight at once. null means no limit."""

    cheap_factor: AtLeast1 = 10
    """Requests that only count tokens (`/v1/messages/count_tokens`, `/tokenize`, `/detokenize`) have a bucket of their
    own: as many times a key's requests a minute and its burst. The default is that large since an agent counts many
    times for one request (Claude Code 14 times to show its context). Such requests cost no tokens."""

    store: Annotated[str, Field(pattern=r"^(memory|(rediss?|valkeys?)(\+sentinel|\+cluster)?://\S+)$", repr=False)] = (
        "memory"
    )
    """The store of the counts: `memory` (each process counts separately), or `redis://host:6379/0` (a Redis or Valkey
    that all gateways share; `rediss://` uses TLS). With Sentinel `redis+sentinel://host:26379,host:26379/NAME`, with
    Redis Cluster `redis+cluster://host:6379,host:6379`. Write a password as `${NAME}`:
    `redis://:${REDIS_PASSWORD}@host:6379/0`."""

    store_timeout: PositiveDuration = 0.25
    """How long a request waits for the shared store before `on_store_failure` decides on it. Only the first requests of
    an outage wait; from then on the store counts as away until it answers. Set it well above the round trip to the
    store, 5ms to 5s."""

    on_store_failure: Literal["local", "allow", "deny"] = "local"
    """While the shared store is unreachable: `local` counts in each process, with its share of every limit and of the
    key's remaining budget (divided by the number of processes that counted together); `allow` admits every request;
    `deny` rejects every request with 503."""


class FieldBound(Section):
    """A bound on a field of the engine."""

    max: AtLeast0
    """The largest number, the most entries of a list, or the most bytes of a grammar; engine-fields.md says which of
    them a field has."""


WrittenRule = Annotated[
    Annotated[Literal["pass", "strip", "reject"], Tag(SHORT_FORM)] | Annotated[FieldBound, Tag(LONG_FORM)],
    Discriminator(entry_form),
]


class FieldsByClass(Section):
    """Rules as in `request.fields` for the keys of one class (`aiaas keys create --class`). They replace those of
    `request.fields`. `aiaas keys create --allow-field` lets a single key set a field, whatever the config says."""

    interactive: dict[RequestField, WrittenRule] = Field(default_factory=dict)
    """Rules for the keys of class `interactive`."""

    default: dict[RequestField, WrittenRule] = Field(default_factory=dict)
    """Rules for the keys of class `default`: all that have no other class."""

    batch: dict[RequestField, WrittenRule] = Field(default_factory=dict)
    """Rules for the keys of class `batch`. Requests that `service_tier: flex` makes `batch` keep their key's."""


class Request(Section):
    """Bounds on requests that would harm others."""

    media_urls: Literal["deny", "allow"] = "deny"
    """Whether a request may contain an `image_url`, `audio_url` or `video_url` that is not a `data:` URL. vLLM would
    fetch it from inside the cluster, so the default denies such requests."""

    max_choices: AtLeast1 = 8
    """The largest number of answers to one request: `n` times the number of prompts."""

    fields: dict[RequestField, WrittenRule] = Field(default_factory=dict)
    """Which of vLLM's request fields clients may set: `pass`, `strip` (remove it), `reject` (400), or `{max: N}`.
    Fields that reach beyond their own request, such as `priority`, are rejected by default, and costly ones have
    bounds: engine-fields.md has the table, and the reasons. A rule here replaces the field's default on all paths."""

    fields_by_class: FieldsByClass = Field(default_factory=FieldsByClass)
    """Further rules for the keys of a class."""

    unknown_fields: Literal["pass", "reject"] = "pass"
    """Whether a request may have fields that vLLM 0.32 does not know on its path. The default passes them, since vLLM
    ignores them and clients send many; `reject` also refuses fields that a newer vLLM would obey."""


class Slo(Section):
    """Objectives over 30 days. The rendered alerts fire when one is about to be missed."""

    availability: Annotated[float, Field(ge=95, lt=100)] = 99.5
    """Percentage of requests that are answered in whole. Errors of the client and clients that leave do not count."""

    ttft: TtftBound = 5.0
    """How soon a stream should begin: the time from the request's arrival to its first token. One of the bounds by
    which the gateway counts: 10ms, 25ms, 50ms, 100ms, 250ms, 500ms, 1s, 2s, 5s, 10s, 30s, 1m or 2m."""

    ttft_share: Annotated[float, Field(ge=95, lt=100)] = 95.0
    """Percentage of streams that should begin within `ttft`."""


class Traces(Section):
    """Traces for an OpenTelemetry collector, by OTLP over HTTP (traces.md)."""

    endpoint: Text
    """The collector's URL, such as `http://otel-collector.monitoring:4318`; aiaas adds `/v1/traces`. Over HTTP: the
    usual port is 4318; 4317 is that of gRPC."""

    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    """Headers for the collector, such as `{Authorization: "Basic ${OTEL_TOKEN}"}`. Write secrets as `${NAME}`."""

    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The part of all requests to export, from 0 to 1. Slow and failed requests are always exported."""

    slow_after: PositiveDuration | None = 30.0
    """A request that takes this long is slow. null sets no bound."""

    slow_ttft: PositiveDuration | None = 5.0
    """A stream whose first token takes this long is slow. null sets no bound."""

    engine_spans: Literal["sampled", "all"] = "sampled"
    """The requests for which vLLM (`--otlp-traces-endpoint`) is asked to export its spans. Whether a request is slow is
    not known yet when it is sent, so `sampled` means those of `sample_ratio`; with `all`, slow and failed traces have
    vLLM's spans, too, and a collector gets the spans of every request from vLLM."""


class Monitoring(Section):
    """Metrics, logs and traces."""

    prometheus: Flag = True
    """Whether to serve `/metrics`, on its own port."""

    metrics_port: Port = 9090
    """The port of `/metrics`. The rendered manifests never route it through an ingress."""

    admin_port: Annotated[Count, Field(ge=0, le=65535)] = 9091
    """The port of the admin endpoint (admin.md), which `aiaas status` asks, on 127.0.0.1 only: in a pod, reach it by
    `kubectl port-forward`. 0 is off. If another program has the port, the gateway serves without it."""

    log_level: LogLevel = "info"
    """The lowest level to log. Requests are logged at `info`."""

    usage_file: Text | None = None
    """An SQLite file that counts usage by key, model and day, relative to the config file. null counts nothing. Not
    used with a shared `rate_limit.store`, which then counts usage."""

    slo: Slo = Slo()
    """Objectives, for the alerts of `aiaas render`."""

    runbook_url: Text = "docs/alerts.md"
    """Where the page on the alerts can be read: each alert links to its section there. The default is the page's path
    in aiaas's repository; write the address at which your team finds it."""

    traces: Traces | None = None
    """Traces of requests. null exports none."""


class Config(Section):
    """The whole file."""

    version: Annotated[Count, Field(ge=1, le=1)] = 1
    """Version of this format; 1 is the only one."""

    server: Server = Server()
    """The client side."""

    backends: Annotated[dict[BackendName, Backend], Field(min_length=1)]
    """The vLLM deployments, each under a name of your choice (letters, digits, `.`, `_` and `-`)."""

    auth: Auth = Auth()
    """Authentication of clients."""

    rate_limit: RateLimit = RateLimit()
    """Limits of each key."""

    request: Request = Request()
    """Bounds on requests that would harm others."""

    monitoring: Monitoring = Monitoring()
    """Metrics, logs and traces."""

    kubernetes: Kubernetes = Kubernetes()
    """Settings of `aiaas render`. The gateway itself ignores them."""

    accept: dict[Text, Text] = Field(default_factory=dict)
    """Warnings that may stay, each with the reason: `{AIA219: the limits are generous}`. `aiaas validate` shows them as
    accepted, `--strict` does not fail on them, and the gateway does not report them. Errors cannot be accepted. A
    warning that no longer occurs is reported, so that the list stays true."""
