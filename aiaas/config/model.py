"""What an operator may write, field by field. This is the manual: docs/config.md and the JSON Schema are made from it.

Each field says what it means, in which unit, what null means, and why it has the default that it has. Rules that
concern one field alone are types here; rules between fields are in `aiaas.config.check`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from aiaas.config.backend import Backend
from aiaas.config.kubernetes import Kubernetes
from aiaas.config.section import Section
from aiaas.config.values import AtLeast1, Count, Duration, Flag, Origin, Port, PositiveDuration, Size, Text

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),  # LOG_LEVEL=INFO is common
]
BackendName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]


class Cors(Section):
    """Which web pages may call the gateway from a browser."""

    allow_origins: Annotated[tuple[Origin, ...], Field(min_length=1)]
    """Origins such as `https://chat.example.com`, without a path; `*` is any. What a page
    knows its visitors can read, so a key in it needs limits of its own."""


class Tls(Section):
    """TLS on the open side, for a deployment without an ingress. The files are read again when renewed."""

    cert_file: Text
    """Certificate chain in PEM, relative to the config file."""

    key_file: Text
    """Its private key in PEM, relative to the config file."""

    min_version: Literal["1.2", "1.3"] = "1.2"
    """The oldest TLS version that is accepted. Quote it: without quotes YAML reads a number."""


class Server(Section):
    """The open side: where clients connect, and what they may send."""

    host: Annotated[Text, Field(pattern=r"^[^\s/]+$")] = "0.0.0.0"
    """Address to listen on; `::` is IPv6 as well, `127.0.0.1` this machine only. The default is what a container
    needs."""

    port: Port = 8080
    """Port to listen on."""

    workers: AtLeast1 = 1
    """Processes that share the port, each for one CPU core. One serves some thousand requests a second; more replicas
    come before more workers (workers.md). `max_inflight` and the queue are divided between them, key limits in memory
    are not."""

    max_body_size: Annotated[Size, Field(ge=1024, le=1024**3)] = 10 * 1024**2
    """The largest request body; a larger one gets 413. A megabyte of text is already beyond any model's context,
    images are larger."""

    max_header_size: Annotated[Size, Field(ge=1024, le=1024**2)] = 32 * 1024
    """The largest request head; a larger one gets 431."""

    max_connections: Annotated[Count, Field(ge=16, le=1_000_000)] = 2048
    """Connections that may be open at once. Where a new one has no room, the connection that is the least missed ends
    for it: first clients that have not shown a valid key, then idle ones. A connection takes 12 KiB, under TLS 56 KiB:
    the default is what a pod of 512 MiB bears. With several workers it is divided between them."""

    max_connections_per_address: AtLeast1 | None = None
    """Connections of one client address (of IPv6: of one /64); further ones are refused. null is no bound, as behind an
    ingress, where all come from one address. Each worker counts for itself."""

    header_timeout: PositiveDuration = 10.0
    """From the first byte of a request to the end of its head; then 408."""

    body_timeout: PositiveDuration = 30.0
    """The longest silence inside a request body; then 408."""

    body_total_timeout: PositiveDuration = 300.0
    """The longest time for a whole request body; then 408. With the default, 10 MiB may come at 35 kB a second."""

    min_body_rate: Size = 1024
    """Bytes a second with which a request body must come, on average after its first `body_timeout`; else 408. 0 is no
    bound."""

    heartbeat: Duration = 15.0
    """Silence on a stream that is filled with a comment, so that no proxy in between takes it for dead. 0 is off. A
    quarter of the 60 s that is the usual idle limit of ingresses and load balancers."""

    drain_timeout: Duration = 300.0
    """At shutdown, how long requests in flight may go on; what is still open then ends with an error event."""

    trusted_proxies: tuple[Text, ...] = ()
    """Networks (CIDR) whose `X-Forwarded-For` (or, without that, `Forwarded`) and `X-Request-Id` are believed. None by
    default: anybody can write a header."""

    cors: Cors | None = None
    """Which web pages may call from a browser. null is none."""

    tls: Tls | None = None
    """TLS on this port. null is plain HTTP, as behind an ingress. Its fields reload; turning it on or off does not."""


class Auth(Section):
    """Who may use the gateway."""

    enabled: Flag = True
    """false lets everybody in; limits then hold per client address (of IPv6: per /64)."""

    api_key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,16}$")] = "sk-"
    """What every key starts with. The default is what OpenAI's clients and secret scanners expect."""

    keys_file: Text = "keys.yaml"
    """The key file (hashed records), relative to the config file. `aiaas keys create` makes it."""


