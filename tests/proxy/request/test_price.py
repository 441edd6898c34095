"""aiaas.proxy.request.price: the cost of a request, by how it ended."""

from typing import Any

import pytest

from aiaas.proxy.request.price import NEVER_RAN, Charge, price_of
from aiaas.proxy.telemetry.record import CLIENT_LEFT, Record

UP = "http://vllm:8000"


ANSWER = {"status": 200, "phase": "streaming"}
STREAM = {**ANSWER, "streamed": True}
TIMEOUT = {"status": 504, "error_code": "upstream_timeout", "phase": "waiting", "ended_by": "gateway"}
LEFT = {"status": CLIENT_LEFT, "error_code": "client_left", "ended_by": "client"}
# A request's facts, and its charge: ten tokens of input were estimated, twenty of output reserved, a stream
# had seven. It was sent to a backend unless the case says otherwise.
CHARGES: dict[str, tuple[dict[str, Any], Charge]] = {
    "usage": ({**ANSWER, "input_tokens": 3, "output_tokens": 4}, Charge(3, 4, False, True)),
    "usage of an embedding": ({**ANSWER, "input_tokens": 3, "output_tokens": 0}, Charge(3, 0, False, True)),
    "usage of a stream": ({**STREAM, "input_tokens": 3, "output_tokens": 4}, Charge(3, 4, False, True)),
    "cut stream": (STREAM, Charge(10, 7, True, True)),
    "cut stream that told its input": ({**STREAM, "input_tokens": 3}, Charge(3, 7, True, True)),
    "cut stream whose client left": ({**STREAM, "ended_by": "client"}, Charge(10, 7, True, True)),
    "answer without usage": ({**ANSWER, "sent": 500}, Charge(10, 20, True, True)),
    "answer without usage, stream asked for": (
        {**ANSWER, "stream": True, "sent": 9},
        Charge(10, 20, True, True),
    ),
    "answer that broke off": ({**ANSWER, "error_code": "upstream_error", "sent": 6}, Charge(10, 20, True, True)),
    "answer whose client left": ({**ANSWER, "ended_by": "client", "sent": 6}, Charge(10, 20, True, True)),
    "tokenize": ({**ANSWER, "path": "/tokenize"}, Charge(0, 0, False, True)),
    "counted tokens, client left": (
        {**LEFT, "phase": "waiting", "path": "/v1/messages/count_tokens"},
        Charge(0, 0, False, True),
    ),
    "counted tokens, left in the queue": (
        {**LEFT, "phase": "queued", "upstream": None, "path": "/tokenize"},
        Charge(0, 0, False, False),
    ),
    "score": ({**ANSWER, "path": "/v1/score"}, Charge(10, 0, True, True)),
    "left while waiting": ({**LEFT, "phase": "waiting"}, Charge(10, 0, True, True)),
    "left while vLLM's 400 was sent": (
        {"status": 400, "ended_by": "client", "phase": "streaming"},
        Charge(0, 0, False, True),
    ),
    "left in the queue": ({**LEFT, "phase": "queued", "upstream": None}, Charge(0, 0, False, False)),
    "vLLM's 400": ({"status": 400, "ended_by": "upstream", "phase": "waiting"}, Charge(0, 0, False, True)),
    "huge 400 of vLLM": ({"status": 400, "ended_by": "upstream", "phase": "streaming"}, Charge(0, 0, False, True)),
    "huge vLLM error": ({"status": 500, "ended_by": "upstream", "phase": "streaming"}, Charge(0, 0, False, True)),
    "timeout in the engine": (TIMEOUT, Charge(10, 0, True, True)),
    "timeout before it was sent": ({**TIMEOUT, "overhead": None}, Charge(0, 0, False, True)),
    "timeout in the queue": ({**TIMEOUT, "upstream": None, "overhead": None}, Charge(0, 0, False, False)),
    "broken backend": ({"status": 502, "error_code": "upstream_error", "phase": "waiting"}, Charge(0, 0, False, True)),
    "nobody there": (
        {"status": 503, "error_code": "no_healthy_backend", "phase": "waiting"},
        Charge(0, 0, False, False),
    ),
    "queue full": ({"status": 503, "error_code": "overloaded", "upstream": None}, Charge(0, 0, False, False)),
    "drain deadline while waiting": (
        {"status": 503, "error_code": "draining", "phase": "waiting"},
        Charge(0, 0, False, True),
    ),
    "refused in the queue, draining": (
        {"status": 503, "error_code": "draining", "phase": "queued", "upstream": None},
        Charge(0, 0, False, False),
    ),
}


def record_of(facts: dict[str, Any]) -> Record:
    """A chat's record."""
    known = {"path": "/v1/chat/completions", "upstream": UP, "overhead": 0.1} | facts
    return Record(request_id="x", started=0.0, client_address="c", **known)


@pytest.mark.parametrize(("facts", "charge"), CHARGES.values(), ids=CHARGES)
def test_request_cost_depends_on_its_end(facts: dict[str, Any], charge: Charge) -> None:
    """By the way in which it ended."""
    assert price_of(record_of(facts), 10, 20, 7) == charge


@pytest.mark.parametrize(
    ("sent", "reserved", "output"),
    [(100, 0, 25), (100, 20, 20), (100, 2**63 - 1, 100_000), (0, 5000, 1000), (0, 0, 1)],
    ids=["none", "a bound", "no bound, in words", "nothing was sent", "nothing is known"],
)
def test_unseen_output_is_never_nothing(sent: int, reserved: int, output: int) -> None:
    """An answer without usage costs the reservation where that can be true, else an estimate by its size."""
    assert price_of(record_of({**ANSWER, "sent": sent}), 10, reserved, 0).output_tokens == output


def test_only_what_no_backend_saw_is_free() -> None:
    """A new code here needs a new sentence in docs/errors.md."""
    assert {"no_healthy_backend", "overloaded"} == NEVER_RAN
