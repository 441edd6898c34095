"""The events of chats and completions are read as vLLM writes them, and in no other way."""

from __future__ import annotations

import msgspec
import pytest

from aiaas.openai.joint import DiffersError
from aiaas.openai.paths import CHAT, COMPLETIONS
from aiaas.openai.replay_events import event_of, parts_of

CALLS = b'[{"index":1,"id":"c","type":"function","function":{"name":"f","arguments":"{"}}]'


def test_parts_of_a_chat_are_in_the_order_of_generation() -> None:
    """Thinking, content, the calls; then the lists of tokens, which go beside the texts."""
    delta = b'{"content":"b","tool_calls":%b,"reasoning":"a"}' % CALLS
    _, (choice,) = event_of(b'{"choices":[{"index":0,"delta":%b,"token_ids":[5]}]}' % delta, CHAT)
    assert [(part.name, part.piece, part.paths) for part in parts_of(choice)] == [
        ("reasoning", "a", (("delta", "reasoning"),)),
        ("content", "b", (("delta", "content"),)),
        ("name of call 1", "f", (("delta", "tool_calls", 0, "function", "name"),)),
        ("arguments of call 1", "{", (("delta", "tool_calls", 0, "function", "arguments"),)),
        ("token_ids", [5], (("token_ids",),)),
    ]


def test_lists_of_one_length_belong_together() -> None:
    """The tokens of a completion, and what is written of each."""
    lists = b'{"tokens":["a"],"token_logprobs":[-1.5],"top_logprobs":null,"text_offset":[0]}'
    _, (choice,) = event_of(b'{"choices":[{"index":0,"text":"","logprobs":%b}]}' % lists, COMPLETIONS)
    (part,) = parts_of(choice)
    assert part.paths == (("logprobs", "tokens"), ("logprobs", "token_logprobs"), ("logprobs", "text_offset"))
    _, (choice,) = event_of(
        b'{"choices":[{"index":0,"text":"","logprobs":%b}]}' % lists.replace(b"[0]", b"[]"), COMPLETIONS
    )
    with pytest.raises(DiffersError):
        list(parts_of(choice))


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(b'{"index":0,"delta":{"annotations":[]}}', id="unknown field of a delta"),
        pytest.param(b'{"index":0,"delta":{},"matched_stop":1}', id="unknown field of a choice"),
        pytest.param(b'{"index":0,"delta":{"tool_calls":[{"index":0,"custom":{}}]}}', id="other kind of call"),
        pytest.param(b'{"index":0,"delta":{"content":[{"text":"a"}]}}', id="content as a list"),
        pytest.param(b'{"index":0}', id="no delta"),
        pytest.param(b'{"index":0,"delta":{},"routed_experts":"x"}', id="experts"),
    ],
)
def test_unknown_part_of_an_answer_is_not_read(choice: bytes) -> None:
    """It may be a part of the answer."""
    with pytest.raises(msgspec.DecodeError):
        event_of(b'{"choices":[%b]}' % choice, CHAT)
