"""The `backends` section. Each backend is a named vLLM deployment: its address, its models and its timeouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from aiaas.config.address import Address, parse_dns, parse_url
from aiaas.config.kubernetes import EnginePod
from aiaas.config.names import CertificateName, DnsLabel, Labels
from aiaas.config.section import Section
from aiaas.config.values import (
    AtLeast0,
    AtLeast1,
    AutoOrAtLeast1,
    Count,
    Duration,
    EnvName,
    Flag,
    Port,
    PositiveDuration,
    Text,
)
from aiaas.openai.paths import DEFAULT_ENDPOINTS, V2_EMBED
from aiaas.yamltree import Path

# Seconds without a byte after which the streams of a backend with `resume` have been let down: four times the longest
# honest stall that was seen of a vLLM on a starved machine.
SILENT_AFTER: Final = 10.0
# Tags of the two ways to write a model; they occur in pydantic's error locations, and `load.py` drops them.
SHORT_FORM: Final = "<a name>"
LONG_FORM: Final = "<a mapping>"


class Model(Section):
    """A model in its long form."""

    name: Text
    """vLLM's name for the model (its `--served-model-name`); clients may use it, too."""

    aliases: tuple[Text, ...] = ()
    """Further names for clients. vLLM does not know these names: aiaas writes the served name into the request."""

    max_output_tokens: AtLeast1 | None = None
    """The largest number of tokens in one answer. null means no bound; vLLM's context length still applies."""

    default_output_tokens: AtLeast1 | None = None
    """Tokens to reserve for an answer if its request sets no bound. null means the value of `max_output_tokens`; if
    that is null too, nothing is reserved."""

    on_over_limit: Literal["reject", "clamp"] = "reject"
    """Whether to reject a request for more than `max_output_tokens` with 400 (`reject`) or to lower it to that bound
    (`clamp`). The default rejects, so that clients learn that they cannot get the tokens that they asked for."""


def entry_form(value: object) -> str:
    """Return the tag of an entry: a mapping, or a single value."""
    return LONG_FORM if isinstance(value, dict | Section) else SHORT_FORM


ModelEntry = Annotated[
    Annotated[Text, Tag(SHORT_FORM)] | Annotated[Model, Tag(LONG_FORM)],
    Discriminator(entry_form),
]


