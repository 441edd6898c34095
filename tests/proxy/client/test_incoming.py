"""aiaas.proxy.client.incoming: messages out of reads that are cut anywhere. Answers to them are tested in
test_connection."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from aiaas.proxy.client.incoming import Incoming

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
CLOSE = b"POST /d HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
OLD = b"GET /e HTTP/1.0\r\n\r\n"
TUNNEL = b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"


def incoming() -> Incoming:
    """The state of a new connection."""
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    made = Incoming(protocol, loop, 4096)
    protocol._parser = made.parser
    return made


def messages_of(made: Incoming, *reads: bytes) -> tuple[list[str], Exception | None]:
    """The targets of the messages in these reads, each of which has its whole body by the next; and how they end."""
    found = []
    for read in reads:
        data = read
        while (got := made.next(data, read)) is not None:
            if isinstance(got, Exception):
                return found, got
            assert isinstance(got[0], RawRequestMessage)
            found.append(got[0].path)
            data = b""
    return found, None


@pytest.mark.parametrize("last", [CLOSE, OLD, TUNNEL], ids=["close", "HTTP/1.0", "a tunnel"])
@pytest.mark.parametrize("behind", [b"", b"\x00rubbish", GET, b"G"], ids=["nothing", "rubbish", "a request", "a byte"])
async def test_each_message_comes_once_wherever_the_reads_are_cut(last: bytes, behind: bytes) -> None:
    """Nothing follows the last message; whether more bytes came is known."""
    data = GET + POST + CHUNKED + GET + last + behind
    expected = ["/a", "/b", "/c", "/a", {CLOSE: "/d", OLD: "/e", TUNNEL: "x:1"}[last]]
    for cut in range(len(data)):
        made = incoming()
        assert messages_of(made, data[:cut], data[cut:]) == (expected, None), cut
        assert made.body.is_eof()
        assert not made.body_broken
        assert made.surplus == bool(behind)


async def test_valid_messages_come_before_the_fault_behind_them() -> None:
    """Wherever the read is cut."""
    data = GET + POST + b"\x00\r\n\r\n" + GET
    for cut in range(len(GET + POST)):
        found, fault = messages_of(incoming(), data[:cut], data[cut:])
        assert found == ["/a", "/b"]
        assert isinstance(fault, BadHttpMessage)


async def test_a_fault_in_a_body_ends_it() -> None:
    """The body's reader must not wait."""
    made = incoming()
    found, fault = messages_of(made, CHUNKED.removesuffix(b"0\r\n\r\n"), b"zz\r\n")
    assert found == ["/c"]
    assert isinstance(fault, BadHttpMessage)
    assert made.body_broken
    assert made.body.is_eof()


async def test_a_head_that_grows_too_large_is_a_fault_before_its_end() -> None:
    """In any number of reads."""
    found, fault = messages_of(incoming(), GET, *[b"GET /" + b"x" * 1000, b"x" * 2000, b"x" * 2000])
    assert found == ["/a"]
    assert isinstance(fault, LineTooLong)


async def test_whole_body_is_not_kept() -> None:
    """A stream lasts, and the reader of its request's body takes a kilobyte."""
    made = incoming()
    assert messages_of(made, POST) == (["/b"], None)
    assert made.body is EMPTY_PAYLOAD
    assert messages_of(made, POST[:-2]) == (["/b"], None)
    assert not made.body.is_eof()
    assert messages_of(made, POST[-2:]) == ([], None)
    assert made.body is EMPTY_PAYLOAD
