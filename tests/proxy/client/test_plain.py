"""aiaas.proxy.client.plain: aiohttp's parser reads plain requests the same, and alone reads the ones that smuggle."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.client.head import Head
from aiaas.proxy.client.incoming import HttpRequest, Incoming, request_of
from aiaas.proxy.client.path_prefix import NO_PREFIX
from aiaas.proxy.client.plain import DECIDING, plain_request
from aiaas.proxy.client.refusal import MAX_HEADERS

LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b'{"model":"m"}'
FIELDS = [b"Host: bench", b"Content-Type: application/json", b"Content-Length: %d" % len(BODY)]
MOST = 4096
# Pieces of heads, and bytes that parsers of HTTP read differently.
PIECES = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b": ", b",", b"\x00", b"\x0b", b"\x7f", b"\xe9", b"\r\n ", b"\r\n\r\n",
    b"Host", b"host: y\r\n", b"X", b"x-a: b\r\n", b"X_a", b"Content-Length", b"Content-Length: 13\r\n", b"0", b"13",
    b"+13", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding", b"chunked", b"keep-alive",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n",
    b"GET / HTTP/1.1\r\n",
]  # fmt: skip


def request(*more: bytes, body: bytes = BODY, line: bytes = LINE) -> bytes:
    """A whole request with these further lines."""
    return line + b"".join(field + b"\r\n" for field in (*FIELDS, *more)) + b"\r\n" + body


def parsed(read: bytes) -> tuple[HttpRequest, bytes] | None:
    """The parser's first message, if it is whole and its connection goes on with NEXT behind it."""
    loop = asyncio.new_event_loop()
    try:
        protocol = BaseProtocol(loop)
        made = Incoming(protocol, loop, MOST)
        protocol._parser = made.parser
        got = made.next(read, read)
        if got is None or isinstance(got, Exception) or not got[1].is_eof():
            return None
        assert made.parser is not None
        made.parser.message_consumed()
        if made.next(b"", read) is not None or made.left:
            return None
        follows = made.next(NEXT, NEXT)
        assert isinstance(follows, tuple)
        assert follows[0].path == "/next"
        return request_of(*got), got[1].read_nowait(-1)
    finally:
        loop.close()


def agrees(read: bytes) -> bool:
    """Whether `read` is plain; then the parser reads the same of it, and nothing else."""
    plain = plain_request(read, MOST, NO_PREFIX.lines)
    if plain is None or not Head(MOST).has_valid_host(plain[1]):
        return False
    path, headers, body = plain
    other = parsed(read)
    assert other is not None
    message, content = other
    assert (message.method, message.raw_path, content) == ("POST", path, body)
    assert [(name.lower(), value) for name, value in message.headers.items()] == list(headers.items())
    assert (message.keep_alive, message.version, message.content_length) == (True, (1, 1), len(body))
    return True


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(0, 200), st.integers(0, 4))
def test_parser_reads_the_same_of_any_plain_request(pieces: list[bytes], at: int, cut: int) -> None:
    """Pieces that matter anywhere in a request, in place of some of its bytes."""
    whole = request(b"X-Trace: a b")
    at %= len(whole)
    agrees(whole[:at] + b"".join(pieces) + whole[at + cut :])


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_parser_reads_the_same_of_any_plain_lines(pieces: list[bytes]) -> None:
    """Lines made of such pieces alone, behind the usual ones."""
    agrees(request()[: -len(BODY) - 2] + b"".join(pieces) + b"\r\n" + BODY)


@given(st.binary(max_size=40), st.integers(0, 200))
def test_parser_reads_the_same_whatever_bytes_come(data: bytes, at: int) -> None:
    """Any bytes, anywhere."""
    whole = request()
    at %= len(whole)
    agrees(whole[:at] + data + whole[at:])


@pytest.mark.parametrize(
    "more",
    [
        [],
        [b"User-Agent: OpenAI/Python 2.8.0", b"x-stainless-retry-count: 0", b"Accept-Encoding: gzip, deflate"],
        [b"Connection: keep-alive", b"Authorization: Bearer aiaas-x-y", b'x: "a; b"'],
    ],
    ids=["curl", "an SDK", "kept open"],
)
def test_requests_of_usual_clients_are_plain(more: list[bytes]) -> None:
    """Those for which it is there."""
    assert agrees(request(*more))


