"""The `backends` section: one named vLLM deployment: its address, its models and its timeouts."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from aiaas.config.kubernetes import DnsLabel, EnginePod, Labels
from aiaas.config.section import Section
from aiaas.config.values import AtLeast0, AtLeast1, Count, EnvName, Flag, Port, PositiveDuration, Text
from aiaas.openai.paths import DEFAULT_ENDPOINTS

# Tags of the two ways to write a model; they occur in pydantic's error locations and are dropped there.
SHORT_FORM: Final = "<a name>"
LONG_FORM: Final = "<a mapping>"


class Model(Section):
    """A model in its long form."""

    name: Text
    """vLLM's name for the model (its `--served-model-name`); clients may use this name too."""

    aliases: tuple[Text, ...] = ()
    """Further names for clients. vLLM does not know them: aiaas writes the served name into the request instead."""

    max_output_tokens: AtLeast1 | None = None
    """The most tokens that one answer may have. null sets no bound; vLLM's context length still applies."""

    default_output_tokens: AtLeast1 | None = None
    """Tokens reserved for an answer whose request names no bound. null is `max_output_tokens`, and without that nothing
    is reserved."""

    on_over_limit: Literal["reject", "clamp"] = "reject"
    """A request for more than `max_output_tokens` is rejected with 400 (`reject`) or cut down to that bound (`clamp`).
    The default rejects, so that a client knows when it cannot get the tokens that it asked for."""


def _model_form(value: object) -> str:
    return LONG_FORM if isinstance(value, dict | Model) else SHORT_FORM


ModelEntry = Annotated[
    Annotated[Text, Tag(SHORT_FORM)] | Annotated[Model, Tag(LONG_FORM)],
    Discriminator(_model_form),
]


