"""aiaas.proxy.client.head: a head in parts. Which hosts are valid is tested in test_target, answers in
test_connection."""

from __future__ import annotations

import pytest
from aiohttp.http import HttpVersion, HttpVersion11
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from aiaas.proxy.client.head import Head
from aiaas.proxy.client.refusal import InvalidHost, NotHttp

HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def message(host: str = "x", version: HttpVersion = HttpVersion11) -> RawRequestMessage:
    """The parser's result for HEAD, or for a head with another host."""
    headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict(Host=host))
    return RawRequestMessage("GET", "/health", version, headers, (), False, None, False, False, URL("/health"))


def fault_of(data: bytes, cut: int, most: int = 4096) -> Exception | None:
    """The fault of a head that comes in two parts, cut there."""
    head = Head(most)
    if cut:
        assert head.add(data[:cut])
    return head.fault(message(), data[cut:], first=True)


@pytest.mark.parametrize("line", [b"GET /health RTSP/1.0", b"GET /health RTSP/1.1", b"SOURCE /health ICE/1.0"])
def test_another_protocol_is_seen_wherever_its_head_is_cut(line: bytes) -> None:
    """The parser gives the same for it as for HTTP."""
    data = line + HEAD[len(b"GET /health HTTP/1.1") :]
    faults = [fault_of(data, cut) for cut in range(len(line) - 9)]
    assert all(isinstance(fault, NotHttp) for fault in faults)


@pytest.mark.parametrize("data", [HEAD, b"\r\n" + HEAD, b"\r\n\r\n" + HEAD], ids=["as usual", "an empty line", "two"])
def test_http_is_not_refused_wherever_its_head_is_cut(data: bytes) -> None:
    """Also behind empty lines, wherever the head is cut."""
    assert [fault_of(data, cut) for cut in range(len(data) - 1)] == [None] * (len(data) - 1)


def test_header_that_names_another_protocol_is_ignored() -> None:
    """Only the first line names the protocol."""
    assert fault_of(b"GET /health HTTP/1.1\r\nHost: x\r\nVia: an RTSP/1.0\r\n\r\n", 0) is None


def test_another_protocol_behind_a_body_is_seen() -> None:
    """The read does not begin with the head then."""
    assert isinstance(Head(4096).fault(message(), b"{}GET /health RTSP/1.0\r\nHost: x\r\n\r\n", first=False), NotHttp)
    assert Head(4096).fault(message(), b'{"x": " RTSP/1.0"}' + HEAD, first=False) is None


def test_the_sum_is_bounded_to_the_byte() -> None:
    """Wherever the head is cut; bytes of a head that the parser read before do not count twice."""
    for cut in range(len(HEAD) - 4):
        assert fault_of(HEAD, cut, len(HEAD)) is None
        head = Head(len(HEAD) - 1)
        assert head.add(HEAD[:cut])
        assert isinstance(head.fault(message(), HEAD[cut:], first=True), LineTooLong)
    assert not Head(8).add(HEAD[:9])


def test_empty_lines_before_a_head_are_not_a_part_of_it() -> None:
    """Empty lines must not start the timeout."""
    head = Head(4096)
    assert head.add(b"\r\n")
    assert head.size == 0
    assert head.add(b"\r\nGET")
    assert head.size == 3
    head.clear()
    assert head.size == 0


def test_a_valid_host_does_not_vouch_for_the_next_one() -> None:
    """A valid host is remembered for its own head only."""
    head = Head(4096)
    hosts = ["x", "x", "x y", "x", "y", "x y", "y"]
    faults = [head.fault(message(host), HEAD, first=True) for host in hosts]
    assert [isinstance(fault, InvalidHost) for fault in faults] == [" " in host for host in hosts]


@pytest.mark.parametrize(
    ("head", "origin"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n", "https://a.example"),
        (b"GET / HTTP/9\r\nORIGIN:https://a.example:8443 \t\r\nX: ", "https://a.example:8443"),
        (b"nonsense\norigin: null\n", "null"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", None),
        (b"GET / HTTP/1.1\r\nX-Origin: https://a.example\r\n", None),
        (b"GET / HTTP/1.1\r\nX: Origin: https://a.example\r\n", None),
        (b"GET / HTTP/1.1\r\nOrigin: https://a.exa", None),
        (b"GET / HTTP/1.1\r\nOrigin: a b\r\n", None),
        (b"GET / HTTP/1.1\r\nOrigin: \xff\r\n", None),
        (b"GET / HTTP/1.1\r\nOrigin: " + b"a" * 301 + b"\r\n", None),
    ],
    ids=[
        "as usual", "of another version", "of no request", "none", "another header", "in a value", "cut", "two words",
        "no ASCII", "too long",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_origin_is_read_however_a_head_is_cut(head: bytes, origin: str | None, size: int) -> None:
    """Also where the head is invalid, and behind a kilobyte of other headers."""
    for before in (b"", b"GET / HTTP/1.1\r\nX: " + b"x" * 2000 + b"\r\n"):
        data = before + head
        reading = Head(4096)
        for at in range(0, len(data) - size, size):
            assert reading.add(data[at : at + size])
        assert reading.origin(data[(len(data) - 1) // size * size :]) == origin


def test_origin_of_the_last_head_is_forgotten() -> None:
    """The next one may be another client's, where a proxy shares the connection."""
    head = Head(4096)
    assert head.add(b"GET / HTTP/1.1\r\nOrigin: https://a.example\r\n")
    head.clear()
    assert head.add(b"GET /")
    assert head.origin() is None
