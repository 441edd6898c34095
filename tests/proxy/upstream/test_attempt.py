"""aiaas.proxy.upstream.attempt: whose answer a refusal is, and how long it asks to wait."""

from __future__ import annotations

import pytest

from aiaas.proxy.upstream.attempt import Again, End, Outcome, is_from_between, may_try_again, retry_after
from aiaas.proxy.upstream.connection import Failure, FailureKind
from tests.fakes.vllm import BUSY, ENGINE_DEAD, SHUT_DOWN, error_answer


def body_of(status: int, message: str) -> bytes:
    """The body of vLLM's own error."""
    return error_answer(status, message).partition(b"\r\n\r\n")[2]


ITS_OWN = body_of(503, BUSY)
DEAD = body_of(500, ENGINE_DEAD)
HTML = b"<html><h1>503 Service Temporarily Unavailable</h1></html>"


@pytest.mark.parametrize(
    ("status", "body", "between"),
    [
        pytest.param(503, HTML, True, id="nginx"),
        pytest.param(503, b"no healthy upstream", True, id="Envoy"),
        pytest.param(502, b"", True, id="without a body"),
        pytest.param(504, HTML, True, id="a timeout"),
        pytest.param(503, b"503", True, id="JSON, but no object"),
        pytest.param(503, ITS_OWN, False, id="vLLM is busy"),
        pytest.param(503, b'{"detail":"x"}', False, id="FastAPI"),
        pytest.param(500, b"Internal Server Error", False, id="uvicorn's own 500"),
        pytest.param(429, HTML, False, id="429 means the same in HTML"),
    ],
)
def test_refusals_of_vllm_and_of_others_are_told_apart(status: int, body: bytes, between: bool) -> None:
    """A 502, 503 or 504 that is no JSON object was made by something between the gateway and vLLM."""
    assert is_from_between(Outcome(End.REFUSED, status, [], body)) is between


def failed(kind: FailureKind, end: End = End.FAILED) -> Outcome:
    """An attempt that failed in this way."""
    return Outcome(end, failure=Failure(kind, "x"))


BUSY_AGAIN, ENGINE_AGAIN = Again("busy", once=False), Again("engine", once=True)
AGAIN: dict[str, tuple[Outcome, Again | None]] = {
    "not connected": (failed(FailureKind.CONNECT), Again("connect", once=False)),
    "a used connection had been closed": (failed(FailureKind.STALE), Again("stale", once=True)),
    "dead before the first event": (failed(FailureKind.ENGINE), ENGINE_AGAIN),
    "reset": (failed(FailureKind.RESET), None),
    "not HTTP": (failed(FailureKind.MALFORMED), None),
    "silent": (failed(FailureKind.TIMEOUT), None),
    "no descriptors left": (failed(FailureKind.NO_RESOURCES), None),
    "dead in the middle of a stream": (failed(FailureKind.ENGINE, End.SENT), None),
    "closed in the middle of an answer": (failed(FailureKind.STALE, End.BROKEN), None),
    "a whole answer": (Outcome(End.SENT), None),
    "vLLM is busy": (Outcome(End.REFUSED, 503, [], ITS_OWN), BUSY_AGAIN),
    "429": (Outcome(End.REFUSED, 429, [], b""), BUSY_AGAIN),
    "a balancer has nobody": (Outcome(End.REFUSED, 503, [], HTML), Again("balancer", once=True)),
    "a balancer's 502": (Outcome(End.REFUSED, 502, [], HTML), None),
    "a balancer's 504": (Outcome(End.REFUSED, 504, [], HTML), None),
    "dead engine": (Outcome(End.REFUSED, 500, [], DEAD), ENGINE_AGAIN),
    "draining engine": (Outcome(End.REFUSED, 500, [], body_of(500, SHUT_DOWN)), ENGINE_AGAIN),
    "unhandled exception": (Outcome(End.REFUSED, 500, [], body_of(500, "maximum recursion depth exceeded")), None),
    "a 400 in a dead engine's words": (Outcome(End.REFUSED, 400, [], DEAD), None),
    "a 501 in a dead engine's words": (Outcome(End.REFUSED, 501, [], DEAD), None),
    "bad request": (Outcome(End.REFUSED, 400, [], body_of(400, "no")), None),
    "a status of an answer that broke": (Outcome(End.BROKEN, 429, [], b""), None),
}


@pytest.mark.parametrize(("outcome", "again"), AGAIN.values(), ids=AGAIN)
def test_may_try_again(outcome: Outcome, again: Again | None) -> None:
    """Only where the request cannot have been run, or was refused; at most once where it may be the reason."""
    assert may_try_again(outcome) == again


def test_an_answer_that_broke_is_from_nobody() -> None:
    """Only a held answer is looked at."""
    assert not is_from_between(Outcome(End.FAILED, 503))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0),
        (b"120", 120),
        (b"1.5", None),
        (b"-1", None),
        (b"9" * 9, 999_999_999),
        (b"9" * 10, None),
        (b"9" * 5000, None),
        (b"Wed, 21 Oct 2026 07:28:00 GMT", None),
        (b"", None),
    ],
)
def test_retry_after(value: bytes, seconds: int | None) -> None:
    """Whole seconds, and no other value that may stand there."""
    assert retry_after([(b"server", b"x"), (b"retry-after", value)]) == seconds
    assert retry_after([]) is None
