"""Why a head is refused before it becomes a request, and the error that its client gets. Pure.

RFC 9112 section 6.1 on `Transfer-Encoding`: a coding that the server does not understand is 501, a list that does not
end with `chunked` (or names it twice) is 400, and so is any from HTTP/1.0. The parser refuses the second by itself and
accepts the first: `gzip, chunked` would reach vLLM as bytes that are not JSON.

The version of HTTP: 1.0 and 1.1 are served. RFC 9110 section 15.6.6 has 505 for any other; the parser does not read
HTTP/1.2 and later, so that is a 505 as well. A line without a version is HTTP/0.9. A malformed version, or another
protocol's, is 400.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine, LineTooLong
from aiohttp.http_parser import RawRequestMessage

from aiaas.errors import ClientError, UpstreamError
from aiaas.proxy.client.request_target import is_valid

# Drop a client that has not read a byte of a finished answer for this long (seconds).
CLOSING_SILENCE = 30.0
# A browser sends 20 headers, an SDK 25.
MAX_HEADERS = 128
# aiohttp's parser distinguishes these from other faults only by the text.
_TOO_MANY = "Too many headers received"
_VERSIONS = (
    "Bad status line:\n  Invalid HTTP version:",
    "Bad status line:\n  Expected HTTP/2 Connection Preface:",
    "Pause on PRI/Upgrade:",  # the preface of HTTP/2
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds and bytes: of every head, and seconds in which a client takes no byte of an answer that has ended."""

    header_timeout: float
    max_header_size: int
    closing_silence: float = CLOSING_SILENCE


class HeadTooSlow(Exception):
    """A head was not whole within `header_timeout`."""


class TooFarAhead(Exception):
    """A request was sent before the answers to several others."""


class NotHttp(Exception):
    """Another protocol, such as RTSP."""


class UnknownVersion(Exception):
    """HTTP, but neither 1.0 nor 1.1."""


class InvalidHost(Exception):
    """A Host that is not `name` or `name:port`."""


class InvalidTarget(Exception):
    """A request target whose host is not valid."""


class UnknownCoding(Exception):
    """A transfer coding other than `chunked`."""


class CodingFromHttp10(Exception):
    """A transfer coding in HTTP/1.0, which has none: the sender may frame the message differently."""


def fault_of(message: RawRequestMessage) -> Exception | None:
    """Why we refuse a head that the parser accepts, or None. `head.py` checks the Host header."""
    version = message.version
    if version is not HttpVersion11 and version not in (HttpVersion11, HttpVersion10):
        return UnknownVersion()
    if message.path[:1] != "/" and not is_valid(message.path, message.method):
        return InvalidTarget()
    coding = message.headers.get("transfer-encoding")
    if coding is None:
        return None
    if version == HttpVersion10:
        return CodingFromHttp10()
    return None if coding.lower() == "chunked" else UnknownCoding()


def refusal(reason: BaseException | None, limits: ConnectionLimits) -> ClientError:
    """The error for the client; never with the client's own bytes, which a parser error quotes."""
    if isinstance(reason, HeadTooSlow):
        seconds = limits.header_timeout
        return ClientError(408, "request_timeout", f"The request's headers did not arrive within {seconds:g} s.")
    if isinstance(reason, LineTooLong):
        size = limits.max_header_size
        return ClientError(431, "headers_too_large", f"The request's headers are larger than {size} bytes.")
    if isinstance(reason, BadHttpMessage) and reason.message == _TOO_MANY:
        return ClientError(431, "headers_too_large", f"The request has more than {MAX_HEADERS} headers.")
    if isinstance(reason, UnknownCoding):
        return ClientError(501, "invalid_request", "The only supported `Transfer-Encoding` is `chunked`.")
    if isinstance(reason, CodingFromHttp10):
        return ClientError(400, "invalid_request", "An HTTP/1.0 request cannot have a `Transfer-Encoding`.")
    unread = isinstance(reason, BadHttpMessage) and reason.message.startswith(_VERSIONS)
    if unread or isinstance(reason, UnknownVersion):
        return ClientError(505, "invalid_request", "The supported HTTP versions are 1.1 and 1.0.")
    if isinstance(reason, InvalidHost):
        return ClientError(400, "invalid_request", "The header `Host` must be `name` or `name:port`.")
    if isinstance(reason, InvalidTarget):
        return ClientError(400, "invalid_request", "The host in the request line must be `name` or `name:port`.")
    if isinstance(reason, TooFarAhead):
        return ClientError(400, "invalid_request", "Too many requests were pipelined; wait for each answer.")
    if isinstance(reason, (BadStatusLine, NotHttp)):
        return ClientError(400, "invalid_request", "The request line is not valid HTTP/1.1.")
    return ClientError(400, "invalid_request", "The request is not valid HTTP/1.1.")


def internal_error() -> UpstreamError:
    """500: the gateway itself failed."""
    return UpstreamError(500, "internal_error", "The gateway failed on this request; its log says why.")