@pytest.mark.parametrize(
    "read",
    [
        *(request(b"%b: x" % name.title().encode()) for name in sorted(DECIDING)),
        request(b"Connection: close"),
        request(b"Connection: keep-alive, close"),
        request(b"Content-Length: 13"),
        request(b"X: a", b"x: b"),
        request(b"X : a"),
        request(b"X:a"),
        request(b"X:  a"),
        request(b"X: a "),
        request(b"X: a\tb"),
        request(b"X: "),
        request(b"X_Y: a"),
        request(b" X: a"),
        request(b"X: a\r\n b"),
        request(b"X: a\nY: b"),
        request(b"X: a\rY: b"),
        request(b"X: \xe9"),
        request(b"X: \x00"),
        request(b"X"),
        request(*(b"X-%d: a" % number for number in range(MAX_HEADERS))),
        request(b"X: " + b"a" * MOST),
        request(body=BODY + b"G"),
        request(body=BODY[:-1]),
        request()[: -len(BODY) - 2],
        b"\r\n" + request(),
        request() + NEXT,
        request(line=b"POST /v1/chat/completions?x=1 HTTP/1.1\r\n"),
        request(line=b"POST /v1/chat/completions HTTP/1.0\r\n"),
        request(line=b"POST  /v1/chat/completions HTTP/1.1\r\n"),
        request(line=b"GET /v1/chat/completions HTTP/1.1\r\n"),
        request(line=b"POST /v1/chat/completions HTTP/1.1\n"),
        request().replace(b"Length: 13", b"Length: 013"),
        request().replace(b"Length: 13", b"Length: +13"),
        request().replace(b"Length: 13", b"Length: 13, 13"),
        request().replace(b"application/json", b"application/json; charset=utf-8"),
    ],
)
def test_any_other_request_is_left_to_the_parser(read: bytes) -> None:
    """It alone decides, and refuses, what readers could see differently."""
    assert plain_request(read, MOST, NO_PREFIX.lines) is None


@pytest.mark.parametrize(
    "reads",
    [
        [request()[:40], request()[40:]],
        [request(line=b"\r\n" + LINE)],
        [request() + NEXT[:9], NEXT[9:]],
        [request(b"Transfer-Encoding: chunked").replace(FIELDS[2] + b"\r\n", b"").replace(BODY, b"0\r\n\r\n")],
        [b"\r\n\r\n" + request().replace(b"Length: 13", b"Length: %d" % len(b"\r\n\r\n" + request()))],
    ],
    ids=["a head in parts", "behind an empty line", "a head behind it", "chunks", "a body that begins with a request"],
)
async def test_parser_keeps_a_connection_whose_bounds_are_unclear(reads: list[bytes]) -> None:
    """A request of which the parser may have read a part is never taken for a new one."""
    made = incoming()
    for read in reads:
        made.next(read, read)
        made.next(b"", read)
    assert made.plain(request()) is None


@pytest.mark.parametrize(
    "reads",
    [[], [NEXT], [request()], [request()[: -len(BODY)], BODY[:3], BODY[3:]]],
    ids=["new", "without a body", "with one", "a body in parts"],
)
async def test_plain_request_is_taken_behind_whole_messages(reads: list[bytes]) -> None:
    """However they were read."""
    made = incoming()
    for read in reads:
        data = read
        while made.next(data, read) is not None:
            assert made.parser is not None
            made.parser.message_consumed()
            data = b""
    got = made.plain(request())
    assert got is not None
    assert (got.raw_path, got.body, got.content.is_eof()) == ("/v1/chat/completions", BODY, True)


@pytest.mark.parametrize("host", [b"a b", b"", b"a,b", b"[::1"])
async def test_invalid_host_is_left_to_the_parser(host: bytes) -> None:
    """Which refuses it."""
    assert incoming().plain(request().replace(b"bench", host)) is None


def incoming() -> Incoming:
    """The state of a new connection."""
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    made = Incoming(protocol, loop, MOST)
    protocol._parser = made.parser
    return made
