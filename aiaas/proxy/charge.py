"""What a request costs when it ends: pure, from what is known about it (contract section 5).

vLLM reported usage                                    that
the client left, before the first byte or after it     the estimated input, and of a stream what was streamed
a stream or answer was cut by the backend or by us     the same
a whole answer without usage (/tokenize)               the estimated input
an error, vLLM's or ours, instead of an answer         one request, no tokens
no backend saw it (also: the client left the queue)    nothing
"""

from __future__ import annotations

import msgspec

from aiaas.proxy.record import Record

# Refusals of ours after the limits: no backend saw the request.
NEVER_RAN = frozenset({"no_healthy_backend", "overloaded"})


class Charge(msgspec.Struct, frozen=True, gc=False):
    """What to settle. Tokens are LLM tokens.

    estimated  the backend did not count them
    ran        False: it does not cost a request either
    """

    input_tokens: int
    output_tokens: int
    estimated: bool
    ran: bool


def charge_of(record: Record, estimated_input: int) -> Charge:
    """The charge for an admitted request that has ended as `record` says."""
    if record.input_tokens is not None:
        return Charge(record.input_tokens, record.output_tokens or 0, estimated=False, ran=True)
    left = record.ended_by == "client" and record.upstream is not None and record.status < 400
    answered = record.phase == "streaming" and record.status < 400
    if left or answered:
        return Charge(estimated_input, record.events if record.stream else 0, estimated=True, ran=True)
    never_ran = record.upstream is None or (record.ended_by == "gateway" and record.error_code in NEVER_RAN)
    return Charge(0, 0, estimated=False, ran=not never_ran)
