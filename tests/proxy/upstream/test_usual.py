"""aiaas.proxy.upstream.usual: a client gets the same bytes of a usual answer as by the parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.httpclient.reader import NOT_HTTP, AnswerReader
from aiaas.proxy.client.answers import relayed_head, whole_answer
from aiaas.proxy.upstream.usual import usual_answer

DATE = b"date: Mon, 23 Nov 2026 07:16:08 GMT\r\n"
REST = b"server: uvicorn\r\ncontent-length: 5\r\ncontent-type: application/json\r\n"
USUAL = b"HTTP/1.1 200 OK\r\n" + DATE + REST + b"\r\nhello"
# Pieces of heads, and bytes that parsers of HTTP read differently.
PIECES = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b": ", b",", b"\x00", b"\xe9", b"\r\n ", b"\r\n\r\n", b"a: b\r\n",
    b"content-length: 5\r\n", b"content-length", b"0", b"5", b"+5", b"transfer-encoding: chunked\r\n", b"chunked",
    b"connection: close\r\n", b"vary: Origin\r\n", b"vary: accept\r\n", b"HTTP/1.1 200 OK\r\n", b"hello", DATE,
]  # fmt: skip


def agrees(read: bytes) -> bool:
    """Whether `read` is a usual answer; then the client gets the same bytes by the parser."""
    usual = usual_answer(read)
    if usual is None:
        return False
    reader = AnswerReader()
    reader.feed(read)
    assert (reader.status, reader.complete, reader.reusable, reader.excess) == (200, True, True, False)
    body = b"".join(reader.parts)
    framing = b"content-length: %b\r\n" % dict(reader.headers)[b"content-length"]
    for close in (False, True):
        head = relayed_head(200, reader.headers, framing=framing, extra=b"x: y\r\n", close=close)
        assert whole_answer(usual[0], b"x: y\r\n", usual[1], close=close) == head + body
    return True


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.integers(0, 200), st.integers(0, 4))
def test_parser_reads_the_same_of_any_usual_answer(pieces: list[bytes], at: int, cut: int) -> None:
    """Pieces that matter anywhere in an answer, in place of some of its bytes."""
    at %= len(USUAL)
    agrees(USUAL[:at] + b"".join(pieces) + USUAL[at + cut :])


@given(st.binary(max_size=8), st.integers(0, 200), st.integers(0, 4))
def test_parser_reads_the_same_whatever_bytes_come(data: bytes, at: int, cut: int) -> None:
    """Any bytes, anywhere."""
    at %= len(USUAL)
    agrees(USUAL[:at] + data + USUAL[at + cut :])


@pytest.mark.parametrize("body", [b"hello", b""], ids=["a body", "no body"])
@pytest.mark.parametrize("vary", [b"", b"vary: Origin\r\n"], ids=["without vary", "with vary"])
def test_answers_of_vllm_are_usual(vary: bytes, body: bytes) -> None:
    """Those for which it is there."""
    assert agrees(
        USUAL.replace(b"json\r\n", b"json\r\n" + vary).replace(b"hello", body).replace(b"5", b"%d" % len(body))
    )


@pytest.mark.parametrize(
    "read",
    [
        USUAL[:-1],
        USUAL + b"!",
        USUAL.replace(b"200 OK", b"404 Not Found"),
        USUAL.replace(b"/1.1", b"/1.0"),
        USUAL.replace(b"json\r\n", b"json\r\nconnection: close\r\n"),
        USUAL.replace(b"json\r\n", b"json\r\nvary: accept\r\n"),
        USUAL.replace(b"json", b"json; charset=utf-8"),
        USUAL.replace(b"content-length: 5", b"transfer-encoding: chunked"),
        USUAL.replace(DATE, b""),
    ],
)
def test_any_other_answer_is_left_to_the_parser(read: bytes) -> None:
    """It alone decides where such an answer ends."""
    assert usual_answer(read) is None


def test_parser_is_strict_about_the_rest() -> None:
    """The test of the properties above would miss nothing that the parser refuses."""
    with pytest.raises(NOT_HTTP):
        AnswerReader().feed(USUAL.replace(b"GMT\r\n", b"GMT\n\n"))
