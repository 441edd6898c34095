"""The fault contract: the fate of a request when something between the client and vLLM goes wrong.

One table, from which `test_faults.py` takes its cases and docs/faults.md its text (`fault_page.py`). Four parts:

    FAULTS    what `aiaas simulate --fault` produces; with one endpoint, and with a second, healthy one
    SCRIPTED  what the simulator does not do: a script of the fake vLLM
    QUEUE     what ends the waiting for a slot
    CLIENTS   what the client itself does wrong, in each phase

An Outcome is what is asserted, all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Literal

from aiaas.simulator.faults import FAULT_KINDS, Point, parse_fault
from tests.fakes.vllm import (
    BUSY,
    DONE,
    ENGINE_DEAD,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    Hang,
    Reset,
    Send,
    Sleep,
    Step,
    answer,
    chunk,
    error_answer,
    error_stream_event,
    json_answer,
    stream,
    token_event,
)

TOKENS: Final = 8  # of every answer
AFTER: Final = 3  # tokens, where a fault strikes mid-stream


class Says(Enum):
    """The body that the client gets."""

    ANSWER = "the whole answer"
    SHORT = "what came, and a clean end"
    OUR_ERROR = "our error"
    ITS_ERROR = "the backend's own error, unchanged"
    OUR_EVENT = "the events so far, our error event, a clean end"
    ITS_EVENT = "every event, the engine's own error event and `[DONE]` among them"
    ITS_ABORT = "the events so far, one with `finish_reason: abort`, `[DONE]`: a clean end"
    HALF = "the first half, then the connection closes"


EndedBy = Literal["upstream", "gateway", "client"]


@dataclass(frozen=True)
class Outcome:
    """The traces of one request on every side.

    status        what the client gets, and what is logged
    says          its body; of a stream always whole events only
    code          of our error or error event; also the log's error_code and the metrics' reason
    ended_by      the log's
    sent          requests that the endpoint received
    begun         answers that its engine began to generate
    kept          the connections are used again; else they are closed, as after every 5xx
    retries       reason and number of further attempts
    failures      how often the endpoint's health was told
    should_retry  False: the answer says `x-should-retry: false` to the SDK
    retry_after   the answer's Retry-After
    tokens        tokens of a stream that reach the client
    rescued       a second, healthy endpoint answers instead (asserted for FAULTS only)
    """

    status: int
    says: Says
    code: str | None = None
    ended_by: EndedBy = "upstream"
    sent: int = 1
    begun: int = 1
    kept: bool = False
    retries: tuple[str, int] | None = None
    failures: int = 0
    should_retry: bool = True
    retry_after: str | None = None
    tokens: int = 0
    rescued: bool = False

    def settings(self) -> dict[str, object]:
        """The gateway's backend: with long timeouts, but where a timeout is tested; `max_retries` is the default."""
        timeout = "250ms" if self.code == "upstream_timeout" else "5s"
        connect_timeout = "100ms" if self.retries is not None and self.retries[0] == "connect" else "5s"
        return {
            "timeout": timeout,
            "connect_timeout": connect_timeout,
            "max_retries": 2,
            "health": {"unhealthy_after": 100},
        }


@dataclass(frozen=True)
class Fault:
    """A fault of the simulator, as `--fault` takes it, and what becomes of a streamed and of a whole answer."""

    fault: str
    stream: Outcome
    whole: Outcome

    @property
    def point(self) -> Point:
        """The point at which it strikes."""
        return parse_fault(self.fault).kind.point


@dataclass(frozen=True)
class Scripted:
    """The scripts of one endpoint, request after request; the last script is that of all further ones.

    used  the connection has carried an answer before
    """

    name: str
    what: str
    scripts: tuple[tuple[Step, ...], ...]
    outcome: Outcome
    streamed: bool = True
    used: bool = False


@dataclass(frozen=True)
class Queued:
    """A request that waits, since the only endpoint has `max_inflight` under way, and never gets there.

    fields  of the backend, beside `max_inflight: 1`
    then    what happens while it waits
    """

    what: str
    fields: Mapping[str, object]
    outcome: Outcome
    then: Literal["nothing", "the endpoint goes down", "draining"] = "nothing"


@dataclass(frozen=True)
class Leaving:
    """A client that goes away (FIN, RST and half-close alike) while the simulator has this fault.

    fault   what keeps the request where it is
    phase   the metrics' word for where it was
    status  that is logged
    begun   answers that the engine began, all of which it stops
    half    only half of the request's body was sent
    """

    name: str
    fault: str
    streamed: bool
    phase: Literal["admission", "queued", "waiting", "streaming"]
    status: int
    begun: int
    half: bool = False


def _ours(status: int, code: str, **more: object) -> Outcome:
    told = Outcome(status, Says.OUR_ERROR, code, "gateway", begun=0, should_retry=False)
    return replace(told, **more)  # type: ignore[arg-type]


