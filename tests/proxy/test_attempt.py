"""aiaas.proxy.attempt: whose answer a refusal is, and how long it asks to wait."""

from __future__ import annotations

import pytest

from aiaas.proxy.attempt import End, Outcome, is_from_between, retry_after
from tests.fakes.vllm import BUSY, error_answer

ITS_OWN = error_answer(503, BUSY).partition(b"\r\n\r\n")[2]
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
        pytest.param(429, HTML, False, id="429 means the same, whoever says it"),
    ],
)
def test_whose_answer(status: int, body: bytes, between: bool) -> None:
    """A 502, 503 or 504 that is no JSON object was made by something between the gateway and vLLM."""
    assert is_from_between(Outcome(End.REFUSED, status, [], body)) is between


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
        (b"9" * 5000, None),
        (b"Wed, 21 Oct 2026 07:28:00 GMT", None),
        (b"", None),
    ],
)
def test_retry_after(value: bytes, seconds: int | None) -> None:
    """Whole seconds, and nothing else that may stand there."""
    assert retry_after([(b"server", b"x"), (b"retry-after", value)]) == seconds
    assert retry_after([]) is None
