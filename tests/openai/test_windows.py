"""Search by windows: the results are those of one search, wherever a match lies."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.openai import windows
from aiaas.openai.windows import WINDOW

NEAR = st.integers(-8, 8)


def large(places: list[int], what: bytes) -> bytes:
    """Two and a half windows of other bytes, with `what` at these distances from the first window's end."""
    body = bytearray(b"-" * (WINDOW * 5 // 2))
    for place in places:
        body[WINDOW + place : WINDOW + place + len(what)] = what
    return bytes(body)


@given(st.lists(NEAR, max_size=3), st.integers(0, WINDOW + 10), st.none() | st.integers(WINDOW - 10, 2 * WINDOW))
def test_finds_what_one_search_finds(places: list[int], start: int, end: int | None) -> None:
    """A match across the border of two windows is found, and none beyond the end."""
    body = large(places, b"needle")
    assert windows.find_in(body, b"needle", start, end) == body.find(
        b"needle", start, len(body) if end is None else end
    )


@given(st.lists(NEAR, max_size=5), st.integers(0, WINDOW + 10), st.none() | st.integers(WINDOW - 10, 2 * WINDOW))
def test_counts_each_byte_once(places: list[int], start: int, end: int | None) -> None:
    """No byte is counted twice at the border of two windows, and none left out."""
    body = large(places, b"[")
    assert windows.count_in(body, b"[", start, end) == body.count(b"[", start, len(body) if end is None else end)


@given(st.lists(NEAR, max_size=3), st.integers(0, WINDOW + 10))
def test_matches_what_one_search_matches(places: list[int], start: int) -> None:
    """A pattern's match across the border of two windows is found whole."""
    body, pattern = large(places, b"ne12le"), re.compile(rb"ne[0-9]{2}le")
    found, expected = windows.search_in(pattern, body, start, 6), pattern.search(body, start)
    assert (found and found.span()) == (expected and expected.span())


@pytest.mark.parametrize("body", [b"", b"x"])
def test_small_bodies_hold_nothing(body: bytes) -> None:
    """An empty body and one that is shorter than what is searched give no match."""
    assert windows.find_in(body, b"needle") == -1
    assert windows.count_in(body, b"[") == 0
    assert windows.search_in(re.compile(rb"needle"), body, 0, 6) is None
