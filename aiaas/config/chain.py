"""The hops that a request passes, outermost first, each with its longest silence and its largest body.

Each hop must wait at least as long, and accept at least as large a body, as the hop behind it. Otherwise the client
gets the hop's HTML instead of aiaas's error, and the engine goes on working for nobody. Pure arithmetic on the config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiaas.config.hops import ingress_timeout, longest_silence, usual_silence
from aiaas.config.ingress import BODY_ROOM, bytes_of, seconds_of
from aiaas.config.model import Config
from aiaas.openai.paths import UPLOADS
from aiaas.units import format_duration, format_size

# The official SDKs give up after ten minutes without a byte (openai-python and anthropic-sdk-python, DEFAULT_TIMEOUT).
CLIENT_PATIENCE: Final = 600.0
NO_BOUND: Final = None


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop. `silence` is in seconds, `body` in bytes; None means no bound, or a bound that aiaas does not know.

    remark  further text for people
    """

    name: str
    silence: float | None
    body: int | None
    remark: str = ""


def chain(config: Config) -> tuple[Hop, ...]:
    """Return the hops: client, the cluster's entry in front of the gateway, gateway, engine."""
    gateway = Hop("gateway", usual_silence(config), largest_body(config), _remark(config))
    front = _in_front(config)
    client = Hop("client", CLIENT_PATIENCE, NO_BOUND, "default of the OpenAI and Anthropic SDKs")
    engine = Hop("vLLM", NO_BOUND, NO_BOUND, "answers or not; the gateway's timeout ends it")
    return (client, *front, gateway, engine)


def weakest(hops: tuple[Hop, ...]) -> tuple[Hop, str] | None:
    """Return the hop in front of the gateway that is the first to give up or to refuse, with the consequence.

    None if the hops in front have no bound.
    """
    names = [hop.name for hop in hops]
    gateway = hops[names.index("gateway")]
    front = hops[: names.index("gateway")]
    for hop in front:
        if hop.body is not None and gateway.body is not None and hop.body < gateway.body:
            return hop, f"rejects bodies over {format_size(hop.body)} that the gateway would accept"
    bounded = [hop for hop in front if hop.silence is not None]
    if not bounded or gateway.silence is None:
        return None
    first = min(bounded, key=lambda hop: hop.silence or 0.0)
    more = (first.silence or 0.0) - gateway.silence
    if more < 0:
        return first, f"gives up {format_duration(-more)} before the gateway"
    return first, f"waits {format_duration(more)} longer than the gateway"


def largest_body(config: Config) -> int:
    """Return the bytes of the largest body that the gateway accepts: a form with a file, if a backend takes forms."""
    server = config.server
    enabled = [backend for backend in config.backends.values() if backend.enabled]
    takes_forms = any(UPLOADS.intersection(backend.offered()) for backend in enabled)
    return max(server.max_body_size, server.max_upload_size) if takes_forms else server.max_body_size


def _in_front(config: Config) -> tuple[Hop, ...]:
    settings = config.kubernetes
    if settings.expose == "ingress":
        return (ingress_hop(config),)
    if settings.expose == "gateway":
        return (Hop("Gateway API", NO_BOUND, NO_BOUND, "its implementation's own limits"),)
    if settings.expose == "loadbalancer":
        return (Hop("load balancer", NO_BOUND, NO_BOUND, "passes bytes; has the cloud's idle timeout"),)
    return ()


def ingress_hop(config: Config) -> Hop:
    """Return the Ingress hop with the values that aiaas derives, overridden by the operator's own annotations."""
    settings = config.kubernetes.ingress
    name = f"ingress ({settings.class_name})"
    controllers = settings.controllers()
    if not controllers:
        return Hop(name, NO_BOUND, NO_BOUND, "aiaas knows no annotations for this class")
    written = settings.annotations
    derived, body = float(ingress_timeout(config)), float(BODY_ROOM * largest_body(config))
    silences, bodies = [], []
    for each in controllers:
        silences += [seconds_of(written[at]) if at in written else derived for at in each.silences if each.bounded]
        bodies += [bytes_of(written[at]) if at in written else body for at in each.bodies]
    known = [silence for silence in silences if silence]
    sizes = [int(size) for size in bodies if size]
    return Hop(name, min(known, default=NO_BOUND), min(sizes, default=NO_BOUND))


def _remark(config: Config) -> str:
    beat, usual, longest = config.server.heartbeat, usual_silence(config), longest_silence(config)
    again = f"up to {format_duration(longest)} if a request is retried; " if longest > usual else ""
    return again + (f"a comment every {beat:g} s on streams" if beat else "no heartbeat on streams")
