"""aiaas.proxy.request.passed: which headers of a client reach vLLM, and in what form."""

from __future__ import annotations

from aiaas.proxy.request.passed import header_values


def test_no_header_can_smuggle_another() -> None:
    """Control characters are removed; absent names add no line."""
    headers = {"accept": "a\r\nX-Evil: 1", "traceparent": "\x00t\x7f\tx"}
    assert (
        header_values(headers, ("accept", "nothing", "traceparent")) == b"accept: aX-Evil: 1\r\ntraceparent: t\tx\r\n"
    )
