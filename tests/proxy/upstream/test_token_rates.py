"""aiaas.proxy.upstream.token_rates: estimate the tokens of a cut stream from earlier streams."""

from __future__ import annotations

import random
from math import ceil

import pytest

from aiaas.openai import paths
from aiaas.openai.peek import peek
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.upstream.token_rates import LEAST_TOKENS, MOST_KINDS, REMEMBERED, EventRates, Kind

CHAT: Kind = ("vllm", "m", paths.CHAT)
BODY = b'{"model":"m","stream":true%b}'


def events_of(tokens: int, interval: int) -> int:
    """The events of one choice: its first token comes at once (vLLM's output_processor.py)."""
    return 1 + ceil((tokens - 1) / interval)


def estimate(rates: EventRates, events: int, *, kind: Kind = CHAT, choices: int = 1, text: float = 0.0) -> int:
    """The key of a stream without text, or with this many bytes in an event."""
    return rates.tokens(kind, events, choices, least=1, text=text)


def learn(rates: EventRates, tokens: int, events: int, *, kind: Kind = CHAT, choices: int = 1, text: float = 0) -> None:
    """Learn from a stream without text, or with this many bytes in an event."""
    rates.learn(kind, tokens, events, choices, text=text)


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("interval", [1, 2, 5, 8, 20])
def test_cut_stream_is_within_a_tenth_of_what_was_streamed(interval: int, choices: int) -> None:
    """Wherever the stream is cut, after streams of many lengths."""
    rates, dice = EventRates(), random.Random(interval)
    for _ in range(60):
        tokens = dice.randint(5, 400)
        learn(rates, tokens * choices, events_of(tokens, interval) * choices, choices=choices)
    for events in (1, 2, 5, 20, 60):
        streamed = choices * (1 + (events - 1) * interval)
        assert estimate(rates, events * choices, choices=choices) == pytest.approx(streamed, rel=0.1)


def test_one_token_an_event_is_exact() -> None:
    """Whatever the lengths of the streams before."""
    rates = EventRates()
    for tokens in (16, 40, 400):
        learn(rates, tokens, tokens)
    assert [estimate(rates, events) for events in (0, 1, 2, 7, 1000)] == [0, 1, 2, 7, 1000]


def test_end_of_sequence_without_an_event_misleads_little() -> None:
    """On /v1/messages that token has none: short answers would teach two tokens an event."""
    rates = EventRates()
    for _ in range(100):
        learn(rates, 3, 2)
    assert estimate(rates, 100) == 100
    for tokens in (LEAST_TOKENS, 30, 60, 100):
        learn(rates, tokens, tokens - 1)
    assert 100 <= estimate(rates, 100) <= 105


def test_streams_without_text_mislead_nobody() -> None:
    """A model that wrote special tokens, which have no events on /v1/responses, in every third stream."""
    rates = EventRates()
    for number in range(30):
        learn(rates, 120, 38 if number % 3 == 0 else 117)
    assert estimate(rates, 500) == pytest.approx(500, rel=0.1)


def test_new_kind_goes_by_its_backend() -> None:
    """`--stream-interval` is the server's; another server knows nothing of it."""
    rates = EventRates()
    learn(rates, 400, 51)
    assert estimate(rates, 11, kind=("vllm", "other", paths.MESSAGES)) == pytest.approx(81, abs=2)
    assert estimate(rates, 11, kind=("elsewhere", "m", paths.CHAT)) == 11
    learn(rates, 400, 400, kind=("vllm", "other", paths.MESSAGES))
    assert estimate(rates, 11, kind=("vllm", "other", paths.MESSAGES)) == 11