def _argument(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return tuple(value)
    raise ValueError("must be text, a number, true, false, null, a list of those, or a mapping")


class Engine(Section):
    """A process that `aiaas serve` starts for this backend, and stops with itself. It listens on 127.0.0.1 only."""

    kind: Literal["vllm", "simulator"]
    """`vllm` runs `vllm serve`, from the `vllm` extra or any on PATH. `simulator` is the embedded stand-in that
    answers the way vLLM does on the wire, without a model."""

    model: Text | None = None
    """The model that vLLM loads: a Hugging Face name or a path. null is the name of the backend's first model."""

    args: dict[str, Annotated[Any, BeforeValidator(_argument)]] = Field(default_factory=dict)
    """Further arguments of the process, without the dashes: `max-model-len: 2048` (underscores work too),
    `enforce-eager: true`. false and null leave an argument out, a list repeats values after it, a mapping is passed
    as JSON."""

    env: dict[EnvName, str] = Field(default_factory=dict, repr=False)
    """Further environment variables of the process. Write a secret as `${NAME}`."""

    port: Port | None = None
    """Its port on 127.0.0.1. null is a port from 18100 to 19099 that follows from the backend's name, so that
    it stays the same from start to start."""

    start_timeout: PositiveDuration = 1800.0
    """How long the engine may take to become healthy. Generous, since the first start downloads the weights and
    a large model takes minutes to load."""

    pod: EnginePod = EnginePod()
    """The pod that `aiaas render` makes of it, if `kind` is `vllm`."""


class Queue(Section):
    """Where requests over `max_inflight` wait: in order of arrival for each key, and keys take turns."""

    size: AtLeast0 = 100
    """How many requests may wait, of all keys together; further ones get 503. 0 rejects at once."""

    max_wait: PositiveDuration = 30.0
    """The longest wait, then 503. Half of the 60 s after which most clients and ingresses give up by themselves."""


class Health(Section):
    """Active probes of each endpoint."""

    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/health"
    """The path to fetch. vLLM's `/health` reports a dead engine; its `/v1/models` answers 200 even then."""

    interval: PositiveDuration = 5.0
    """Time between two probes."""

    timeout: PositiveDuration = 2.0
    """The longest wait for a probe's answer."""

    unhealthy_after: AtLeast1 = 3
    """Failures in a row until the endpoint gets no more requests. Not 1: one lost packet is not an outage."""

    healthy_after: AtLeast1 = 1
    """Successes in a row until it gets requests again. 1, since vLLM answers only once it can work."""


class Network(Section):
    """The backend's pods, for the NetworkPolicy: it sees pods and pod ports, not Services."""

    namespace: DnsLabel | None = None
    """Namespace of the pods. null is taken from the host name in `url` (`name.namespace`), else aiaas's own."""

    pod_labels: Labels | None = None
    """Labels of the pods. null is every pod of that namespace."""

    port: Port | None = None
    """The port that the pods listen on. null is the port in `url`."""


class Backend(Section):
    """One named vLLM deployment. Its address is exactly one of `url`, `urls`, `dns` and `engine`."""

    enabled: Flag = True
    """false takes it out without deleting it."""

    url: Text | None = None
    """Its one address: `http://host:port`, without `/v1`."""

    urls: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Several addresses of replicas that serve the same models. A host name in `url` or `urls` is looked up every 5 s
    in the background, and the last known addresses stay while DNS is away."""

    dns: Text | None = None
    """`name:port`; every address that the name resolves to is one endpoint, such as the pods behind a headless Service
    of Kubernetes. Resolved again every 5 s. Always plain HTTP."""

    engine: Engine | None = None
    """A process that `aiaas serve` starts itself."""

    timeout: PositiveDuration = 120.0
    """The longest silence: until the first event of a stream (or the first byte of another answer), then between
    bytes. Not the length of an answer: a stream that keeps talking is never cut."""

    total_timeout: PositiveDuration | None = None
    """The longest whole request. null is no bound."""

    connect_timeout: PositiveDuration = 5.0
    """The longest wait for a TCP connection (and its TLS handshake). Inside a cluster it takes milliseconds."""

    max_retries: Annotated[Count, Field(ge=0, le=10)] = 2
    """How often a request is sent again, with exponential backoff. Only while no byte went to the client and only
    where it cannot have been run, so that no answer is generated twice. A request that a dying engine or a
    closed connection lost is sent again at most once. 0 sends each request once."""

    api_key_env: EnvName | None = None
    """The environment variable that holds vLLM's own `--api-key`. It is sent upstream; the client's key never is.
    null sends no key."""

    balance: Literal["least_inflight", "round_robin", "prefix_hash"] = "least_inflight"
    """Which endpoint gets the next request: the one with the fewest in flight; each in turn; or the same one for
    prompts that begin alike, so that vLLM's prefix cache hits (alike: up to the first message of the user, 1 KiB at the
    most; an endpoint with a quarter more in flight than the mean is passed over). The default suits requests of very
    different length."""

    max_inflight: AtLeast1 | None = None
    """Requests at once per endpoint, of each aiaas process; further ones wait in `queue`. null is no bound, since vLLM
    queues too, though without turns between keys."""

    queue: Queue = Queue()
    """Where requests over `max_inflight` wait."""

    health: Health = Health()
    """Active probes of each endpoint."""

    network: Network = Network()
    """Its pods, for the NetworkPolicy."""

    models: tuple[ModelEntry, ...]
    """The models that it serves. A list of plain names: the first is what vLLM serves, the rest are aliases of it. Or a
    list of mappings, one for each model that vLLM serves (a LoRA adapter is one). aiaas compares them with vLLM's own
    list at the start, every minute and in `aiaas validate --connect`; an alias that is a model of its own there is left
    as the client wrote it, and logged."""

    endpoints: tuple[Text, ...] = DEFAULT_ENDPOINTS
    """The paths that clients may use, from the fixed list of those that aiaas knows how to guard."""

    ask_for_usage: Flag = True
    """Whether a stream of chat or completions is asked for its usage where the client does not ask
    (`stream_options.include_usage`), so that its tokens are counted exactly; the client does not see it. false for an
    engine that refuses `stream_options`: its requests stay as they are, and tokens of streams are estimated."""

    forward_headers: tuple[Text, ...] = ()
    """Request headers of the client that go upstream beyond the fixed few (`traceparent`, `x-request-id` and the
    like)."""

    def served(self) -> tuple[Model, ...]:
        """The models in long form, whichever way they were written."""
        names = tuple(entry for entry in self.models if isinstance(entry, str))
        mappings = tuple(entry for entry in self.models if isinstance(entry, Model))
        return ((Model(name=names[0], aliases=names[1:]),) if names else ()) + mappings
