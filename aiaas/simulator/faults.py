"""The simulator's faults: one table with a name, the point where the fault strikes, and an argument.

Theory: an HTTP exchange with an engine can fail at a few points, and a gateway has to survive a failure at each point:

    connect -> request read -> headers -> first event -> events -> end

A fault strikes at exactly one point (its Point) and does one thing there (its Act). It applies to every request that
generates (or pools), unless its Reach says otherwise; /health, /metrics and /v1/models still answer as in vLLM, unless
the table says otherwise.

Faults of a single stream come from a network. A process that dies takes all its streams along, wherever they are: with
`all`, the moment of that death is when the first stream comes to the fault's point.
The transcripts named in the table show vLLM's own faults on the wire; the other faults come from the parts between a
gateway and vLLM: load balancers, kernels, a killed process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
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
    ABORT = "abort"  # the engine ends the answer before its end, and says so in its finish_reason
    HALVE = "halve"  # half of the next part (headers, an event), then FIN
    GARBAGE = "garbage"  # bytes that are not HTTP
    ANSWER = "answer"  # a complete answer of another kind
    DELAY = "delay"


class Reach(Enum):
    """The requests that a fault strikes, as written behind its kind."""

    EACH = "each"  # every request that comes to its point
    ONCE = "once"  # only the first one
    ALL = "all"  # with the first stream, every request in flight, and the simulator stays like that
    SIGTERM = "sigterm"  # every request in flight at SIGTERM, instead of vLLM's silence


_DEATHS = frozenset({Act.HANG, Act.RESET, Act.CLOSE, Act.DIE, Act.ABORT})  # what a process can do to all its streams


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
        _after_tokens("abort-mid-stream", Act.ABORT, "after some tokens a finish_reason of abort, and a clean end"),
        _at(Point.END, "excess", Act.GARBAGE, "after the complete answer, another answer without a request"),
        _at(Point.PACE, "slow-tokens", Act.DELAY, "this long a gap between tokens", 1.0, "seconds"),
    )
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind, its argument, and the requests that it strikes.

    characters  whether the argument counts the characters of a text instead of its tokens
    """

    kind: FaultKind
    arg: float
    reach: Reach = Reach.EACH
    characters: bool = False

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

    def tokens_before(self, texts: Sequence[str]) -> int:
        """Return how many of these tokens a stream sends before the fault: with `characters` as many as fit."""
        if not self.characters:
            return int(self.arg)
        ends = itertools.accumulate(len(text) for text in texts)
        return sum(1 for _ in itertools.takewhile(lambda end: end <= self.arg, ends))


NO_FAULT = Fault(FAULT_KINDS["none"], 0)
STAYS_DEAD = Fault(FAULT_KINDS["engine-dead"], 0)


def parse_fault(text: str) -> Fault:
    """Parse a fault written as KIND[:ARG][,REACH], such as `reset-mid-stream:20`, `reset-mid-stream:120c,once` (120
    characters, in the first request only) or `engine-dies-mid-stream:20,all`.

    Raises:
        UsageError: the kind is unknown, its argument is not a number in range, the kind does not take an argument, or
            it cannot reach as far.
    """
    written, comma, reach_text = text.partition(",")
    name, colon, raw = written.partition(":")
    kind = FAULT_KINDS.get(name)
    if kind is None:
        raise UsageError(f"unknown fault {name!r}; the faults are {', '.join(FAULT_KINDS)}")
    reach = _reach(kind, reach_text) if comma else Reach.EACH
    if not colon:
        return Fault(kind, kind.default or 0, reach)
    if kind.default is None:
        raise UsageError(f"fault {name} does not take an argument, but {raw!r} was given")
    characters = kind.unit == "tokens" and raw.endswith("c")
    try:
        arg = float(raw.removesuffix("c") if characters else raw)
    except ValueError:
        arg = -1
    if not (400 <= arg <= 599 if kind.unit == "status" else 0 <= arg < float("inf")):
        unit = "tokens, or characters with a c behind it" if kind.unit == "tokens" else kind.unit
        raise UsageError(f"fault {name} takes a number ({unit}), not {raw!r}; e.g. {name}:{kind.default:g}")
    return Fault(kind, arg, reach, characters)


def _reach(kind: FaultKind, text: str) -> Reach:
    """Raises UsageError for an unknown reach, and for one that the kind does not have."""
    try:
        reach = Reach(text)
    except ValueError as error:
        known = ", ".join(reach.value for reach in Reach)
        raise UsageError(f"fault {kind.name}: {text!r} is unknown; write {known}") from error
    if reach is Reach.ONCE and kind.point in (Point.NEVER, Point.CONNECT, Point.PACE):
        raise UsageError(f"fault {kind.name} cannot strike once; it lasts")
    deadly = kind.point is Point.MID_STREAM and kind.act in _DEATHS
    if reach in (Reach.ALL, Reach.SIGTERM) and not deadly:
        able = ", ".join(
            other.name for other in FAULT_KINDS.values() if other.point is Point.MID_STREAM and other.act in _DEATHS
        )
        raise UsageError(f"fault {kind.name} cannot strike all requests at once; these can: {able}")
    return reach


class ArmedFault:
    """The fault of a running simulator, and whether it is over.

    spread  called when a fault that reaches ALL has struck its first request
    """

    __slots__ = ("_over", "_spread", "fault")

    def __init__(self, fault: Fault, spread: Callable[[Fault], None]) -> None:
        self.fault = fault
        self._spread = spread
        self._over = fault.reach is Reach.SIGTERM

    def strikes(self, point: Point) -> bool:
        """Whether a request that comes to this point now is struck."""
        return not self._over and self.fault.strikes(point)

    def take(self) -> None:
        """Note that a request is struck."""
        if self.fault.reach is Reach.EACH or self._over:
            return
        self._over = True
        if self.fault.reach is Reach.ALL:
            self._spread(self.fault)