def test_changed_options_are_known_after_some_streams() -> None:
    """A server was started anew without `--stream-interval`."""
    rates = EventRates()
    for _ in range(1000):
        learn(rates, 400, 51)
    for _ in range(REMEMBERED // 2 + 1):
        learn(rates, 400, 400)
    assert estimate(rates, 101) == 101


def test_memory_is_bounded() -> None:
    """The oldest kinds go, the newest stay."""
    rates = EventRates()
    for number in range(3 * MOST_KINDS):
        learn(rates, 400, 51, kind=("b", str(number), paths.CHAT))
    assert len(rates._rates) <= MOST_KINDS
    assert ("b", str(3 * MOST_KINDS - 1), paths.CHAT) in rates._rates


@pytest.mark.parametrize(
    ("merged", "text", "rate"),
    [(1, 5.0, 1), (2, 10.0, 2), (4, 20.0, 4), (9, 45.0, 9)],
    ids=["alone", "by two", "by four", "by nine"],
)
def test_merged_tokens_of_a_busy_server_are_seen_by_the_text(merged: int, text: float, rate: int) -> None:
    """Whether earlier streams merged as many tokens, or fewer, or more; `text` is 5 bytes a token."""
    rates = EventRates()
    for tokens in (120, 240, 360):
        for others in {1, 3, 18, merged}:
            learn(rates, tokens, events_of(tokens, others), text=5.0 * others)
    assert estimate(rates, 100, text=text) == pytest.approx(100 * rate, rel=0.1)


@pytest.mark.parametrize("interval", [1, 8])
def test_other_texts_change_nothing(interval: int) -> None:
    """Code, Thai and English have from 2 to 6 bytes a token; the server's interval is what counts."""
    rates = EventRates()
    for tokens in (100, 200, 300):
        learn(rates, tokens, events_of(tokens, interval), text=4.5 * interval)
    for size in (0.5, 2.0, 3.0, 4.5, 6.0, 12.0, 40.0):
        streamed = 1 + 100 * interval
        assert estimate(rates, 101, text=size * interval) == pytest.approx(streamed, rel=0.06)


@pytest.mark.parametrize(
    ("events", "text", "tokens"),
    [(0, 0, 0), (100, 4.5, 100), (100, 12, 100), (90, 20, 90), (61, 40, 481), (7, 100, 7)],
    ids=["nothing", "English", "a language of long letters", "indented code", "eight tokens an event", "too few"],
)
def test_before_anything_was_learnt_the_text_tells(events: int, text: float, tokens: int) -> None:
    """Only where the text surely shows many tokens in an event."""
    assert estimate(EventRates(), events, text=text) == tokens


def record(events: int, output: int | None = None) -> Record:
    """A stream's record."""
    return Record(
        request_id="x", path=paths.CHAT, started=0.0, client_address="c", backend="vllm", streamed=True,
        events=events, output_tokens=output,
    )  # fmt: skip


def test_interval_of_the_request_is_its_own() -> None:
    """A client that asks for 50 tokens an event and leaves pays for them, and teaches nothing about others."""
    rates = EventRates()
    own = peek(BODY % b',"stream_interval":50', paths.CHAT)
    plain = peek(BODY % b"", paths.CHAT)
    assert rates.streamed(record(9, 400), own, "m") == 0
    assert rates.streamed(record(11), plain, "m") == 11
    assert rates.streamed(record(11), own, "m") == 501
    rates.streamed(record(51, 400), plain, "m")
    assert rates.streamed(record(11), own, "m") == 501
    assert rates.streamed(record(11), peek(BODY % b',"stream_interval":2', paths.CHAT), "m") in (80, 81, 82)


def test_bound_of_the_request_holds() -> None:
    """No stream has had more tokens than vLLM would give."""
    asked = peek(BODY % b',"stream_interval":999999999,"max_tokens":30,"n":2', paths.CHAT)
    assert EventRates().streamed(record(9), asked, "m") == 60


def test_answer_other_than_a_stream_has_streamed_nothing() -> None:
    """Nor does it teach the estimate anything."""
    whole = record(0, 400)
    whole.streamed = False
    assert EventRates().streamed(whole, peek(BODY % b"", paths.CHAT), "m") == 0