class RateLimit(Section):
    """What a key may use that has no limits of its own. Each key counts for itself."""

    enabled: Flag = True
    """false takes all limits away, a key's own included."""

    requests_per_minute: AtLeast1 | None = 10
    """Requests a minute, on average. null is no limit. The default is low on purpose: raise it knowingly."""

    burst: AtLeast1 | None = None
    """Requests at once after a pause (the size of the token bucket). null is `requests_per_minute`."""

    tokens_per_minute: AtLeast1 | None = None
    """Input and output tokens a minute. null is no limit."""

    tokens_per_day: AtLeast1 | None = None
    """Tokens in a UTC day. null is no quota."""

    tokens_per_month: AtLeast1 | None = None
    """Tokens in a UTC month. null is no quota."""

    max_concurrent: AtLeast1 | None = None
    """Requests in flight at once. null is no limit."""

    store: Annotated[str, Field(pattern=r"^(memory|(rediss?|valkeys?)(\+sentinel|\+cluster)?://\S+)$", repr=False)] = (
        "memory"
    )
    """Where the counts live: `memory` (each process for itself), or `redis://host:6379/0` (a Redis or Valkey that all
    share; `rediss://` is TLS). With Sentinel `redis+sentinel://host:26379,host:26379/NAME`, with Redis Cluster
    `redis+cluster://host:6379,host:6379`. A password comes in as `${NAME}`: `redis://:${REDIS_PASSWORD}@host:6379/0`."""

    store_timeout: PositiveDuration = 0.25
    """How long a request waits for the shared store before `on_store_failure` decides on it. Only the first requests of
    an outage wait; from then on the store counts as away until it answers. Set it well above the round trip to the
    store, 5ms to 5s."""

    on_store_failure: Literal["local", "allow", "deny"] = "local"
    """While the shared store is away: each process counts by itself, with its share of every limit and of what the key
    had left (divided by the number of processes that counted together); or lets everything in; or nothing, with 503."""


class Request(Section):
    """What is refused because it would hurt others."""

    media_urls: Literal["deny", "allow"] = "deny"
    """Whether a request may name `image_url`, `audio_url` or `video_url` that are not `data:`. vLLM would fetch them
    from inside the cluster, so no."""

    max_choices: AtLeast1 = 8
    """The most answers to one request: `n` times the number of prompts."""


class Monitoring(Section):
    """Metrics and logs."""

    prometheus: Flag = True
    """Serve `/metrics`, on its own port."""

    metrics_port: Port = 9090
    """That port. It is never routed through an ingress."""

    log_level: LogLevel = "info"
    """The least important lines that are logged. Requests are logged at `info`."""

    usage_file: Text | None = None
    """An SQLite file that counts usage by key, model and day, relative to the config file. null counts none. Not used
    where `rate_limit.store` is shared: usage is counted there."""


class Config(Section):
    """The whole file."""

    version: Annotated[Count, Field(ge=1, le=1)] = 1
    """Version of this format. There is one."""

    server: Server = Server()
    """The open side."""

    backends: Annotated[dict[BackendName, Backend], Field(min_length=1)]
    """The vLLM deployments, each under a name of your choice (letters, digits, `.`, `_` and `-`)."""

    auth: Auth = Auth()
    """Who may use it."""

    rate_limit: RateLimit = RateLimit()
    """How much each key may use."""

    request: Request = Request()
    """What is refused because it would hurt others."""

    monitoring: Monitoring = Monitoring()
    """Metrics and logs."""

    kubernetes: Kubernetes = Kubernetes()
    """What `aiaas render` makes. The gateway itself ignores it."""
