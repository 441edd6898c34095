"""aiaas.proxy.client.refusal: the answer to a refused head. How heads arrive is tested in
test_connection."""

import pytest
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine, LineTooLong

from aiaas.proxy.client.refusal import (
    CodingFromHttp10,
    ConnectionLimits,
    HeadTooSlow,
    InvalidHost,
    InvalidTarget,
    NotHttp,
    TooFarAhead,
    UnknownCoding,
    UnknownVersion,
    refusal,
)

MARK = "MARKER"


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (HeadTooSlow(), 408, "request_timeout"),
        (LineTooLong(MARK.encode(), 5), 431, "headers_too_large"),
        (BadHttpMessage("Too many headers received"), 431, "headers_too_large"),
        (UnknownCoding(), 501, "invalid_request"),
        (CodingFromHttp10(), 400, "invalid_request"),
        (BadStatusLine(MARK), 400, "invalid_request"),
        (BadStatusLine(error="Bad status line:\n  Invalid HTTP version:\n\n  MARKER"), 505, "invalid_request"),
        (BadHttpMessage("Pause on PRI/Upgrade:\n\n  MARKER"), 505, "invalid_request"),
        (UnknownVersion(), 505, "invalid_request"),
        (NotHttp(), 400, "invalid_request"),
        (InvalidHost(), 400, "invalid_request"),
        (InvalidTarget(), 400, "invalid_request"),
        (TooFarAhead(), 400, "invalid_request"),
        (BadHttpMessage(MARK), 400, "invalid_request"),
        (None, 400, "invalid_request"),
    ],
    ids=[
        "slow", "large", "many", "coding", "coding from HTTP/1.0", "request line",
        "version", "preface of HTTP/2", "version that the parser reads", "another protocol", "host", "target",
        "too far ahead", "anything else", "nothing known",
    ],
)  # fmt: skip
def test_every_fault_has_its_status_and_never_the_clients_bytes(
    reason: Exception | None, status: int, code: str
) -> None:
    """A parser's error quotes the bytes."""
    error = refusal(reason, ConnectionLimits(10.0, 4096))
    assert (error.status, error.code) == (status, code)
    assert MARK not in error.message
