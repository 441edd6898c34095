"""One attempt at an answer, in values: how it ended, whether to retry.

msgspec.Struct and not a dataclass: a frozen dataclass of ten fields takes 3 us to make, a Struct 0.3, and every request
makes several. `gc=False` as none of them can be part of a cycle.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

import msgspec

from aiaas.errors import UpstreamError
from aiaas.openai.errors import engine_died, is_json_object, is_unknown_path
from aiaas.proxy.client.answers import HeaderList
from aiaas.proxy.client.refusal import internal_error
from aiaas.proxy.upstream.connection import Failure, FailureKind

EVENTS: Final = b"text/event-stream"
_PAGES: Final = (b"text/", b"application/xhtml", b"application/xml")


class End(Enum):
    """How an attempt ended."""

    SENT = "sent"  # the client has a whole answer
    REFUSED = "refused"  # the backend answered with an error, which is held
    FAILED = "failed"  # nothing usable came, nothing was sent
    BROKEN = "broken"  # something was sent, and the rest will not come
    CUT = "cut"  # the same, and nobody has told the client: another endpoint may go on with it (`resume.py`)


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """An attempt's end.

    status, headers, body  of the held answer, where `end` is REFUSED
    failure  how it broke; with SENT: the engine's own error event, which the client has
    """

    end: End
    status: int = 0
    headers: HeaderList = []
    body: bytes = b""
    failure: Failure | None = None


# The end of nearly every attempt.
WHOLE: Final = Outcome(End.SENT)


# The engine does not have the path; another one of the backend may have it.
LACKS_PATH: Final = "lacks_path"


# Why the engine cannot have run the request, or why it does no harm to run it again; by the reason of an `Again`.
WHY_SAFE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "connect": "the request was never sent",
        "stale": "the backend had closed the idle connection before the request came",
        "busy": "the engine refused the request and did not run it",
        LACKS_PATH: "the engine does not have the path, so it did not run the request",
        "balancer": "a load balancer had no backend for the request, so it was not run",
        "lost": "no event of the answer had come, and the backend's `resume` allows one more attempt",
        "engine": "the engine died or drained before the client had a byte of an answer",
    }
)


class Again(msgspec.Struct, frozen=True, gc=False):
    """An attempt's end that may be tried again: the metrics' word for why, and whether only once."""

    reason: str
    once: bool


# A stream was lost before its first event, whether or not the engine ran it (`forward.py`).
LOST: Final = Again("lost", once=True)


def may_try_again(outcome: Outcome) -> Again | None:
    """Whether the request cannot have been run, or was refused (the table in `forward.py`)."""
    if outcome.end is End.FAILED and outcome.failure is not None:
        return {
            FailureKind.CONNECT: Again("connect", once=False),
            FailureKind.STALE: Again("stale", once=True),
            FailureKind.ENGINE: Again("engine", once=True),
        }.get(outcome.failure.kind)
    if outcome.end is End.REFUSED:
        if outcome.status == 503 and is_from_between(outcome):
            return Again("balancer", once=True)
        if outcome.status in (429, 503):
            return Again("busy", once=False)
        if is_unknown_path(outcome.status, outcome.body):
            return Again(LACKS_PATH, once=False)
        if outcome.status == 500 and engine_died(outcome.body):
            return Again("engine", once=True)
    return None


def error_of_break(failure: Failure) -> UpstreamError:
    """The error event of a stream that broke off."""
    if failure.kind is FailureKind.TIMEOUT:
        return UpstreamError(504, "upstream_timeout", "The model server fell silent.")
    if failure.kind is FailureKind.INTERNAL:
        return internal_error()
    return UpstreamError(502, "upstream_error", "The model server broke off this answer.")


def not_an_answer(status: int, content_type: bytes) -> str | None:
    """Describe an answer with a status below 400 that did not come from vLLM; None if it may be vLLM's.

    A web server or a login wall answers with a page, which an SDK reads as a success without content.
    """
    if status < 300:
        is_page = content_type.startswith(_PAGES) and not content_type.startswith(EVENTS)
        return f"a web page ({status}) instead of a vLLM answer" if is_page else None
    return f"a redirect ({status}), which is not followed" if status < 400 else None


def is_from_between(outcome: Outcome) -> bool:
    """Whether a held 502, 503 or 504 is not vLLM's answer but that of a load balancer or ingress before it.

    vLLM's errors are JSON objects; a proxy in between answers in HTML or in plain text.
    """
    is_gateway_error = outcome.end is End.REFUSED and outcome.status in (502, 503, 504)
    return is_gateway_error and not is_json_object(outcome.body)


def retry_after(headers: HeaderList) -> int | None:
    """The seconds of a `Retry-After` (RFC 9110 section 10.2.3); None without one. A date is ignored, since its clock
    is not ours."""
    for name, value in headers:
        if name == b"retry-after" and value.isdigit() and len(value) < 10:
            return int(value)
    return None
