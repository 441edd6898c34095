"""Read HTTP/1.1 answers from the bytes of one connection (RFC 9112). Sans-IO: who has the socket feeds it.

llhttp does the framing (through httptools, strict: conflicting lengths, bad chunk sizes and smuggling tricks are
errors). For each answer call `begin`, then `feed` with each read, then look at the fields:

    nothing -> has_head -> parts, again and again -> complete

Rules
- A 1xx is skipped; a 101 is an error, since no request asks for an upgrade, and so is a transfer coding other than
  chunked.
- An answer without a length ends with the connection (section 6.3, case 8): `by_close`.
- Trailers are dropped (RFC 9110 section 6.5.1 lets us).
- Bytes behind a complete answer are `excess`: the answer stands, the connection is not to be used again.
- A read that is one whole chunk need not be fed while `at_chunk`: the parser would stand there again. The read is one
  if it begins with `SIZE_LINES` of its length and ends with CR LF.
"""

from __future__ import annotations

from typing import Final

import httptools

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
# The parser raises these for bytes that are not an HTTP/1.1 answer.
NOT_HTTP = (httptools.HttpParserError, httptools.HttpParserUpgrade)


def _size_lines(most: int) -> tuple[bytes, ...]:
    lines = [b"\0"] * most  # no chunk has this length, and no size line begins so
    for size in range(1, most):
        line = b"%x\r\n" % size
        if (length := len(line) + size + 2) < most:
            lines[length] = line
    return tuple(lines)


# Bytes; the chunks of ordinary events are shorter.
SHORT_CHUNK: Final = 2048
# By the length of a short chunk with its framing, the line that it begins with.
SIZE_LINES: Final = _size_lines(SHORT_CHUNK)


class AnswerReader:
    """The answers of one connection, one after the other.

    parser     feed it; None after `close`
    status     once `has_head`
    headers    names in lower case
    parts      of the body, as they were read; their taker empties the list
    by_close   the end of the connection ends the answer
    complete   the answer is whole
    reusable   the server keeps the connection open behind it
    excess     bytes came behind it
    at_chunk   a chunk has just ended, and nothing of the next has come
    """

    __slots__ = (
        "at_chunk",
        "by_close",
        "complete",
        "excess",
        "has_head",
        "headers",
        "parser",
        "parts",
        "reusable",
        "status",
    )

    def __init__(self) -> None:
        self.parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self.begin()

    def begin(self) -> None:
        """Expect the next answer."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.by_close = True
        self.has_head = self.complete = self.reusable = self.excess = self.at_chunk = False

    def feed(self, data: bytes) -> None:
        """Take a read. Raises one of NOT_HTTP."""
        if self.parser is None:
            return
        self.parser.feed_data(data)
        if self.at_chunk and data[-1:] != b"\n":  # the next size line has begun; a whole one has called us
            self.at_chunk = False

    def close(self) -> None:
        """Read nothing more. The parser refers back to this."""
        self.parser = None

    # -- called by httptools --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """httptools: an answer begins; behind a complete one it is excess."""
        if self.complete:
            self.excess = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header, or, once the head is there, a trailer."""
        if self.has_head:
            return
        name = name.lower()
        if name in _FRAMING:
            self.by_close = False
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                # llhttp takes it, and would hand on the coded bytes as the body.
                raise httptools.HttpParserError("a transfer coding other than chunked")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """httptools: the head is whole; forget that of a 1xx."""
        if self.complete or self.parser is None:
            return
        status = self.parser.get_status_code()
        if status < 200:
            self.headers = []
            self.by_close = True
            return
        if status in (204, 304):
            self.by_close = False
        self.status = status
        self.has_head = True

    def on_body(self, data: bytes) -> None:
        """httptools: a part of the body, without chunk framing."""
        if self.has_head and not self.complete:  # 199 or 000 may have one, says llhttp
            self.parts.append(data)

    def on_chunk_header(self) -> None:
        """httptools: a size line has ended."""
        self.at_chunk = False

    def on_chunk_complete(self) -> None:
        """httptools: a chunk has ended, with its line end."""
        self.at_chunk = self.has_head

    def on_message_complete(self) -> None:
        """httptools: the answer is whole (or a 1xx is)."""
        if self.has_head and not self.complete and self.parser is not None:
            self.complete = True
            self.at_chunk = False
            self.reusable = bool(self.parser.should_keep_alive())
