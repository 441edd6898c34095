"""aiaas.httpclient.reader: one answer after the other, however the reads are cut."""

from __future__ import annotations

import gc
import weakref

import pytest

from aiaas.httpclient.reader import NOT_HTTP, SHORT_CHUNK, SIZE_LINES, AnswerReader

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Name: v\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\nX-Trailer: t\r\n\r\n"


class Referable(AnswerReader):
    """A reader to which a weak reference can be made."""


def fed(*reads: bytes) -> AnswerReader:
    """A reader that got these reads."""
    reader = AnswerReader()
    for read in reads:
        reader.feed(read)
    return reader


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(("answer", "body"), [(PLAIN, b"hello"), (CHUNKED, b"hello!")], ids=["length", "chunks"])
def test_an_answer_is_read_however_it_is_cut(answer: bytes, body: bytes, size: int) -> None:
    """Status, headers in lower case, body without framing; a trailer is dropped."""
    reader = fed(*(answer[at : at + size] for at in range(0, len(answer), size)))
    assert (reader.status, b"".join(reader.parts)) == (200, body)
    assert (reader.complete, reader.reusable, reader.by_close, reader.excess) == (True, True, False, False)
    assert b"x-trailer" not in dict(reader.headers)


def test_the_next_answer_begins_anew() -> None:
    """Nothing of the first answer is left."""
    reader = fed(PLAIN)
    reader.begin()
    assert (reader.status, reader.headers, reader.parts, reader.complete) == (0, [], [], False)
    reader.feed(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    assert (reader.status, reader.complete, reader.reusable, reader.by_close) == (204, True, False, False)


def test_a_1xx_is_skipped_with_its_headers() -> None:
    """Its length says nothing about the answer behind it."""
    reader = fed(b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\nLink: x\r\n\r\n")
    assert (reader.has_head, reader.complete) == (False, False)
    reader.feed(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nrest")
    assert (reader.status, reader.headers, reader.parts, reader.by_close) == (200, [(b"a", b"b")], [b"rest"], True)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"SSH-2.0-x\r\n",
    ],
    ids=["101", "gzip", "two lengths", "length and chunks", "chunk size", "another protocol"],
)
def test_bytes_that_are_not_an_answer_raise(answer: bytes) -> None:
    """The connection cannot go on."""
    with pytest.raises(NOT_HTTP):
        fed(answer)


def test_a_second_answer_is_excess() -> None:
    """The first answer stands as it is."""
    reader = fed(PLAIN + PLAIN[:20])
    assert (reader.complete, reader.excess, reader.parts) == (True, True, [b"hello"])


def test_at_chunk_only_where_a_chunk_has_just_ended() -> None:
    """However the reads are cut: not in a size line, in the data, in the line end behind them, or after the end."""
    head, chunks = (
        CHUNKED[: CHUNKED.index(b"5\r\n")],
        (b"5\r\nhello\r\n", b"2;x\r\n\r\n\r\n", b"1\r\n!\r\n", b"0\r\n\r\n"),
    )
    stream = b"".join(chunks)
    ends = {len(b"".join(chunks[:count])) for count in (1, 2, 3)}
    for first in range(len(stream) + 1):
        for second in range(first + 1, len(stream) + 1):
            reader = fed(head + stream[:first], stream[first:second])
            assert reader.at_chunk == (second in ends), (stream[:first], stream[first:second])


def test_size_lines_are_those_of_whole_chunks() -> None:
    """The parser takes a read that begins so and ends with CR LF as one chunk, and expects the next one."""
    for length in (6, 7, 20, 21, 22, 261, 262, 263, 264, SHORT_CHUNK - 1):
        line = SIZE_LINES[length]
        data = b"x" * (length - len(line) - 2)
        reader = fed(CHUNKED[: CHUNKED.index(b"5\r\n")])
        if line == b"\0":  # between the lengths of two sizes, of which one has a digit more
            assert length in (21, 262)
            continue
        reader.feed(line + data + b"\r\n")
        assert (b"".join(reader.parts), reader.at_chunk) == (data, True)


def test_a_closed_reader_leaves_no_cycle() -> None:
    """The parser refers back to it, and TLS buffers must not wait for the collector."""
    gc.collect()
    gc.disable()
    try:
        reader = Referable()
        gone = weakref.ref(reader)
        reader.close()
        del reader
        assert gone() is None
    finally:
        gc.enable()
