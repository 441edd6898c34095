"""One attempt at an answer, in values: how the answer has to look, and how the attempt ended.

msgspec.Struct and not a dataclass: a frozen dataclass of ten fields takes 3 us to make, a Struct 0.3, and every request
makes several. `gc=False` as none of them can be part of a cycle.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from aiaas.proxy.respond import HeaderList
from aiaas.proxy.upstream import Failure


class Shape(msgspec.Struct, frozen=True, gc=False):
    """How the answer to one request has to look, whichever attempt gives it. Durations in seconds.

    extra        complete header lines of ours: request id, limits
    close        the connection ends with this answer
    chunked      the client speaks HTTP/1.1; else `close` is set too, as an answer without a length ends with the
                 connection
    strip_usage  the usage event was asked for by us, not by the client
    silence      longest silence of the backend
    heartbeat    silence on a stream after which a comment is written; 0 is off
    deadline     monotonic time at which the whole request ends, or None
    """

    path: str
    extra: bytes
    close: bool
    chunked: bool
    strip_usage: bool
    silence: float
    heartbeat: float
    deadline: float | None


class End(Enum):
    """How an attempt ended."""

    SENT = "sent"  # the client has a whole answer
    REFUSED = "refused"  # the backend answered with an error, which is held
    FAILED = "failed"  # nothing usable came, nothing was sent
    BROKEN = "broken"  # something was sent, and the rest will not come


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """An attempt's end.

    status, headers, body  of the held answer, where `end` is REFUSED
    failure  how it broke; with SENT: the engine's own error event, which the client has, or that the
             stream it has is not whole
    """

    end: End
    status: int = 0
    headers: HeaderList = []
    body: bytes = b""
    failure: Failure | None = None
