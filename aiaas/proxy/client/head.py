"""The head of a request while it arrives: checks that the parser does not make. Pure.

The parser bounds each header line, not the sum; it takes RTSP and ICE for HTTP of the same version number, and any text
for a Host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage

from aiaas.proxy.client.refusal import InvalidHost, NotHttp, fault_of
from aiaas.proxy.client.request_target import is_authority

# Ends a head.
HEAD_END = b"\r\n\r\n"
_LINE_END = len(b"HTTP/1.1\r\n")
# A config cannot name a longer origin: a host name has at most 253 characters.
_MOST_ORIGIN = 300
_ORIGIN = re.compile(rb"\n(?i:origin):[ \t]*([!-~]{1,%d})[ \t]*\r?\n" % _MOST_ORIGIN)
_OTHER_PROTOCOL = re.compile(rb" (?:RTSP|ICE)/[0-9]\.[0-9]\r\n")


class Head:
    """A connection's present head.

    most  bytes that it may have
    size  bytes of it that have arrived, while it is incomplete
    """

    __slots__ = ("_edge", "_host", "_line", "_origin", "most", "size")

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0
        self._line = b""  # the last bytes of its first line
        self._edge = b""  # the last bytes that came, in which an Origin may begin
        self._origin: str | None = None
        self._host: str | None = None  # the last valid one: the connection's next request nearly always has it, too

    def add(self, data: bytes) -> bool:
        """Add a part of a head. Returns whether the head is still small enough."""
        if not self.size:
            data = data.lstrip(b"\r\n")  # empty lines between requests, as old clients send (RFC 9112 section 2.2)
        if b"\n" not in self._line:
            line = self._line + data
            self._line = line[: line.find(b"\n") + 1 or None][-_LINE_END:]
        self.size += len(data)
        self.origin(data)
        return self.size <= self.most

    def origin(self, data: bytes = b"") -> str | None:
        """The `Origin` in the bytes so far, ending with `data`, even if the rest is not valid; None without one."""
        if self._origin is None:
            seen = self._edge + data
            found = _ORIGIN.search(seen)
            self._origin = None if found is None else found[1].decode("ascii")
            self._edge = seen[-_MOST_ORIGIN - len("\norigin: \r\n") :]
        return self._origin

    def clear(self) -> None:
        """Forget the head: it is complete, or refused."""
        if self.size:
            self.size, self._line, self._edge, self._origin = 0, b"", b"", None

    def fault(self, message: RawRequestMessage, read: bytes, *, first: bool) -> Exception | None:
        """Why the whole head `message` is refused, or None.

        read   the last bytes that came, in which the head ends
        first  whether they began with this head or its rest, and not with a body or another head
        """
        if first and self.size + len(read) > self.most and self.size + read.find(HEAD_END) + len(HEAD_END) > self.most:
            return LineTooLong(b"", self.most)
        if not (first and _begins_with_http(self._line + read if self._line else read)) and _speaks_otherwise(read):
            return NotHttp()
        return fault_of(message) if self.has_valid_host(message.headers) else InvalidHost()

    def has_valid_host(self, headers: Mapping[str, str]) -> bool:
        """Whether the Host is valid, or there is none (the parser refuses HTTP/1.1 without one)."""
        host = headers.get("host")
        if host != self._host:
            if host is not None and not is_authority(host):
                return False
            self._host = host
        return True


def _begins_with_http(head: bytes) -> bool:
    return head.partition(b"\r\n")[0][-len(b"HTTP/1.1") : -len(b"1.1")] == b"HTTP/"


def _speaks_otherwise(read: bytes) -> bool:
    """Whether `read` has the first line of a request in another protocol; no JSON has a line end behind such words."""
    return _OTHER_PROTOCOL.search(read) is not None
