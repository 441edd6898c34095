"""Events are cut the same however the bytes arrive, and no byte is lost."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiaas.errors import UpstreamError
from aiaas.openai.sse import LARGE_EVENT, EventSplitter, after_last_event, count_events, event_data


def split(chunks: list[bytes], limit: int = 1000) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter(limit)
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.rest


@pytest.mark.parametrize(
    ("chunks", "events", "rest"),
    [
        pytest.param([b"data: a\n\n"], [b"data: a\n\n"], b"", id="one in one"),
        pytest.param([b"data: a\n\ndata: b\n\n"], [b"data: a\n\n", b"data: b\n\n"], b"", id="two in one"),
        pytest.param([b"data: a\n", b"\n"], [b"data: a\n\n"], b"", id="cut in the empty line"),
        pytest.param([b"da", b"ta: a\n\nda"], [b"data: a\n\n"], b"da", id="rest"),
        pytest.param([b"data: a\r\n\r\n"], [b"data: a\r\n\r\n"], b"", id="CR LF"),
        pytest.param([b"data: a\r\rdata"], [b"data: a\r\r"], b"data", id="CR"),
        pytest.param([b"data: a\r\r"], [], b"data: a\r\r", id="CR may have an LF to come"),
        pytest.param([b"data: a\r", b"\n\r", b"\n"], [b"data: a\r\n\r\n"], b"", id="CR LF cut everywhere"),
        pytest.param([b"data: a\n\r\ndata: b\r\n\n"], [b"data: a\n\r\n", b"data: b\r\n\n"], b"", id="mixed"),
        pytest.param([b"data: a\r\n"], [], b"data: a\r\n", id="CR LF is one end of line"),
        pytest.param([b": ping\n\n"], [b": ping\n\n"], b"", id="comment"),
        pytest.param([b"\n"], [], b"\n", id="one byte"),
        pytest.param([b"data: a\n\n\n"], [b"data: a\n\n"], b"\n", id="three ends"),
        pytest.param([b""], [], b"", id="nothing"),
    ],
)
def test_events_end_with_an_empty_line(chunks: list[bytes], events: list[bytes], rest: bytes) -> None:
    """LF, CR LF and CR all end a line, and an empty line ends an event."""
    assert split(chunks) == (events, rest)


@given(st.lists(st.sampled_from([b"data: x", b"a", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"])), st.data())
@example([b"a", b"\r", b"\r", b"\n"], None)
def test_any_cut_gives_the_same_events(parts: list[bytes], data: st.DataObject | None) -> None:
    """Wherever the stream is cut, the same events come out, and joined they are the stream."""
    stream = b"".join(parts)
    size = len(stream)
    cuts = range(size + 1) if data is None else sorted(data.draw(st.lists(st.integers(0, size))))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    whole = split([stream])
    assert split(chunks) == whole
    assert b"".join(whole[0]) + whole[1] == stream


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("end", [b"", b"\n\n", b"\r\n\r\n"])
def test_a_long_event_raises_in_any_cut(size: int, end: bytes) -> None:
    """An event beyond the limit is an upstream error, whether it ends or not."""
    stream = b"data: " + b"x" * 30 + end
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert split(chunks, limit=len(stream))[1] == stream.removesuffix(b"\n\n").removesuffix(b"\r\n\r\n") * (not end)
    with pytest.raises(UpstreamError) as caught:
        split(chunks, limit=len(stream) - 1)
    assert caught.value.status == 502


def test_a_limit_holds_for_each_event_not_for_the_chunk() -> None:
    """A large read of many small events is fine."""
    assert len(split([b"data: x\n\n" * 1000], limit=10)[0]) == 1000


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a": 1}\n\n', b'{"a": 1}'),
        (b"data:a\n\n", b"a"),
        (b"data:  a\r\n\r\n", b" a"),
        (b"event: x\ndata: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\rdata: b\r\r", b"a\nb"),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"data\n\n", b""),
        (b"data: \n\n", b""),
        (b": ping\n\n", None),
        (b"event: x\n\n", None),
        (b"database: x\n\n", None),
        (b"", None),
    ],
)
def test_the_data_of_an_event_is_its_data_lines(event: bytes, data: bytes | None) -> None:
    """Joined by LF, each without one leading blank."""
    assert event_data(event) == data


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\n\n", b"\r\n", b"event: y\n"]), max_size=12), st.booleans())
def test_events_are_counted_as_by_one_search(parts: list[bytes], large: bool) -> None:
    """A large event is counted line by line, with the same result."""
    events = b"".join(parts) + (b"w" * LARGE_EVENT if large else b"") + b"".join(reversed(parts)) + b"\n\n"
    assert count_events(events) == events.count(b"\n\n")


@given(st.lists(st.sampled_from([b"x", b"\n", b"\r", b"\n\n", b"\r\n\r\n", b"w" * 50]), min_size=1, max_size=20))
def test_the_last_end_is_found_however_the_reads_fall(parts: list[bytes]) -> None:
    """Also where the end of a line and an empty line come in two reads."""
    tail, whole = bytearray(), b"".join(parts)
    ends = [(whole.rfind(end), len(end)) for end in (b"\n\n", b"\n\r\n", b"\r\r")]
    last = 0
    for part in parts:
        seen = max(0, len(tail) - 3)
        tail += part
        last = max(last, after_last_event(tail, seen))
    assert last == max((at + size for at, size in ends if at >= 0), default=0)
