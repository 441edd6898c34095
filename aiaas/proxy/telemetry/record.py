"""The facts of one request while it lives: the log line, the metrics and its price are made from them.

One mutable object for each request. Each module fills in the facts that it learns, in the order in which the fields
stand; at the end `price.py`, `log.py` and `metrics.py` read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from aiaas.keys.model import PriorityClass, Rejection
from aiaas.proxy.telemetry.trace import Trace

EndedBy = Literal["upstream", "client", "gateway"]
# Where a request was when its client left: the `phase` of aiaas_aborts_total.
Phase = Literal["admission", "queued", "waiting", "streaming"]

# nginx's word for "the client left before there was an answer"; never on the wire.
CLIENT_LEFT: Final = 499
NO_KEY: Final = "-"  # the key id of requests with `auth.enabled: false`


class Share(msgspec.Struct):
    """The resources that the requests of one key hold together (`proxy/request/body_budget.py`).

    owner     the key's id; without keys, the network of the address
    requests  those that point here
    begun     of them, those that count for the key's `max_concurrent`
    reading   of them, those whose body is being read
    held      bytes of their bodies
    """

    owner: str | None
    requests: int = 0
    begun: int = 0
    reading: int = 0
    held: int = 0


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """An attempt without a whole answer.

    status   of the answer that was held back, None where there was none
    failure  how the exchange broke, None where it did not
    again    the reason why a further attempt is safe, None where it is not
    """

    endpoint: str
    status: int | None
    failure: str | None
    again: str | None
    seconds: float


class Resumption(msgspec.Struct, gc=False):
    """A stream that broke off in the middle, and what became of it.

    first    the endpoint that died
    way      how it went on (`resume.py`); empty where it could not
    outcome  the metrics' word; empty while it is open, or where its client left
    reason   why not, in words
    gap      seconds without an event, None where it did not go on
    counted  whether the second endpoint counted the delivered tokens (by `/tokenize`)
    """

    first: str
    way: str = ""
    outcome: str = ""
    reason: str = ""
    gap: float | None = None
    counted: bool = True


@dataclass(slots=True)
class Record:
    """One request. Times are monotonic seconds (`started`) or durations; tokens are LLM tokens.

    Not a msgspec.Struct, which takes ten times as long to set a field.

    When it arrives (`gateway.py`):
    own_lines    complete header lines of every answer: the request id, and CORS
    trace        the trace of an inference request; None while traces are off

    While it is admitted (`admission.py`, `body.py`, `body_budget.py`):
    user, key_id  the owner of its valid key; metrics count by these, so they stay empty for an invalid key
    key_user     who of the users behind the key (`user_of`), for limits and usage only; "" for a key of one user
    rejection    why its key is not valid (401), for the log line only
    body_seconds  the wait for the request's body
    share        of its key, if it counts for something there: `begun` and `reading` say for what
    beyond       the key's `max_concurrent`, if this request exceeds it
    body_held    bytes of the body that count against the budget of all bodies
    limit_lines  complete header lines that say how the key's limits stand; empty until they are known
    priority_class  of the request; None until it is known

    While it is sent, perhaps several times (`forward.py`):
    phase        moves on with each step: where the request was if its client left
    queue_seconds  the wait for a free endpoint
    queue_position  among the waiting requests of its key when it first had to wait, counted from 1; 0 if it did not
    session_turn  whether it stayed at the endpoint of its session, or why not; None where there was no choice
    overhead     seconds from the request's arrival to its first sending, less the waits for its body and in the queue;
                 None if it was never sent
    attempts     those without a whole answer, None where there were none
    resumption   of a stream that broke off although its backend has `resume`, None of any other
    on_first_text  called once with the first text of a stream, where it matters that the prompt has been read

    While it is answered (`relay.py`, `usage_tap.py`):
    status       of the answer, or 499 (nginx's word) if the client left before the answer began
    streamed     the answer came as a stream, and its events could be read
    ttft         seconds from the request's arrival to the first text
    events       events that carried output, for a stream that ends before its usage event
    event_text   about how many bytes of text each event held; known at the end, 0 before the second event
    sent         bytes of the answer's body that were written to the client
    input_tokens, output_tokens  as the backend reported them
    cached_tokens  of the input, those that the backend found in its prefix cache; None where it does not report them

    When it has ended (`forward.py`, `gateway.py`):
    error_code   the `code` of the gateway's error, or of the failure behind a broken answer
    estimated    the tokens are an estimate, as the backend did not report them
    duration     seconds from the request's arrival to its end
    """

    request_id: str
    path: str
    started: float
    client_address: str
    own_lines: bytes = b""
    trace: Trace | None = None
    user: str | None = None
    key_id: str | None = None
    key_user: str = ""
    rejection: Rejection | None = None
    request_bytes: int = 0
    body_seconds: float = 0.0
    share: Share | None = None
    begun: bool = False
    reading: bool = False
    beyond: int = 0
    body_held: int = 0
    stream: bool = False
    model: str | None = None
    limit_lines: bytes = b""
    priority_class: PriorityClass | None = None
    phase: Phase = "admission"
    backend: str | None = None
    upstream: str | None = None
    queue_seconds: float = 0.0
    queue_position: int = 0
    retries: int = 0
    session_turn: str | None = None
    overhead: float | None = None
    attempts: list[Attempt] | None = None
    resumption: Resumption | None = None
    on_first_text: Callable[[], None] | None = None
    status: int = 0
    streamed: bool = False
    ttft: float | None = None
    events: int = 0
    event_text: float = 0.0
    sent: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    estimated: bool = False
    error_code: str | None = None
    ended_by: EndedBy = "gateway"
    duration: float = 0.0

    def text_begins(self, now: float) -> None:
        """The first text of a stream has come."""
        self.ttft = now - self.started
        if self.on_first_text is not None:
            self.on_first_text()
