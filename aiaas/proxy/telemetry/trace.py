"""The trace of one request: its W3C Trace Context (https://www.w3.org/TR/trace-context/), and the times of its steps.

`context_of` reads a client's `traceparent` and `tracestate`. A valid trace id is continued, from strangers as well;
`proxy/traces.py` decides whether to export the trace. `Trace` collects what a Record does not have: when the request
waited in the queue, and when each attempt began and ended. Times are those of `time.monotonic`.

Nearly all traces are never exported, so that making one has to be cheap: 10,000 instructions for all of it. So only the
first attempt has a span id from the start; the others are derived from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from aiaas.plan.model import EndpointPlan

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8
# Trace id, the parent's span id, flags. A later version may append fields; ff is not a version. (In two expressions, as
# a lookahead costs more than the rest, and a later version is yet to come.)
_version_00 = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z").match
_later = re.compile(r"(?!00|ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z").match
_NO_TRACE: Final = "0" * 2 * TRACE_ID_BYTES
_NO_SPAN: Final = "0" * 2 * SPAN_ID_BYTES
_SAMPLED: Final = "13579bdf"  # the last digit of flags with bit 0
# Characters of a tracestate that every participant has to pass on; a longer one is dropped. It goes into every span.
LONGEST_STATE: Final = 512
# Of the span ids of one trace: attempts count from 0, the request has this number, waits count from the next one.
_REQUEST: Final = 0x10000


# The client's side of a trace: its id, the span that the request belongs to, its flag `sampled`, and its tracestate.
Context = tuple[str, str, bool, str]


def context_of(values: Callable[[str], Sequence[str]]) -> Context | None:
    """The context in a request's headers, of which `values` gives all of one name. None if there is none or it is
    invalid: then a new trace begins."""
    found = values("traceparent")
    if len(found) != 1:
        return None
    match = _version_00(found[0]) or _later(found[0])
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    state = ",".join(values("tracestate"))
    if len(state) > LONGEST_STATE or not (state.isascii() and state.isprintable()):
        state = ""
    return trace_id, span_id, flags[1] in _SAMPLED, state


class FailedAttempt(msgspec.Struct, frozen=True, gc=False):
    """One try to get an answer from an endpoint.

    model   the name that the endpoint serves it under
    status  of the endpoint's answer if it is an error that may be tried again, else 0
    error   the kind of failure, or None
    """

    backend: str | None
    endpoint: EndpointPlan
    model: str
    began: float
    ended: float
    status: int = 0
    error: str | None = None


class Trace(msgspec.Struct):
    """The trace of one request, from its arrival on.

    parent_id, state  the client's span and its tracestate; None and empty where the trace begins here
    sampled   export it, however the request ends
    first_id  the span id of the first attempt
    lines     complete header lines for the endpoint, with `first_id`
    waits     in the queue: when each began, and how many seconds it took
    failed    the attempts that ended without a whole answer
    began, endpoint, model  of the present attempt; `began` is 0 without one
    """

    trace_id: str
    parent_id: str | None
    state: str
    sampled: bool
    first_id: str
    lines: str
    waits: Sequence[tuple[float, float]] = ()
    failed: Sequence[FailedAttempt] = ()
    began: float = 0.0
    endpoint: EndpointPlan | None = None
    model: str = ""

    def retry(self, passed: bytes) -> bytes:
        """Header lines like `passed`, which has those of the first attempt, for the attempt after the failed ones."""
        return passed.replace(self.first_id.encode(), self.attempt_id(len(self.failed)).encode())

    def attempt_failed(self, backend: str | None, status: int, error: str | None, now: float) -> None:
        """Note that the present attempt has ended without a whole answer."""
        assert self.endpoint is not None
        attempt = FailedAttempt(backend, self.endpoint, self.model, self.began, now, status, error)
        self.failed, self.began = (*self.failed, attempt), 0.0

    def attempts(self, backend: str | None, now: float) -> Sequence[FailedAttempt]:
        """All attempts of a request that ends now; the present one is at `backend`."""
        if not self.began or self.endpoint is None:
            return self.failed
        return (*self.failed, FailedAttempt(backend, self.endpoint, self.model, self.began, now))

    def attempt_id(self, number: int) -> str:
        """The span id of an attempt; numbers count from 0."""
        return f"{int(self.first_id, 16) ^ number:016x}"

    def request_id(self) -> str:
        """The span id of the request."""
        return self.attempt_id(_REQUEST)

    def wait_id(self, number: int) -> str:
        """The span id of a wait; numbers count from 0."""
        return self.attempt_id(_REQUEST + 1 + number)