def _argument(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return tuple(value)
    raise ValueError("must be text, a number, true, false, null, a list of those, or a mapping")


class Replica(Section):
    """An address of a replica in its long form."""

    url: Text
    """The address: `http://host:port`, without `/v1`."""

    drain: Flag = False
    """true sends this replica no new requests, and lets those that it has finish there: before an update, or to take it
    out of service. Its health is not reported meanwhile. A reload puts a change in force."""


ReplicaEntry = Annotated[
    Annotated[Text, Tag(SHORT_FORM)] | Annotated[Replica, Tag(LONG_FORM)],
    Discriminator(entry_form),
]


class Engine(Section):
    """A process that `aiaas serve` starts for this backend, and stops when it exits. It listens on 127.0.0.1 only."""

    kind: Literal["vllm", "simulator"]
    """`vllm` runs `vllm serve`, from the `vllm` extra or from PATH. `simulator` runs the embedded stand-in, which
    answers as vLLM does on the wire, without a model."""

    model: Text | None = None
    """The model that vLLM loads: a Hugging Face name or a path. null means the name of the backend's first model."""

    args: dict[str, Annotated[Any, BeforeValidator(_argument)]] = Field(default_factory=dict)
    """Further arguments of the process, without the dashes: `max-model-len: 2048` (underscores work too),
    `enforce-eager: true`. false and null leave an argument out, a list repeats values after it, a mapping is passed
    as JSON."""

    env: dict[EnvName, str] = Field(default_factory=dict, repr=False)
    """Further environment variables of the process. Write a secret as `${NAME}`."""

    port: Port | None = None
    """Its port on 127.0.0.1. null means a port from 18100 to 19099 derived from the backend's name, so that the port
    stays the same from start to start."""

    start_timeout: PositiveDuration = 1800.0
    """How long the engine may take to become healthy. The default is long, since the first start downloads the weights
    and a large model takes minutes to load."""

    pod: EnginePod = EnginePod()
    """The pod that `aiaas render` makes of the engine, if `kind` is `vllm`."""


class Queue(Section):
    """The queue for requests over `max_inflight`: each key's requests wait in order of arrival, and `fair` says which
    key is next."""

    size: AtLeast0 = 100
    """How many requests of all keys together may wait; further requests get 503. 0 rejects at once. In a full queue, a
    request of a key that has few waiting takes the place of the newest request of the key that has the most."""

    max_wait: PositiveDuration = 30.0
    """The longest wait; then 503. The default is half of the 60 s after which most clients and ingresses give up. A
    request is refused at once where those of its key are served so slowly that it would wait for more than twice as
    long."""


class Fair(Section):
    """How keys share the slots of `max_inflight`: by tokens, and not by requests. Among keys with requests waiting, the
    key that was served the fewest tokens is next. Without `max_inflight` nothing waits in aiaas, and these fields
    have no effect."""

    output_weight: Annotated[float, Field(ge=0, le=1000)] = 4.0
    """How many prompt tokens one output token counts for. An output token keeps the engine busy for longer: vLLM reads
    a prompt in large pieces, and writes an answer token by token. With 4, a request with a prompt of 600 tokens and an
    answer of 150 counts 1,200."""

    credit: AtLeast0 = 20_000
    """How many tokens a key that was idle may use before it waits like the others (output tokens by their weight). The
    default is 10 to 20 requests of a chat. A larger number favors keys with few requests and bursts; 0 lets a key that
    comes back take its turn like all others."""

    reserve: AtLeast0 = 8
    """How many requests an endpoint may have beyond `max_inflight`, for keys that should not wait for a slot: they have
    credit left, or less than a quarter of an equal share in flight. At most a quarter of `max_inflight`; 0 makes
    `max_inflight` exact. The default lets a key with few requests send several at once; let vLLM's `--max-num-seqs` be
    at least `max_inflight` and this together."""


class Health(Section):
    """Active probes of each endpoint."""

    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/health"
    """The path to fetch. vLLM's `/health` reports a dead engine; its `/v1/models` answers 200 even then."""

    interval: PositiveDuration = 5.0
    """Time between two probes."""

    timeout: PositiveDuration = 2.0
    """The longest wait for a probe's answer."""

    unhealthy_after: AtLeast1 = 3
    """Failures in a row after which the endpoint gets no more requests. The default is not 1, since one lost packet is
    not an outage."""

    healthy_after: AtLeast1 = 1
    """Successes in a row after which the endpoint gets requests again. The default is 1, since vLLM answers only once
    it is ready."""

    silent_after: Duration | None = None
    """How long all streams of an endpoint that have begun (at least two) may be without a byte. After it, the engine
    hangs: these streams end with an error event, and the endpoint is down until it has written one token again. Streams
    that wait for their first token do not count and do not end, since a long prompt takes its time. Choose a time that
    is longer than any stall of vLLM and shorter than `timeout`. null means 10 s if the backend has `resume` on, so that
    the streams go on elsewhere, and otherwise no rule; 0 turns it off."""


class BackendTls(Section):
    """How aiaas verifies the certificate of an `https://` backend. There is no way to switch that off."""

    ca_file: Text | None = None
    """File with the certificate authorities to trust instead of the system's, in PEM. A relative path is relative to
    the config file; in a cluster it is the entry of that name in `kubernetes.authorities`, while an absolute path is a
    file of the image. aiaas reads the file again when it changes. null means the system's authorities."""

    server_name: CertificateName | None = None
    """The name that the certificate must have, and that aiaas asks for (SNI). null means the host in the URL. Write it
    where a URL has an IP address or another name than the certificate."""


class Network(Section):
    """The backend's pods, for the NetworkPolicy, which selects pods and pod ports, not Services."""

    namespace: DnsLabel | None = None
    """Namespace of the pods. null means the namespace in the host name of `url` (`name.namespace`), or aiaas's own."""

    pod_labels: Labels | None = None
    """Labels of the pods. null means every pod of that namespace."""

    port: Port | None = None
    """The port that the pods listen on. null means the port in `url`."""


class Backend(Section):
    """One named vLLM deployment. Its address is exactly one of `url`, `urls`, `dns` and `engine`."""

    enabled: Flag = True
    """false takes the backend out of service without deleting it."""

    url: Text | None = None
    """Its one address: `http://host:port`, without `/v1`."""

    urls: Annotated[tuple[ReplicaEntry, ...], Field(min_length=1)] | None = None
    """Several addresses of replicas that serve the same models: each is text, or a mapping with `url` and `drain`.
    aiaas resolves host names in `url` and `urls` every 5 s in the background, and keeps the last known addresses while
    DNS fails."""

    dns: Text | None = None
    """`name:port`; every address that the name resolves to is one endpoint, such as the pods behind a headless Service
    of Kubernetes. aiaas resolves the name again every 5 s. Always plain HTTP."""

    engine: Engine | None = None
    """A process that `aiaas serve` starts itself."""

    timeout: PositiveDuration = 120.0
    """The longest silence: until the first event of a stream (or the first byte of another answer), then between
    bytes. It does not limit the length of an answer: aiaas never cuts a stream that keeps sending."""

    total_timeout: PositiveDuration | None = None
    """The longest time for a whole request. null means no bound."""

    connect_timeout: PositiveDuration = 5.0
    """The longest wait for a TCP connection (and its TLS handshake). Inside a cluster it takes milliseconds."""

    max_retries: Annotated[Count, Field(ge=0, le=10)] = 2
    """How often aiaas retries a request, with exponential backoff. It retries only before the first byte went to the
    client, and only if vLLM cannot have run the request, so that an answer is not generated twice. A request that was
    lost because the engine died or the connection closed is retried at most once. 0 turns retries off."""

    resume: Literal["off", "exact", "near"] = "off"
    """Whether a stream goes on at another endpoint when its own dies in the middle of an answer (docs/resume.md).
    `exact` goes on where the whole answer is the one that the client would have got, or is drawn as it would have been;
    `near` also where it only goes on sensibly: with another seed, with penalties that forget the first part. Any
    other ends with an error event, as with `off`. It needs two endpoints that serve the same weights."""

    resume_wait: PositiveDuration = 10.0
    """How long a stream that broke off may wait for a slot at another endpoint. An answer that has to be generated
    again from its beginning (docs/resume.md) goes on only if what the client has took less than this to generate."""

    api_key_env: EnvName | None = None
    """The environment variable that holds vLLM's own `--api-key`, which aiaas sends upstream; it never sends the
    client's key there. null sends no key."""

    isolate_cache: Annotated[
        Literal["key"] | None, BeforeValidator(lambda value: None if value is False else value)
    ] = None
    """`key` gives each API key a prefix cache of its own: no key learns from the time to the first token what another
    key asked (CVE-2025-46570). aiaas writes a `cache_salt` into each request, the HMAC-SHA256 of the key's id. Prompts
    that several keys share, such as a common system prompt, are then cached once for each key. null (or false) shares
    the cache."""

    isolate_cache_secret_env: EnvName | None = None
    """The environment variable that holds the secret of `isolate_cache`, at least 32 characters: the same on all
    gateways, so that a key finds its cache through each of them. Make it with `openssl rand -hex 32`; a new one empties
    the caches."""

    balance: Literal["auto", "least_inflight", "round_robin", "prefix_hash"] = "auto"
    """Which endpoint gets the next request. `auto` keeps each session (an agent's task, a chat) at one endpoint, where
    vLLM's prefix cache has its prompt, as long as no other endpoint would have read the prompt much sooner; see
    docs/replicas.md. `least_inflight` takes the endpoint with the fewest requests in flight, `round_robin` each
    endpoint in turn. `prefix_hash` is an old name of `auto`."""

    max_inflight: AutoOrAtLeast1 | None = "auto"
    """Requests at once per endpoint, from each gateway; further requests wait in `queue`. `auto` finds the number from
    vLLM's own `/metrics`, every second: as many as vLLM runs at once and its KV cache holds. null means no bound: vLLM
    queues requests, too, but first come, first served, so one key can hold up all others. Keys with few requests may
    use a few slots more (`fair.reserve`)."""

    max_pending_prefill: AutoOrAtLeast1 = "auto"
    """Prompt tokens that may wait for their first token at one endpoint, from each gateway, without those that a
    session has in its endpoint's cache. With more, further requests wait in `queue`, so that a short prompt does not
    wait in the engine behind many long ones. A prompt that would make it more than twice as many is sent once no other
    waits, so that a short one waits for one long prompt at the most. `auto` is 4,096, twice what vLLM reads in one
    step. Has an effect only with `max_inflight`."""

    fair: Fair = Fair()
    """How keys share the slots of `max_inflight`."""

    scheduling: Literal["fcfs", "priority"] = "fcfs"
    """How vLLM orders its own queue (`--scheduling-policy`). With `priority` aiaas writes the class of the key into the
    request's field `priority` (interactive 0, default 10, batch 20). A vLLM with `fcfs` ignores that field, and
    before 0.10 refuses it: `aiaas validate --connect` tries. For an `engine` of aiaas, leave it out: aiaas reads the
    engine's `args`."""

    queue: Queue = Queue()
    """The queue for requests over `max_inflight`."""

    health: Health = Health()
    """Active probes of each endpoint."""

    network: Network = Network()
    """The backend's pods, for the NetworkPolicy."""

    tls: BackendTls = BackendTls()
    """How to verify the backend's certificate, with `https://`."""

    models: tuple[ModelEntry, ...]
    """The models that the backend serves. Write a list of plain names (vLLM's name for the model, then aliases of it),
    or a list of mappings, one for each model that vLLM serves (a LoRA adapter is a model, too). aiaas compares the
    models with vLLM's own list at the start, every minute and in `aiaas validate --connect`. If vLLM serves an alias as
    a model of its own, aiaas logs it and sends requests for it to that model."""

    endpoints: tuple[Text, ...] | None = None
    """The paths that clients may use, from the fixed list of paths that aiaas can guard. null means the whole list; a
    path that vLLM does not have for its model is 404, and `aiaas validate --connect` names it. With `isolate_cache`
    null leaves `/v2/embed` out, since vLLM takes no salt there."""

    ask_for_usage: Flag = True
    """Whether aiaas asks vLLM for the usage of chat and completion streams (`stream_options.include_usage`) if the
    client does not, so that tokens are counted exactly; the client does not see the usage. Write false for an engine
    that rejects `stream_options`: requests then stay unchanged, and the tokens of streams are estimated."""

    forward_headers: tuple[Text, ...] = ()
    """Further request headers of the client to send upstream, besides the fixed ones (`traceparent`, `x-request-id` and
    the like; on `/v1/messages` and `/v1/messages/count_tokens` also `anthropic-version` and `anthropic-beta`)."""

    def offered(self) -> tuple[str, ...]:
        """Return the paths that clients may use."""
        if self.endpoints is not None:
            return self.endpoints
        return tuple(path for path in DEFAULT_ENDPOINTS if path != V2_EMBED or self.isolate_cache is None)

    def silent_after(self) -> float:
        """Return the seconds of `health.silent_after`, 0 where the rule is off."""
        if self.health.silent_after is None:
            return 0.0 if self.resume == "off" else SILENT_AFTER
        return self.health.silent_after

    def replicas(self) -> Iterator[tuple[Path, Replica]]:
        """Yield the addresses of `url` and `urls` in long form, each with the field that has it."""
        if self.url is not None:
            yield ("url",), Replica(url=self.url)
        for index, entry in enumerate(self.urls or ()):
            if isinstance(entry, str):
                yield ("urls", index), Replica(url=entry)
            else:
                yield ("urls", index, "url"), entry

    def addresses(self) -> Iterator[tuple[Path, Address]]:
        """Yield the written addresses, each with its field. Raises ValueError at one that cannot be read."""
        for path, replica in self.replicas():
            yield path, parse_url(replica.url)
        if self.dns is not None:
            yield ("dns",), parse_dns(self.dns)

    def served(self) -> tuple[Model, ...]:
        """Return the models in long form, whichever way the file has them."""
        names = tuple(entry for entry in self.models if isinstance(entry, str))
        mappings = tuple(entry for entry in self.models if isinstance(entry, Model))
        return ((Model(name=names[0], aliases=names[1:]),) if names else ()) + mappings
