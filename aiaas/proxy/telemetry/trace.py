"""The trace of one request: its W3C Trace Context (https://www.w3.org/TR/trace-context/), and the times of its steps.

`context_of` reads a client's `traceparent` and `tracestate`. A valid trace id is continued, from strangers as well;
`proxy/traces.py` decides whether to export the trace. `Trace` collects what a Record does not have: when the request
waited in the queue, and when each attempt began and ended. Times are those of `time.monotonic`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from aiaas.plan.model import EndpointPlan

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8
# Version, trace id, parent's span id, flags; then what a version later than 00 may add. The version ff and ids of zeros
# are invalid.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_SAMPLED: Final = 0x01
# Characters of a tracestate that every participant has to pass on; a longer one is dropped. It goes into every span.
LONGEST_STATE: Final = 512
_STATE = re.compile(r"[\x20-\x7e\t]+\Z")


class Context(msgspec.Struct, frozen=True, gc=False):
    """The client's side of a trace: its id, the span that the request belongs to, and its flag `sampled`."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str


def context_of(values: Callable[[str], Sequence[str]]) -> Context | None:
    """The context in a request's headers, of which `values` gives all of one name. None if there is none or it is
    invalid: then a new trace begins."""
    sent = values("traceparent")
    if len(sent) != 1:
        return None
    match = _TRACEPARENT.match(sent[0])
    if match is None or (match[1] == "00" and match[5]):
        return None
    state = ",".join(values("tracestate"))
    if len(state) > LONGEST_STATE or _STATE.match(state) is None:
        state = ""
    return Context(match[2], match[3], int(match[4], 16) & _SAMPLED == _SAMPLED, state)


class Attempt(msgspec.Struct, gc=False):
    """One try to get an answer from an endpoint.

    model   the name that the endpoint serves it under
    ended   None for the last one, which ends with its request
    status  of the endpoint's answer if it is an error that may be tried again, else 0
    error   the kind of failure, or None
    """

    span_id: str
    backend: str
    endpoint: EndpointPlan
    model: str
    began: float
    ended: float | None = None
    status: int = 0
    error: str | None = None


class Trace(msgspec.Struct):
    """The trace of one request, from its arrival on.

    parent    the client's context, or None where the trace begins here
    sampled   export it, however the request ends
    flags     for the endpoint: "01" asks it to export its spans
    first_id  the span id of the first attempt, which stands in the headers for the endpoint
    new_id    makes further span ids
    waits     in the queue: when each began, and how many seconds it took
    """

    trace_id: str
    parent: Context | None
    sampled: bool
    flags: str
    first_id: str
    new_id: Callable[[], str]
    waits: list[tuple[float, float]] = []
    attempts: list[Attempt] = []

    @property
    def header_lines(self) -> str:
        """Complete header lines for the endpoint."""
        lines = f"traceparent: 00-{self.trace_id}-{self.first_id}-{self.flags}\r\n"
        if self.parent is not None and self.parent.state:
            lines += f"tracestate: {self.parent.state}\r\n"
        return lines

    def attempt(self, backend: str, endpoint: EndpointPlan, model: str, passed: bytes, now: float) -> bytes:
        """Note that an attempt begins. Return `passed`, header lines with those of the first attempt, for this one."""
        span_id = self.first_id
        if self.attempts:
            span_id = self.new_id()
            passed = passed.replace(self.first_id.encode(), span_id.encode())
        self.attempts.append(Attempt(span_id, backend, endpoint, model, now))
        return passed

    def attempt_failed(self, status: int, error: str | None, now: float) -> None:
        """Note that the present attempt has ended without a whole answer."""
        attempt = self.attempts[-1]
        attempt.ended, attempt.status, attempt.error = now, status, error