FINE: Final = Outcome(200, Says.ANSWER, kept=True, tokens=TOKENS)
UNREACHABLE: Final = _ours(
    503, "no_healthy_backend", sent=0, retries=("connect", 2), failures=3, should_retry=True, retry_after="5",
    rescued=True,
)  # fmt: skip
TIMEOUT: Final = _ours(504, "upstream_timeout")
BROKE_OFF: Final = _ours(502, "upstream_error", failures=1)
NOT_UNDERSTOOD: Final = BROKE_OFF
BUSY_ENGINE: Final = Outcome(
    503, Says.ITS_ERROR, sent=3, begun=0, retries=("busy", 2), should_retry=False, rescued=True
)
# It asks for more than forward.RETRY_AFTER_MOST: the client is told, and may come back by itself.
TOO_MANY: Final = Outcome(429, Says.ITS_ERROR, begun=0, kept=True, retry_after="6", rescued=True)
BALANCER: Final = BROKE_OFF
NOBODY_BEHIND: Final = _ours(
    503, "no_healthy_backend", sent=2, retries=("balancer", 1), failures=2, retry_after="5", rescued=True
)
DYING: Final = _ours(502, "upstream_error", sent=2, retries=("engine", 1), failures=2, rescued=True)
ITS_OWN: Final = Outcome(500, Says.ITS_ERROR, begun=0)
NOTHING: Final = Outcome(200, Says.SHORT, kept=True)
CUT: Final = Outcome(200, Says.OUR_EVENT, "upstream_error", failures=1, tokens=AFTER)
SILENT: Final = replace(CUT, code="upstream_timeout", ended_by="gateway", failures=0)
HALF: Final = Outcome(200, Says.HALF, "upstream_error", failures=1)


def _both(fault: str, outcome: Outcome) -> Fault:
    return Fault(fault, outcome, outcome)


FAULTS: Final = (
    _both("none", FINE),
    # before connect
    _both("refuse", UNREACHABLE),
    _both("hang-before-connect", UNREACHABLE),
    # before headers
    _both("hang-before-headers", TIMEOUT),
    _both("reset-before-headers", BROKE_OFF),
    _both("close-before-headers", BROKE_OFF),
    _both("cut-headers", BROKE_OFF),
    _both("huge-headers", NOT_UNDERSTOOD),
    _both("garbage", NOT_UNDERSTOOD),
    _both("busy", BUSY_ENGINE),
    _both("too-many:6", TOO_MANY),
    _both("engine-dead", DYING),
    _both("draining", DYING),
    _both("error:500", ITS_OWN),
    _both("error:400", replace(ITS_OWN, status=400, kept=True)),
    _both("unhandled-exception", ITS_OWN),
    _both("html-error:502", BALANCER),
    _both("html-error:503", NOBODY_BEHIND),
    _both("html-error:504", replace(BALANCER, status=504, code="upstream_timeout")),
    _both("redirect", NOT_UNDERSTOOD),
    _both("page", NOT_UNDERSTOOD),
    _both("unauthorized", _ours(502, "upstream_error", kept=True)),
    # before the first event
    _both("hang-before-first-event", replace(TIMEOUT, begun=1)),
    _both("reset-before-first-event", replace(BROKE_OFF, begun=1)),
    _both("close-before-first-event", replace(BROKE_OFF, begun=1)),
    Fault("end-before-first-event", replace(BROKE_OFF, begun=1, kept=True, failures=0), NOTHING),
    Fault("engine-dies-first", replace(DYING, begun=2), replace(DYING, begun=2)),
    # mid-stream
    Fault(f"hang-mid-stream:{AFTER}", SILENT, replace(SILENT, says=Says.HALF)),
    Fault(f"reset-mid-stream:{AFTER}", CUT, HALF),
    Fault(f"close-mid-stream:{AFTER}", CUT, HALF),
    Fault(f"end-mid-stream:{AFTER}", replace(CUT, kept=True, failures=0), NOTHING),
    Fault(f"half-event:{AFTER}", CUT, HALF),
    Fault(f"garbage-mid-stream:{AFTER}", CUT, HALF),
    Fault(
        f"engine-dies-mid-stream:{AFTER}",
        Outcome(200, Says.ITS_EVENT, "upstream_error", kept=True, failures=1, tokens=AFTER),
        replace(DYING, begun=2),
    ),
    # after the end
    Fault(
        f"abort-mid-stream:{AFTER}",
        Outcome(200, Says.ITS_ABORT, "upstream_error", kept=True, failures=1, tokens=AFTER + 1),
        replace(DYING, begun=2),
    ),
    _both("excess", replace(FINE, kept=False)),
    # pace
    _both("slow-tokens:0.005", FINE),
    Fault("slow-tokens:30", replace(SILENT, tokens=1), replace(TIMEOUT, begun=1)),
)

_OK: Final = Send(json_answer({"object": "fake"}))
_FIRST: Final = STREAM_HEAD + chunk(token_event())
_ENGINE_FINE: Final = replace(FINE, tokens=0)

