"""aiaas.proxy.client.answers: answers as bytes."""

import json

from aiaas.errors import ClientError
from aiaas.openai.paths import CHAT
from aiaas.proxy.client.answers import answer, date_header, error_answer, relayed_head, status_line


def test_an_error_is_one_answer_with_its_headers_before_ours() -> None:
    """The answer is complete: status line, headers, empty line, a body of the announced length."""
    error = ClientError(405, "method_not_allowed", "No.", headers=(("allow", "POST"),))
    head, _, body = error_answer(error, CHAT, extra=b"x-request-id: 1\r\n", close=True).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 405 Method Not Allowed",
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"allow: POST",
        b"x-request-id: 1",
        b"connection: close",
    ]
    assert json.loads(body)["error"]["code"] == "method_not_allowed"


def test_the_answer_to_head_has_the_length_and_no_body() -> None:
    """RFC 9110 section 9.3.2: Content-Length without a body."""
    whole = answer(200, b"text/plain", b"hello", extra=b"", close=False)
    assert whole.endswith(b"\r\n\r\nhello")
    assert answer(200, b"text/plain", b"hello", extra=b"", close=False, head_only=True) == whole[: -len(b"hello")]


def test_an_unknown_status_has_an_empty_reason() -> None:
    """The space before the reason stays (RFC 9112 section 4)."""
    assert status_line(299) == b"HTTP/1.1 299 \r\n"
    assert status_line(431) == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


def test_the_date_is_in_the_one_form_that_http_has() -> None:
    """IMF-fixdate, in GMT."""
    assert date_header(0) == b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"


def test_backend_headers_reach_the_client_only_if_allowed() -> None:
    """Framing, connection, server name, cookies, redirects and WWW-Authenticate of the backend stay behind."""
    kept = [(b"content-type", b"application/json"), (b"retry-after", b"3"), (b"x-anything", b"1"), (b"date", b"now")]
    dropped = [
        b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"server", b"set-cookie", b"location",
        b"www-authenticate", b"x-request-id", b"upgrade", b"trailer", b"alt-svc", b"te", b"proxy-authenticate",
    ]  # fmt: skip
    headers = kept + [(name, b"secret") for name in dropped]
    head = relayed_head(200, headers, framing=b"content-length: 2\r\n", extra=b"x-request-id: 1\r\n", close=False)
    assert head == (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nretry-after: 3\r\nx-anything: 1\r\ndate: now\r\n"
        b"content-length: 2\r\nx-request-id: 1\r\n\r\n"
    )


def test_headers_named_by_connection_are_dropped() -> None:
    """In one header or several, before or behind the named ones, in any case; `close` names none."""
    headers = [
        (b"x-hop", b"1"), (b"connection", b"close, X-Hop"), (b"connection", b"keep-alive,x-other"), (b"x-other", b"2"),
        (b"x-kept", b"x-hop"),
    ]  # fmt: skip
    head = relayed_head(200, headers, framing=b"content-length: 2\r\n", extra=b"x-request-id: 1\r\n", close=False)
    assert head == b"HTTP/1.1 200 OK\r\nx-kept: x-hop\r\ncontent-length: 2\r\nx-request-id: 1\r\n\r\n"
