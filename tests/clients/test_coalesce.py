"""Streams that were cut differently compare as equal; streams with other content do not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.coalesce import coalesced

STREAMS = {
    "responses": lambda text, number: {"type": "delta", "delta": text, "sequence_number": number},
    "messages": lambda text, number: {"type": "delta", "delta": {"type": "text_delta", "text": text}, "index": 0},
    "arguments": lambda text, number: {"type": "delta", "delta": {"partial_json": text}, "index": 0},
    "chat": lambda text, number: {"choices": [{"delta": {"content": text}, "finish_reason": None}]},
    "completions": lambda text, number: {"choices": [{"text": text, "finish_reason": None}]},
}


@pytest.mark.parametrize("event", STREAMS.values(), ids=STREAMS.keys())
def test_text_in_pieces_is_joined(event: Any) -> None:
    """One event of two tokens, or two events of one."""
    end = {"type": "end"}
    apart = coalesced([event("a", 0), event("b", 1), end])
    assert apart == coalesced([event("ab", 0), end])
    assert apart != coalesced([event("ac", 0), end])
    assert len(apart) == 2


def test_events_that_differ_otherwise_stay_apart() -> None:
    """Two blocks with the same kind of text are two."""
    one, two = {"delta": {"text": "a"}, "index": 0}, {"delta": {"text": "a"}, "index": 1}
    assert coalesced([one, two]) == [one, two]


def test_given_events_are_not_changed() -> None:
    """The outcomes can be shown as they came."""
    events = [{"delta": "a"}, {"delta": "b"}]
    coalesced(events)
    assert events == [{"delta": "a"}, {"delta": "b"}]
