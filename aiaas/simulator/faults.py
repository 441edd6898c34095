"""The simulator's faults: one table with a name, the point where the fault strikes, and an argument.

Theory: an HTTP exchange with an engine can fail at a few points, and a gateway has to survive a failure at each point:

    connect -> request read -> headers -> first event -> events -> end

A fault strikes at exactly one point (its Point) and does one thing there (its Act). It applies to every request that
generates (or pools); /health, /metrics and /v1/models still answer as in vLLM, unless the table says otherwise.
The transcripts named in the table show vLLM's own faults on the wire; the other faults come from the parts between a
gateway and vLLM: load balancers, kernels, a killed process.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from aiaas.errors import UsageError


class Point(Enum):
    """The point in the exchange at which a fault strikes."""

    NEVER = "never"
    CONNECT = "connect"
    REQUEST = "request"  # the request has been read, the answer has not begun
    FIRST_EVENT = "first event"  # the headers have been sent
    MID_STREAM = "mid stream"  # argument: the number of tokens before the fault
    END = "end"  # the answer is complete
    PACE = "pace"


class Act(Enum):
    """The effect of a fault."""

    NOTHING = "nothing"
    REFUSE = "refuse"
    HANG = "hang"  # send nothing, keep the connection open
    RESET = "reset"  # RST
    CLOSE = "close"  # FIN without the end that the framing requires
    FINISH = "finish"  # the end that the framing requires, although the answer is incomplete
    DIE = "die"  # the engine dies, and vLLM reports it
    HALVE = "halve"  # half of the next part (headers, an event), then FIN
    GARBAGE = "garbage"  # bytes that are not HTTP
    ANSWER = "answer"  # a complete answer of another kind
    DELAY = "delay"


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One row of the table. `default` is the argument's default, or None if the fault does not take an argument."""

    name: str
    point: Point
    act: Act
    default: float | None
    unit: str
    what: str


def _at(point: Point, name: str, act: Act, what: str, default: float | None = None, unit: str = "") -> FaultKind:
    return FaultKind(name, point, act, default, unit, what)


def _after_tokens(name: str, act: Act, what: str) -> FaultKind:
    return FaultKind(name, Point.MID_STREAM, act, 5, "tokens", what)


FAULT_KINDS: dict[str, FaultKind] = {
    kind.name: kind
    for kind in (
        _at(Point.NEVER, "none", Act.NOTHING, "normal behaviour"),
        _at(Point.CONNECT, "refuse", Act.REFUSE, "refuses connections: the port is bound, without a listener"),
        _at(Point.CONNECT, "hang-before-connect", Act.HANG, "neither accepts nor refuses connections"),
        _at(Point.REQUEST, "hang-before-headers", Act.HANG, "reads the request and never answers (133)"),
        _at(Point.REQUEST, "reset-before-headers", Act.RESET, "reads the request, then TCP reset"),
        _at(Point.REQUEST, "close-before-headers", Act.CLOSE, "reads the request and closes"),
        _at(Point.REQUEST, "cut-headers", Act.HALVE, "closes in the middle of the headers"),
        _at(Point.REQUEST, "huge-headers", Act.ANSWER, "answers with 128 KiB of headers"),
        _at(Point.REQUEST, "garbage", Act.GARBAGE, "answers with bytes that are not HTTP, and closes"),
        _at(Point.REQUEST, "busy", Act.ANSWER, "503, the queue is full (115)"),
        _at(Point.REQUEST, "too-many", Act.ANSWER, "429 with this Retry-After, like a proxy before vLLM", 1, "seconds"),
        _at(Point.REQUEST, "engine-dead", Act.DIE, "500 EngineCore, and /health and /ping are 503 (134 to 138)"),
        _at(Point.REQUEST, "draining", Act.ANSWER, "500, shutting down, while /health is still 200 (140)"),
        _at(Point.REQUEST, "error", Act.ANSWER, "another error, in vLLM's shape", 500, "status"),
        _at(Point.REQUEST, "unhandled-exception", Act.ANSWER, "500, then closes without announcing it"),
        _at(Point.REQUEST, "html-error", Act.ANSWER, "an HTML error page, like a load balancer's", 502, "status"),
        _at(Point.REQUEST, "redirect", Act.ANSWER, "307 to itself"),
        _at(Point.REQUEST, "page", Act.ANSWER, "200 with an HTML page, like a web server at that address"),
        _at(Point.REQUEST, "unauthorized", Act.ANSWER, "401, whatever the key (100)"),
        _at(Point.FIRST_EVENT, "hang-before-first-event", Act.HANG, "sends status and headers, then nothing"),
        _at(Point.FIRST_EVENT, "reset-before-first-event", Act.RESET, "sends status and headers, then TCP reset"),
        _at(Point.FIRST_EVENT, "close-before-first-event", Act.CLOSE, "sends status and headers, then closes"),
        _at(Point.FIRST_EVENT, "end-before-first-event", Act.FINISH, "a complete answer without any content"),
        _at(Point.FIRST_EVENT, "engine-dies-first", Act.DIE, "an error event first, then [DONE] and a clean end"),
        _after_tokens("hang-mid-stream", Act.HANG, "stops sending after some tokens, connection open (133)"),
        _after_tokens("reset-mid-stream", Act.RESET, "TCP reset after some tokens"),
        _after_tokens("close-mid-stream", Act.CLOSE, "closes after some tokens, without the last chunk"),
        _after_tokens("end-mid-stream", Act.FINISH, "ends after some tokens with the last chunk, but without [DONE]"),
        _after_tokens("half-event", Act.HALVE, "closes after some tokens and half of another event"),
        _after_tokens("garbage-mid-stream", Act.GARBAGE, "after some tokens, bytes that are not a chunk"),
        _after_tokens("engine-dies-mid-stream", Act.DIE, "an error event, then [DONE] and a clean end (132)"),
        _at(Point.END, "excess", Act.GARBAGE, "after the complete answer, another answer without a request"),
        _at(Point.PACE, "slow-tokens", Act.DELAY, "this long a gap between tokens", 1.0, "seconds"),
    )
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind and its argument."""

    kind: FaultKind
    arg: float

    @property
    def name(self) -> str:
        """The kind's name."""
        return self.kind.name

    @property
    def act(self) -> Act:
        """The effect of the fault."""
        return self.kind.act

    def strikes(self, point: Point) -> bool:
        """Whether the fault strikes at this point."""
        return self.kind.point is point


NO_FAULT = Fault(FAULT_KINDS["none"], 0)


def parse_fault(text: str) -> Fault:
    """Parse a fault written as KIND or KIND:ARG, e.g. `reset-mid-stream:20`.

    Raises:
        UsageError: the kind is unknown, its argument is not a number in range, or the kind does not take an argument.
    """
    name, colon, raw = text.partition(":")
    kind = FAULT_KINDS.get(name)
    if kind is None:
        raise UsageError(f"unknown fault {name!r}; the faults are {', '.join(FAULT_KINDS)}")
    if not colon:
        return Fault(kind, kind.default or 0)
    if kind.default is None:
        raise UsageError(f"fault {name} does not take an argument, but {raw!r} was given")
    try:
        arg = float(raw)
    except ValueError:
        arg = -1
    if not (400 <= arg <= 599 if kind.unit == "status" else 0 <= arg < float("inf")):
        raise UsageError(f"fault {name} takes a number ({kind.unit}), not {raw!r}; e.g. {name}:{kind.default:g}")
    return Fault(kind, arg)