SCRIPTED: Final = (
    Scripted(
        "used connection",
        "a used connection turns out to have been closed by vLLM",
        ((Close(),), (_OK,)),
        replace(_ENGINE_FINE, sent=2, retries=("stale", 1)),
        streamed=False,
        used=True,
    ),
    Scripted(
        "used connection, and the next dies",
        "the same, and the new connection is reset before any byte",
        ((Close(),), (Reset(),)),
        replace(BROKE_OFF, sent=2, retries=("stale", 1)),
        used=True,
    ),
    Scripted(
        "used connection, and the engine dies",
        "the same, and the engine is dead: both reasons together allow one further attempt",
        ((Close(),), (Send(error_answer(500, ENGINE_DEAD)),)),
        replace(BROKE_OFF, sent=2, retries=("stale", 1)),
        used=True,
    ),
    Scripted(
        "answers and hangs up",
        "a whole answer, and the end of the connection, which it did not announce",
        ((_OK, Close()),),
        replace(_ENGINE_FINE, kept=False),
        streamed=False,
        used=True,
    ),
    Scripted(
        "busy once",
        "503, and a free place at the next attempt",
        ((Send(error_answer(503, BUSY)),), (_OK,)),
        replace(_ENGINE_FINE, sent=2, retries=("busy", 1)),
        streamed=False,
    ),
    Scripted(
        "rubbish behind the answer",
        "behind the whole answer, in the same breath, bytes that are not HTTP",
        ((Send(json_answer({"object": "fake"}) + b"SSH-2.0-OpenSSH\r\n"),),),
        replace(_ENGINE_FINE, kept=False),
        streamed=False,
    ),
    Scripted(
        "unfinished refusal",
        "a 503 whose body breaks off",
        ((Send(answer(503, b"busy!")[:-1]), Close()),),
        BROKE_OFF,
    ),
    Scripted(
        "silent refusal",
        "a 503 whose body never ends",
        ((Send(answer(503, b"busy!")[:-1]), Hang()),),
        TIMEOUT,
    ),
    Scripted(
        "upgrade",
        "101, which nobody asked for",
        ((Send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"), Hang()),),
        NOT_UNDERSTOOD,
    ),
    Scripted(
        "two lengths",
        "Content-Length and chunks in one answer",
        ((Send(STREAM_HEAD[:-2] + b"content-length: 3\r\n\r\n" + chunk(DONE) + LAST_CHUNK), Hang()),),
        NOT_UNDERSTOOD,
    ),
    Scripted(
        "coded transfer",
        "a transfer coding other than chunked",
        ((Send(STREAM_HEAD.replace(b"chunked", b"gzip, chunked") + chunk(DONE) + LAST_CHUNK), Hang()),),
        NOT_UNDERSTOOD,
    ),
    Scripted(
        "chunk size out of range",
        "a chunk of more bytes than 64 bits can count",
        ((Send(_FIRST), Sleep(0.02), Send(b"1" + b"0" * 16 + b"\r\n"), Hang()),),
        replace(CUT, tokens=1),
    ),
    Scripted(
        "client's own error in a stream",
        "an error event with a code below 500",
        ((Send(stream(token_event(), error_stream_event("too long", 400), DONE)),),),
        Outcome(200, Says.ITS_EVENT, kept=True, tokens=1),
    ),
)

OVERLOADED: Final = _ours(503, "overloaded", sent=0, should_retry=True, retry_after="5")

QUEUE: Final = (
    Queued("the queue is full", {"queue": {"size": 0}}, OVERLOADED),
    Queued("no slot comes free within `queue.max_wait`", {"queue": {"max_wait": "30ms"}}, OVERLOADED),
    Queued("nor within `total_timeout`", {"total_timeout": "30ms"}, replace(TIMEOUT, sent=0)),
    Queued(
        "the last endpoint goes down",
        {},
        replace(OVERLOADED, code="no_healthy_backend"),
        "the endpoint goes down",
    ),
    Queued("the gateway shuts down", {}, replace(OVERLOADED, code="draining", retry_after="1"), "draining"),
)

IN_THE_QUEUE: Final = Leaving("in the queue", "hang-before-headers", True, "queued", 499, 0)
CLIENTS: Final = (
    Leaving("while it sends its body", "none", True, "admission", 499, 0, half=True),
    Leaving("while the gateway connects", "hang-before-connect", True, "waiting", 499, 0),
    Leaving("before headers", "hang-before-headers", True, "waiting", 499, 0),
    Leaving("before the first event", "hang-before-first-event", True, "waiting", 499, 1),
    Leaving("mid-stream", "slow-tokens:30", True, "streaming", 200, 1),
    Leaving("while a whole answer is generated", "slow-tokens:30", False, "waiting", 499, 1),
    Leaving("in the middle of a whole answer", "hang-mid-stream", False, "streaming", 200, 1),
)


def missing_kinds() -> set[str]:
    """Faults of the simulator that the table does not hold."""
    return set(FAULT_KINDS) - {parse_fault(row.fault).name for row in FAULTS}
