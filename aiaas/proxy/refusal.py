"""Why a head is refused before it becomes a request, and what its client is told. Pure.

RFC 9112 section 6.1 on `Transfer-Encoding`: a coding that the server does not understand is 501, a list that does not
end with `chunked` (or names it twice) is 400, and so is any from HTTP/1.0. The parser refuses the second by itself and
takes the first: `gzip, chunked` would reach vLLM as JSON that is none.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import hdrs
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine, LineTooLong
from aiohttp.http_parser import RawRequestMessage

from aiaas.errors import ClientError, UpstreamError

# A client that takes no byte of an answer whose end is written is dropped after this.
CLOSING_SILENCE = 30.0
# A browser sends 20 headers, an SDK 25.
MAX_HEADERS = 128
_TOO_MANY = "Too many headers received"  # aiohttp's parser tells it from other faults by its words only


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds and bytes: of every head, and seconds in which a client takes no byte of an answer that has ended."""

    header_timeout: float
    max_header_size: int
    closing_silence: float = CLOSING_SILENCE


class HeadTooSlow(Exception):
    """A head was not whole within `header_timeout`."""


class UnknownCoding(Exception):
    """A transfer coding other than `chunked`."""


class CodingFromHttp10(Exception):
    """A transfer coding from HTTP/1.0, which knows none: who wrote it may frame the message otherwise than we do."""


def fault_of(message: RawRequestMessage) -> Exception | None:
    """What the parser lets pass and we do not, or None."""
    coding = message.headers.get(hdrs.TRANSFER_ENCODING)
    if coding is None:
        return None
    if message.version < (1, 1):
        return CodingFromHttp10()
    return None if coding.lower() == "chunked" else UnknownCoding()


def refusal(reason: BaseException | None, limits: ConnectionLimits) -> ClientError:
    """What the client is told; never its own bytes, which a parser error quotes."""
    if isinstance(reason, HeadTooSlow):
        seconds = limits.header_timeout
        return ClientError(408, "request_timeout", f"The request's headers did not arrive within {seconds:g} s.")
    if isinstance(reason, LineTooLong):
        size = limits.max_header_size
        return ClientError(431, "headers_too_large", f"The request's headers are larger than {size} bytes.")
    if isinstance(reason, BadHttpMessage) and reason.message == _TOO_MANY:
        return ClientError(431, "headers_too_large", f"The request has more than {MAX_HEADERS} headers.")
    if isinstance(reason, UnknownCoding):
        return ClientError(501, "invalid_request", "The only `Transfer-Encoding` that is understood is `chunked`.")
    if isinstance(reason, CodingFromHttp10):
        return ClientError(400, "invalid_request", "An HTTP/1.0 request cannot have a `Transfer-Encoding`.")
    if isinstance(reason, BadStatusLine):
        return ClientError(400, "invalid_request", "The request line is not valid HTTP/1.1.")
    return ClientError(400, "invalid_request", "The request is not valid HTTP/1.1.")


def internal_error() -> UpstreamError:
    """500: a fault of ours."""
    return UpstreamError(500, "internal_error", "The gateway failed on this request; its log says why.")
