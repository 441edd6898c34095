"""The messages of one connection, one at a time.

aiohttp's parser reads as far as it can, and an error loses the requests before it that came in the same read. So the
parser stops after each message, and keeps the bytes that follow until the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
from aiohttp import http_parser
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from aiaas.errors import EnvironmentFault
from aiaas.proxy.client.head import HEAD_END, Head
from aiaas.proxy.client.path_prefix import NO_PREFIX, PrefixedPaths
from aiaas.proxy.client.plain import plain_request
from aiaas.proxy.client.refusal import MAX_HEADERS

# Messages after which the parser stops.
_ONE = 1
_FIRST_LETTER = ord("A")  # a line end before it is an empty line, which the parser skips
# Bytes of a body that may wait for its reader: at twice as many the connection stops reading.
_BUFFER = 256 * 1024


class HttpRequest(msgspec.Struct):
    """A request whose head is whole. Look its headers up in lower case.

    content  the body as it arrives
    body     the body, if it came with the head and without the parser; `content` is empty then
    """

    method: str
    raw_path: str
    headers: Mapping[str, str]
    content: StreamReader
    body: bytes = b""
    version: HttpVersion = HttpVersion11
    keep_alive: bool = True

    def values(self, name: str) -> Sequence[str]:
        """All values of a header, in the order in which they came."""
        headers = self.headers
        if type(headers) is dict:
            return (headers[name],) if name in headers else ()
        return headers.getall(name, ())  # type: ignore[attr-defined, no-any-return]  # the parser's

    @property
    def content_length(self) -> int | None:
        """The announced length of the body in bytes, if it was announced."""
        length = self.headers.get("content-length")
        return None if length is None else int(length)


def request_of(message: RawRequestMessage, content: StreamReader, prefix: PrefixedPaths = NO_PREFIX) -> HttpRequest:
    """The request that the parser has read, its path without the prefix."""
    keep_alive = not message.should_close
    path = prefix.strip(message.path) if prefix.text else message.path
    return HttpRequest(message.method, path, message.headers, content, version=message.version, keep_alive=keep_alive)


def require_c_parser() -> None:
    """Raises EnvironmentFault where aiohttp parses in Python: that parser accepts heads that llhttp refuses, and of
    6,359 wire cases one became a smuggled request and 34 were answered wrongly.
    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise EnvironmentFault(
            "aiohttp runs without its C parser here, which is not safe: unset AIOHTTP_NO_EXTENSIONS, or install a "
            "wheel of aiohttp for this Python (python -m pip install --force-reinstall --only-binary aiohttp aiohttp)"
        )


class Incoming:
    """The messages of one connection.

    prefix       in front of the paths of its requests
    parser       aiohttp's; None once nothing is read any more
    head         the present one, while it is not whole
    body         of the message that came last, while it is not whole
    body_broken  a parser error cut that body off
    surplus      bytes came after the last message that this connection can have
    left         bytes until the next message begins; below 0 once that is unknown
    """

    __slots__ = ("_first_lines", "_last", "body", "body_broken", "head", "left", "parser", "prefix", "surplus")

    def __init__(
        self,
        protocol: BaseProtocol,
        loop: asyncio.AbstractEventLoop,
        max_header_size: int,
        prefix: PrefixedPaths = NO_PREFIX,
    ) -> None:
        self.parser: HttpRequestParser | None = HttpRequestParser(
            protocol,
            loop,
            _BUFFER,
            max_line_size=max_header_size,
            max_field_size=max_header_size,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            max_msg_queue_size=_ONE,
        )
        self.prefix = prefix
        self._first_lines = prefix.lines
        self.head = Head(max_header_size)
        self.body: StreamReader = EMPTY_PAYLOAD
        self.body_broken = False
        self._last = False
        self.surplus = False
        self.left = 0

    def plain(self, read: bytes) -> HttpRequest | None:
        """The request that is all of `read`, if the parser is not needed for it; else None, and `next` has to be
        called."""
        if self.left or self._last or self.parser is None:
            return None
        found = plain_request(read, self.head.most, self._first_lines)
        if found is None:
            return None
        path, headers, body = found
        return HttpRequest("POST", path, headers, EMPTY_PAYLOAD, body) if self.head.has_valid_host(headers) else None

    def next(self, data: bytes, read: bytes) -> tuple[RawRequestMessage, StreamReader] | Exception | None:
        """The next message, the error that ends the connection, or None if more bytes are needed.

        data  the bytes that came, at the first call for them; then b"" until None is returned
        read  the bytes that came
        """
        begins = bool(data) and not self.left
        if data:
            self.left = self.left - len(data) if self.left > 0 else -1
        while self.parser is not None:
            in_body = not self.body.is_eof()
            behind = self._last and not in_body
            if self.surplus or (behind and data):
                self.surplus = True
                return None
            try:
                messages, _, tail = self.parser.feed_data(data)
            except HttpProcessingError as error:
                if behind:
                    self.surplus = True
                    return None
                if in_body:
                    self.body_broken = True
                    self.body.feed_eof()
                return error.with_traceback(None)  # which would be a cycle, through the frames that get the error
            if behind:
                self.surplus = bool(messages or tail)
                return None
            if messages:
                if begins:
                    self.left = _bytes_left(messages[0][0], read)
                return self._checked(*messages[0], read, first=bool(data))
            if not in_body:
                return None if not data or self.head.add(data) else LineTooLong(b"", self.head.most)
            if not self.body.is_eof():
                return None
            self.body = EMPTY_PAYLOAD
            data = b""  # the body has ended; the next message may be there already
        return None

    def let_go(self) -> None:
        """Free the parser and the body, since nothing is read any more. Calling `let_go` again changes nothing."""
        self.body = EMPTY_PAYLOAD
        self.parser = None

    def _checked(
        self, message: RawRequestMessage, body: StreamReader, read: bytes, *, first: bool
    ) -> tuple[RawRequestMessage, StreamReader] | Exception:
        fault = self.head.fault(message, read, first=first)
        if fault is not None:
            return fault
        self.head.clear()
        self._last = message.should_close or message.upgrade
        self.body = EMPTY_PAYLOAD if body.is_eof() else body
        if self._last and body.is_eof():
            self.next(b"", read)  # sets `surplus`, which an answer that is given inside of this read must know
        return message, body


def _bytes_left(message: RawRequestMessage, read: bytes) -> int:
    """How many bytes of a message are still to come; below 0 if bytes of the next one came, or if it is unknown.

    read  begins with the message
    """
    end = read.find(HEAD_END) + len(HEAD_END)
    if message.chunked or read[0] < _FIRST_LETTER or read.count(b"\n", 0, end) != read.count(b"\r\n", 0, end):
        return -1
    return end + int(message.headers.get("content-length", "0")) - len(read)
