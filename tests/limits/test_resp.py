"""RESP2: commands as bytes, replies however they are cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.limits.resp import RedisReplyError, Replies, Reply, RespError, command


def test_a_command_is_an_array_of_bulk_strings() -> None:
    """Lengths count bytes, and numbers read back as they were."""
    assert command(("SET", "k\u00e9y", b"\r\n", 7, 0.1)) == (
        b"*5\r\n$3\r\nSET\r\n$4\r\nk\xc3\xa9y\r\n$2\r\n\r\n\r\n$1\r\n7\r\n$3\r\n0.1\r\n"
    )


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        pytest.param(b"+OK\r\n", b"OK", id="status"),
        pytest.param(b":-12\r\n", -12, id="number"),
        pytest.param(b"$6\r\na\r\nb\r\n\r\n", b"a\r\nb\r\n", id="text with line ends"),
        pytest.param(b"$0\r\n\r\n", b"", id="empty text"),
        pytest.param(b"$-1\r\n", None, id="nil"),
        pytest.param(b"*-1\r\n", None, id="nil array"),
        pytest.param(b"*3\r\n:1\r\n*1\r\n+a\r\n$-1\r\n", [1, [b"a"], None], id="array in an array"),
        pytest.param(b"*0\r\n", [], id="empty array"),
    ],
)
def test_replies_of_every_form(text: bytes, reply: Reply) -> None:
    """Whole, and byte by byte."""
    assert Replies().feed(text) == [reply]
    replies = Replies()
    found = [each for index in range(len(text)) for each in replies.feed(text[index : index + 1])]
    assert found == [reply]


def test_an_error_is_a_value_with_a_code() -> None:
    """An error does not end the replies behind it."""
    error, after = Replies().feed(b"-NOSCRIPT No matching script.\r\n:1\r\n")
    assert isinstance(error, RedisReplyError)
    assert (error.code, str(error), after) == ("NOSCRIPT", "NOSCRIPT No matching script.", 1)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.lists(st.integers(1, 30), max_size=20))
def test_replies_do_not_depend_on_how_they_are_cut(texts: list[bytes], cuts: list[int]) -> None:
    """Any split gives the same replies in the same order."""
    data = b"".join(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)
    replies, found = Replies(), []
    for cut in cuts:
        found += replies.feed(data[:cut])
        data = data[cut:]
    assert found + replies.feed(data) == texts


@pytest.mark.parametrize(
    "text",
    [b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x01", b"$x\r\n", b"?", b"+" + b"a" * 70_000],
    ids=["HTTP", "TLS", "no length", "unknown form", "endless line"],
)
def test_invalid_reply_is_refused(text: bytes) -> None:
    """Another service listens there; waiting for more would never end."""
    with pytest.raises(RespError, match="neither Redis nor Valkey"):
        Replies().feed(text)


def seconds_to_parse(items: int) -> float:
    """CPU for one array of `count` texts, in pieces of 64 KiB; the best of three, since others use this machine."""
    whole = b"*%d\r\n" % items + b"$24\r\naaaaaaaaaaaaaaaaaaaaaaaa\r\n" * items
    times = []
    for _ in range(3):
        replies, began = Replies(), time.process_time()
        found = [one for at in range(0, len(whole), 65536) for one in replies.feed(whole[at : at + 65536])]
        times.append(time.process_time() - began)
        assert [len(one) for one in found if isinstance(one, list)] == [items]
    return min(times)


def test_a_large_reply_costs_by_its_size_alone() -> None:
    """Four times the items take about four times as long; 16 times where each piece parses all of it again."""
    assert seconds_to_parse(160_000) < 8 * seconds_to_parse(40_000)


def test_a_large_text_is_not_copied_with_each_piece() -> None:
    """The same for one text of many megabytes."""
    replies, size = Replies(), 8 * 1024**2
    replies.feed(b"$%d\r\n" % size)
    for _ in range(size // 65536):
        assert replies.feed(b"a" * 65536) == []
    assert replies.feed(b"\r\n:1\r\n") == [b"a" * size, 1]
