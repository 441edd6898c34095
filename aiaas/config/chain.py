"""The hops that a request passes, outermost first, with what each bears: silence, and a body.

Each hop must be at least as patient, and take at least as large a body, as the one behind it: else the client gets the
hop's HTML where it should get our error, and the engine works on for nobody. Pure arithmetic over the config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiaas.config.hops import ingress_timeout, longest_silence, usual_silence
from aiaas.config.ingress import bytes_of, family_of, seconds_of
from aiaas.config.model import Config
from aiaas.units import format_duration, format_size

# The official SDKs give up after ten minutes without a byte (openai-python and anthropic-sdk-python, DEFAULT_TIMEOUT).
CLIENT_PATIENCE: Final = 600.0
NO_BOUND: Final = None
# Eight of the largest bodies at once, as an image a request from a handful of users makes them, and at least 64 MiB, so
# that a small `max_body_size` does not turn away a burst of middling ones.
BUDGET_BODIES: Final = 8
BUDGET_LEAST: Final = 64 * 1024**2
# One connection, measured with 1,000 of them (`python -m tests.siege.cost`), and 4 KiB of the kernel: 5 KiB silent, 7
# idle; under TLS 52 in the handshake, 30 after it.
MEMORY_A_CONNECTION: Final = 12 * 1024
TLS_CONNECTION_MEMORY: Final = 56 * 1024


@dataclass(frozen=True, slots=True)
class Hop:
    """One of them. `silence` is seconds and `body` bytes; None is no bound, or one that is not ours to know.

    remark  what else to know about it, for people
    """

    name: str
    silence: float | None
    body: int | None
    remark: str = ""


def chain(config: Config) -> tuple[Hop, ...]:
    """Client, what stands in front in the cluster, gateway, engine."""
    gateway = Hop("gateway", usual_silence(config), config.server.max_body_size, _remark(config))
    front = _in_front(config)
    client = Hop("client", CLIENT_PATIENCE, NO_BOUND, "what the OpenAI and Anthropic SDKs wait by default")
    engine = Hop("vLLM", NO_BOUND, NO_BOUND, "answers or not; the gateway's timeout ends it")
    return (client, *front, gateway, engine)


def weakest(hops: tuple[Hop, ...]) -> tuple[Hop, str] | None:
    """The hop in front of the gateway that is the first to give up or to refuse, and what that means; None where none
    of them has a bound."""
    names = [hop.name for hop in hops]
    gateway = hops[names.index("gateway")]
    front = hops[: names.index("gateway")]
    for hop in front:
        if hop.body is not None and gateway.body is not None and hop.body < gateway.body:
            return hop, f"refuses bodies over {format_size(hop.body)} that the gateway would take"
    bounded = [hop for hop in front if hop.silence is not None]
    if not bounded or gateway.silence is None:
        return None
    first = min(bounded, key=lambda hop: hop.silence or 0.0)
    more = (first.silence or 0.0) - gateway.silence
    if more < 0:
        return first, f"gives up {format_duration(-more)} before the gateway"
    return first, f"waits {format_duration(more)} longer than the gateway"


def body_budget(max_body_size: int) -> int:
    """Bytes that the large bodies of all requests of a process may take together.

    With the default of 10 MiB that is 80 MiB, and at the worst twice as much in memory, since an alias is spliced into
    a copy: a third of a pod of 512 MiB.
    """
    return max(BUDGET_LEAST, BUDGET_BODIES * max_body_size)


def connection_memory(*, tls: bool) -> int:
    """Bytes that a connection of a client takes, whatever it sends."""
    return TLS_CONNECTION_MEMORY if tls else MEMORY_A_CONNECTION


def memory_budget(max_body_size: int, max_connections: int, *, tls: bool) -> int:
    """Bytes that connections, heads and bodies of a process may take together."""
    return body_budget(max_body_size) + max_connections * connection_memory(tls=tls)


def _in_front(config: Config) -> tuple[Hop, ...]:
    settings = config.kubernetes
    if settings.expose == "ingress":
        return (ingress_hop(config),)
    if settings.expose == "gateway":
        return (Hop("Gateway API", NO_BOUND, NO_BOUND, "its implementation's own limits"),)
    if settings.expose == "loadbalancer":
        return (Hop("load balancer", NO_BOUND, NO_BOUND, "passes bytes; the cloud's idle timer"),)
    return ()


def ingress_hop(config: Config) -> Hop:
    """The Ingress as it will be: what aiaas derives, with the operator's own annotations over it."""
    settings = config.kubernetes.ingress
    name = f"ingress ({settings.class_name})"
    family = family_of(settings.class_name)
    if family is None:
        return Hop(name, NO_BOUND, NO_BOUND, "aiaas knows no annotations for this class")
    written = settings.annotations
    derived = float(ingress_timeout(config)) if family.bounded else NO_BOUND
    silences = [seconds_of(written[at]) if at in written else derived for at in family.silences]
    body = float(config.server.max_body_size) if family.bodies else NO_BOUND
    bodies = [bytes_of(written[at]) if at in written else body for at in family.bodies]
    known = [silence for silence in silences if silence]
    sizes = [int(size) for size in bodies if size]
    return Hop(name, min(known, default=NO_BOUND), min(sizes, default=NO_BOUND))


def _remark(config: Config) -> str:
    beat, usual, longest = config.server.heartbeat, usual_silence(config), longest_silence(config)
    again = f"up to {format_duration(longest)} where a request is sent again; " if longest > usual else ""
    return again + (f"on streams a comment every {beat:g} s" if beat else "no heartbeat on streams")
