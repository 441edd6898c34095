"""aiaas.proxy.upstream.kept: the text of open streams, compressed, within a budget."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.upstream.kept import SQUEEZED_AT, STREAM_MOST, KeptMemory, KeptStream

EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'


@given(st.lists(st.binary(max_size=50)), st.lists(st.integers(0, 40)))
def test_everything_comes_back_wherever_it_was_squeezed(reads: list[bytes], at: list[int]) -> None:
    """Compressed or fresh, in the order that it came in."""
    kept = KeptStream(KeptMemory(1 << 20))
    for number, read in enumerate(reads):
        kept.fresh.append(read)
        if number in at:
            assert kept.squeeze()
    assert kept.whole() == b"".join(reads)


def test_a_stream_of_4000_tokens_takes_little() -> None:
    """About 33 KiB, as docs/resume.md says."""
    memory = KeptMemory(1 << 20)
    kept = KeptStream(memory)
    dice = random.Random(1)
    for _ in range(4000):
        word = f" {dice.choice('abcdefgh')}{dice.randrange(300)}".encode()
        kept.fresh.append(EVENT.replace(b" word", word))
        if len(kept.fresh) >= SQUEEZED_AT:
            assert kept.squeeze()
    assert memory.used < 40 * 1024


def test_a_stream_beyond_the_budget_is_forgotten() -> None:
    """The memory that it had is free for others, whose text stays."""
    memory = KeptMemory(100_000)
    noise = random.Random(1).randbytes
    one, other = KeptStream(memory), KeptStream(memory)
    other.fresh.append(noise(40_000))
    assert other.squeeze()
    one.fresh.append(noise(50_000))
    assert one.squeeze()
    one.fresh.append(noise(50_000))
    assert not one.squeeze()
    assert (one.whole(), memory.used) == (b"", other._size)
    other.forget()
    assert memory.used == 0


def test_one_stream_may_not_take_everything() -> None:
    """Its own bound comes before that of the process."""
    kept = KeptStream(KeptMemory(1 << 30))
    kept.fresh.append(random.Random(1).randbytes(STREAM_MOST + 1))
    assert not kept.squeeze()


def test_text_is_not_in_the_repr() -> None:
    """A crash report must not show what somebody wrote."""
    kept = KeptStream(KeptMemory(100))
    kept.fresh.append(b"secret")
    assert "secret" not in repr(kept)
