"""How a simulator misbehaves: one table of faults, each a name, a point where it strikes, and an argument.

Theory: an HTTP exchange with an engine can fail at few points, and a gateway has to survive each:

    connect -> request read -> headers -> first event -> events -> end

A fault strikes at exactly one of them. It applies to every request that generates (or pools); /health, /metrics and
/v1/models go on answering as a real vLLM's do, except where the table says otherwise. What each looks like on the wire
is taken from the transcripts named in the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from aiaas.errors import UsageError


class Point(Enum):
    """Where in the exchange a fault strikes."""

    NEVER = "never"
    CONNECT = "connect"
    REQUEST = "request"  # the request is read, nothing is answered yet
    FIRST_EVENT = "first event"  # the headers are out
    MID_STREAM = "mid stream"  # argument: after so many tokens
    PACE = "pace"


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table. `default` is the argument when none is given; None where it takes none."""

    name: str
    point: Point
    default: float | None
    unit: str
    what: str


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("none", Point.NEVER, None, "", "behaves"),
        Kind("refuse", Point.CONNECT, None, "", "the port is bound but nobody listens: connection refused"),
        Kind("hang-before-headers", Point.REQUEST, None, "", "reads the request and never answers (133)"),
        Kind("hang-before-first-event", Point.FIRST_EVENT, None, "", "sends status and headers, then nothing"),
        Kind("hang-mid-stream", Point.MID_STREAM, 5, "tokens", "falls silent after some tokens, connection open (133)"),
        Kind("reset-mid-stream", Point.MID_STREAM, 5, "tokens", "TCP reset after some tokens"),
        Kind("close-mid-stream", Point.MID_STREAM, 5, "tokens", "closes after some tokens, without the last chunk"),
        Kind("engine-dead", Point.REQUEST, None, "", "500 EngineCore, and /health and /ping are 503 (134 to 138)"),
        Kind(
            "engine-dies-mid-stream", Point.MID_STREAM, 5, "tokens", "an error event, then [DONE] and a clean end (132)"
        ),
        Kind("busy", Point.REQUEST, None, "", "503, the queue is full (115)"),
        Kind("garbage", Point.REQUEST, None, "", "answers bytes that are not HTTP, and closes"),
        Kind("html-error", Point.REQUEST, 502, "status", "answers an HTML error page, as a load balancer would"),
        Kind("slow-tokens", Point.PACE, 1.0, "seconds", "so long a gap between tokens"),
    )
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind and its argument."""

    kind: Kind
    arg: float

    @property
    def name(self) -> str:
        """The kind's name."""
        return self.kind.name

    def strikes(self, point: Point) -> bool:
        """Whether it strikes at this point."""
        return self.kind.point is point


NO_FAULT = Fault(KINDS["none"], 0)


def parse_fault(text: str) -> Fault:
    """The fault written as KIND or KIND:ARG, e.g. `reset-mid-stream:20`.

    Raises:
        UsageError: no such kind, or its argument is not a number of the right size, or it takes none.
    """
    name, colon, raw = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise UsageError(f"there is no fault {name!r}; the faults are {', '.join(KINDS)}")
    if not colon:
        return Fault(kind, kind.default or 0)
    if kind.default is None:
        raise UsageError(f"fault {name} takes no argument, but {raw!r} was given")
    try:
        arg = float(raw)
    except ValueError:
        arg = -1
    if not (100 <= arg <= 599 if kind.unit == "status" else 0 <= arg < float("inf")):
        raise UsageError(f"fault {name} takes a number ({kind.unit}), not {raw!r}; e.g. {name}:{kind.default:g}")
    return Fault(kind, arg)
