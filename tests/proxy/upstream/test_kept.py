"""aiaas.proxy.upstream.kept: the text of open streams, packed, within a budget."""

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
    st.just(b": ping\n\n"),
)


@given(st.lists(st.lists(events, min_size=1, max_size=4).map(b"".join), max_size=30), st.sets(st.integers(0, 29)))
def test_everything_comes_back(reads: list[bytes], joined: set[int]) -> None:
    """In order, however the events begin and end, and wherever they were packed."""
    kept = KeptStream(KeptMemory(1 << 20))
    for number, read in enumerate(reads):
        kept.fresh.append(read)
        if number in joined:
            assert kept.join()
    assert kept.whole() == b"".join(reads)


@pytest.mark.parametrize("spread", [300, 1], ids=["many words", "one word again and again"])
@pytest.mark.parametrize("at_once", [1, 5])
def test_a_stream_of_4000_tokens_takes_little(at_once: int, spread: int) -> None:
    """Less than 48 KiB, as docs/resume.md says, however many events a read has."""
    memory = KeptMemory(1 << 20)
    kept = KeptStream(memory)
    dice = random.Random(1)
    kept.fresh.append(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
    words = [f" word{dice.randrange(spread)}" for _ in range(4000)]
    for at in range(0, len(words), at_once):
        told = [ORDINARY % (0, "content", word) for word in words[at : at + at_once]]
        kept.fresh.append("".join(told).encode())
        if len(kept.fresh) >= JOINED_AT:
            assert kept.join()
    assert memory.used < 48 * 1024


def test_a_stream_beyond_the_budget_is_forgotten() -> None:
    """The memory that it had is free for others, whose text stays."""
    memory = KeptMemory(100_000)
    noise = random.Random(1).randbytes
    one, other = KeptStream(memory), KeptStream(memory)
    other.fresh.append(noise(40_000))
    assert other.join()
    one.fresh.append(noise(50_000))
    assert one.join()
    one.fresh.append(noise(50_000))
    assert not one.join()
    assert one.whole() == b""
    assert 40_000 < memory.used < 41_000
    other.forget()
    assert memory.used == 0


def test_one_stream_may_not_take_everything() -> None:
    """Its own bound comes before that of the process."""
    kept = KeptStream(KeptMemory(1 << 30))
    kept.fresh.append(random.Random(1).randbytes(STREAM_MOST + 1))
    assert not kept.join()


def test_text_is_not_in_the_repr() -> None:
    """A crash report must not show what somebody wrote."""
    kept = KeptStream(KeptMemory(1000))
    kept.fresh.append(b"data: secret\n\n")
    assert "secret" not in repr(kept)
