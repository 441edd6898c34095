"""What is known about one request while it lives, and the log line and metrics that it ends as.

One mutable object for each request, filled in by whoever learns a fact; read once, at the end (`log`, `metrics`).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from aiaas.keys.model import Rejection

EndedBy = Literal["upstream", "client", "gateway"]
# Where a request was when its client left: the `phase` of aiaas_aborts_total.
Phase = Literal["admission", "queued", "waiting", "streaming"]

# nginx's word for "the client left before there was an answer"; never on the wire.
CLIENT_LEFT: Final = 499
NO_KEY: Final = "-"  # the key id of requests with `auth.enabled: false`


class Share(msgspec.Struct):
    """What the requests of one key hold together (`proxy/request/body_budget.py`).

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


class Record(msgspec.Struct):
    """One request. Times are monotonic seconds (`started`) or durations; tokens are LLM tokens.

    user, key_id  whose valid key it came with; metrics count by these, so nobody else's may stand here
    rejection    why its key is not valid (401), for the log line only
    status       what the client got, or 499 (nginx's word) where it left before an answer began
    error_code   the `code` of an error of ours, or of the failure behind a broken answer
    input_tokens, output_tokens  as the backend reported, or as estimated (`estimated`) where it could not
    streamed     the answer came as a stream, whose events could be read
    events       its events that carried output, for a stream that ends before its usage event
    event_text   about how many bytes of text each of them held; known at its end, 0 before the second one
    body_seconds  waited for the request's body
    overhead     seconds from the request's arrival to its first sending, less the waits for its body and in the queue;
                 None where it was never sent
    sent         bytes of the answer's body that were written to the client
    body_held    bytes of the body that count against the budget of all bodies (`proxy/request/body_budget.py`)
    share        of its key, where it counts for anything there: `begun` and `reading` say for what
    beyond       the key's `max_concurrent`, where this request is beyond it
    own_lines    complete header lines of every answer: the request id, and CORS
    limit_lines  complete header lines that say how the key's limits stand; empty until they are known
    """

    request_id: str
    path: str
    started: float
    client_address: str
    user: str | None = None
    key_id: str | None = None
    rejection: Rejection | None = None
    model: str | None = None
    backend: str | None = None
    upstream: str | None = None
    status: int = 0
    error_code: str | None = None
    stream: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    estimated: bool = False
    streamed: bool = False
    events: int = 0
    event_text: float = 0.0
    ttft: float | None = None
    queue_seconds: float = 0.0
    body_seconds: float = 0.0
    overhead: float | None = None
    retries: int = 0
    request_bytes: int = 0
    body_held: int = 0
    share: Share | None = None
    begun: bool = False
    reading: bool = False
    beyond: int = 0
    sent: int = 0
    ended_by: EndedBy = "gateway"
    phase: Phase = "admission"
    own_lines: bytes = b""
    limit_lines: bytes = b""
