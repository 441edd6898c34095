"""Answers as bytes: all answers that aiaas itself makes, and the heads of those that it relays.

An answer goes to the transport in one write: aiohttp's Response classes would cost more than the whole limiter.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

from aiaas.errors import ApiError
from aiaas.openai.errors import error_body

HeaderList = list[tuple[bytes, bytes]]

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_CRLF = b"\r\n"
_CLOSE = b"connection: close\r\n\r\n"
# Added where CORS is on: a cache must not give one origin's answer to another.
VARY = b"vary: origin\r\n"
# For proxies in between: nginx buffers a stream unless told not to.
UNBUFFERED = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"

# Hop-by-hop headers (RFC 9110 section 7.6.1), headers that the gateway sets itself (limits, CORS), and cookies and
# redirects, which would reveal the backend.
_NOT_RELAYED = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"server",
        b"set-cookie",
        b"location",
        b"alt-svc",
        b"vary",
        b"www-authenticate",
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"access-control-expose-headers",
        b"x-request-id",
        b"x-should-retry",
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-reset-requests",
        b"x-ratelimit-limit-tokens",
        b"x-ratelimit-remaining-tokens",
        b"x-ratelimit-reset-tokens",
        b"x-aiaas-queue-position",
    }
)


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK` and its line end; an unknown status has an empty reason (RFC 9112 section 4)."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def date_header(wall: float) -> bytes:
    """The Date header line for POSIX seconds `wall` (RFC 9110 section 6.6.1)."""
    return b"date: " + formatdate(wall, usegmt=True).encode() + _CRLF


def position_line(position: int) -> bytes:
    """The header line of a request's place in the queue, counted from 1; b"" for 0, where it did not wait."""
    return b"x-aiaas-queue-position: %d\r\n" % position if position else b""


def header_lines(headers: tuple[tuple[str, str], ...]) -> bytes:
    """Header lines of our own values, which never hold a line end."""
    return b"".join([f"{name}: {value}\r\n".encode("latin-1") for name, value in headers])


def answer(
    status: int, content_type: bytes, body: bytes, *, extra: bytes, close: bool, head_only: bool = False
) -> bytes:
    """A whole answer made by the gateway. `extra` is complete header lines; `head_only` is for HEAD."""
    return b"".join(
        [
            status_line(status),
            b"content-type: %b\r\n" % content_type if content_type else b"",
            b"content-length: %d\r\n" % len(body) if status != 204 else b"",  # RFC 9110 section 8.6
            extra,
            _CLOSE if close else _CRLF,
            b"" if head_only else body,
        ]
    )


def error_answer(error: ApiError, path: str, *, extra: bytes, close: bool) -> bytes:
    """`error` in the shape of `path`'s API, with its own headers before `extra`."""
    return answer(
        error.status,
        b"application/json",
        error_body(error, path),
        extra=header_lines(error.headers) + extra,
        close=close,
    )


def framing_of(status: int, length: bytes, whole: int | None, *, chunks: bool) -> tuple[bytes, bool, bool]:
    """How a relayed body ends (RFC 9112 section 6.3): header lines, whether in chunks, whether with the connection.

    length  the backend's Content-Length if it holds for the relayed bytes, otherwise b""
    whole   the length of the body if all of it is there, otherwise None
    chunks  whether the client can read chunks
    """
    if status == 204:  # has neither body nor length (RFC 9110 section 8.6)
        return b"", False, False
    if length:
        return b"content-length: %b\r\n" % length, False, False
    if whole is not None:
        return b"content-length: %d\r\n" % whole, False, False
    return (b"transfer-encoding: chunked\r\n", True, False) if chunks else (b"", False, True)


def whole_answer(lines: tuple[bytes, ...], extra: bytes, body: bytes, *, close: bool) -> bytes:
    """A whole answer of 200: the parts of the backend's header lines, the gateway's, the body."""
    return b"".join((_STATUS_LINES[200], *lines, extra, _CLOSE if close else _CRLF, body))


def relayed_head(status: int, headers: HeaderList, *, framing: bytes, extra: bytes, close: bool) -> bytes:
    """The head of a relayed answer: the backend's end-to-end headers, then `framing` and the gateway's headers.

    Several `vary` headers become one line, since not every cache joins two lines of that name. Headers that the
    backend's `Connection` names are hop-by-hop, too (RFC 9110 section 7.6.1).
    """
    parts = [status_line(status)]
    named: list[bytes] = []
    varies: list[bytes] = []
    for name, value in headers:
        if name not in _NOT_RELAYED:
            parts += (name, b": ", value, _CRLF)
        elif name == b"vary":
            varies.append(value)
        elif name == b"connection":
            named += [word.strip().lower() for word in value.split(b",")]
    if named:
        rest = [(name, value) for name, value in headers if name != b"connection" and name not in named]
        return relayed_head(status, rest, framing=framing, extra=extra, close=close)
    if varies:
        if len(varies) > 1 or VARY in extra:
            extra, varies = _one_vary(extra, varies)
        parts += (b"vary: ", varies[0], _CRLF)
    parts += (framing, extra, _CLOSE if close else _CRLF)
    return b"".join(parts)


def _one_vary(extra: bytes, varies: list[bytes]) -> tuple[bytes, list[bytes]]:
    """`extra` without our own `vary` line, and one value with all words, each once."""
    if VARY in extra:
        extra, varies = extra.replace(VARY, b""), [b"origin", *varies]
    words = dict.fromkeys(word.strip().lower() for word in b",".join(varies).split(b",") if word.strip())
    return extra, [b", ".join(words)]


def header_of(headers: HeaderList, wanted: bytes) -> bytes:
    """The value of the first header of that name (lower case), b"" if it is missing."""
    for name, value in headers:
        if name == wanted:
            return value
    return b""
