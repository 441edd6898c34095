"""aiaas.proxy.upstream.kept: the text of open streams, within a budget."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.upstream.kept import JOINED_AT, STREAM_MOST, KeptMemory, KeptStream

ORDINARY = 'data: {"id":"chatcmpl-1","choices":[{"index":%d,"delta":{"%s":"%s"},"finish_reason":null}]}\n\n'
TYPED = 'event: x.delta\ndata: {"delta":"%s","sequence_number":%d,"type":"x.delta"}\n\n'

events = st.one_of(
    st.builds(
        lambda index, field, text: (ORDINARY % (index, field, text)).encode(),
        st.integers(0, 1),
        st.sampled_from(["content", "reasoning"]),
        st.text("ab\\n é", max_size=6),
    ),
    st.builds(lambda text, number: (TYPED % (text, number)).encode(), st.text("ab", max_size=6), st.integers(0, 99)),
    st.binary(min_size=1, max_size=20).map(lambda raw: b"data: " + raw.replace(b"\n", b"") + b"\n\n"),
)


def took(kept: KeptStream, event: bytes) -> bool:
    """As the relay keeps the data of one chunk."""
    data = event + b"\r\n"
    if data.startswith(kept.head) and data.endswith(kept.tail) and len(data) >= kept.least:
        kept.fresh.append(data[kept.skip : kept.drop])
        return len(kept.fresh) < JOINED_AT or kept.join()
    return kept.begin(event)


@given(st.lists(events, max_size=30), st.lists(st.booleans(), min_size=30, max_size=30))
def test_every_event_comes_back(stream: list[bytes], by_chunk: list[bool]) -> None:
    """In order, however they begin and end, and whichever way they came; comments do not."""
    kept = KeptStream(KeptMemory(1 << 20))
    for event, chunk in zip(stream, by_chunk, strict=False):
        assert took(kept, event) if chunk else kept.add(event)
        assert kept.add(b": ping\n\n")
    assert kept.whole() == b"".join(stream)


@pytest.mark.parametrize("by_chunk", [True, False])
def test_a_stream_of_4000_tokens_takes_little(by_chunk: bool) -> None:
    """Some 40 KiB, as docs/resume.md says."""
    memory = KeptMemory(1 << 20)
    kept = KeptStream(memory)
    dice = random.Random(1)
    assert kept.add(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
    for _ in range(4000):
        event = (ORDINARY % (0, "content", f" {dice.choice('abcdefgh')}{dice.randrange(300)}")).encode()
        assert took(kept, event) if by_chunk else kept.add(event)
    assert memory.used < 48 * 1024


def test_a_stream_beyond_the_budget_is_forgotten() -> None:
    """The memory that it had is free for others, whose text stays."""
    memory = KeptMemory(100_000)
    noise = random.Random(1).randbytes
    one, other = KeptStream(memory), KeptStream(memory)
    assert other.add(b"data: " + noise(40_000))
    assert one.add(b"data: " + noise(50_000))
    assert not one.add(b"other: " + noise(50_000))
    assert one.whole() == b""
    assert 40_000 < memory.used < 41_000
    other.forget()
    assert memory.used == 0


def test_one_stream_may_not_take_everything() -> None:
    """Its own bound comes before that of the process."""
    kept = KeptStream(KeptMemory(1 << 30))
    assert not kept.add(b"x" * (STREAM_MOST + 1))


def test_text_is_not_in_the_repr() -> None:
    """A crash report must not show what somebody wrote."""
    kept = KeptStream(KeptMemory(1000))
    assert kept.add(b"data: secret\n\n")
    assert "secret" not in repr(kept)
