"""Streams as bytes, against transcripts of a real vLLM with the simulator's name and text put in."""

from __future__ import annotations

from typing import Literal

import pytest

from aiaas.simulator.answers import Stamp
from aiaas.simulator.generate import SimulatedChoice
from aiaas.simulator.requests import ApiFamily, GenerationJob
from aiaas.simulator.toolevents import make_writer

ECHO = {
    "instructions": None,
    "metadata": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_output_tokens": 3,
    "user": None,
}
HEAD = b'data: {"id":"i","object":"chat.completion.chunk","created":9,"model":"m","choices":['
SIGNED = b',"system_fingerprint":"aiaas-simulator-0.32.0"'


def events(family: ApiFamily, *deltas: tuple[str, ...], **more: object) -> list[bytes]:
    """All events of a stream of choices."""
    choices = tuple(SimulatedChoice(texts, "length") for texts in deltas)
    job = GenerationJob(family, True, (18,), choices, 0, n=len(choices), echo=ECHO, **more)  # type: ignore[arg-type]
    writer = make_writer(Stamp("i", 9, "m"), job, "msg_1")
    first = writer.first()
    steps = [event for k in range(max(map(len, deltas))) for event in writer.step(k)]
    return [*first, *steps, *writer.last()]


def test_a_chat_stream_is_transcript_12() -> None:
    """Role, tokens, the last with its reason and the fingerprint, [DONE]."""
    assert events("chat", ("#", "\n")) == [
        HEAD + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
        b'"prompt_token_ids":null,"prompt_text":null}\n\n',
        HEAD + b'{"index":0,"delta":{"content":"#"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n',
        HEAD + b'{"index":0,"delta":{"content":"\\n"},"logprobs":null,"finish_reason":"length","stop_reason":null,'
        b'"token_ids":null}]' + SIGNED + b"}\n\n",
        b"data: [DONE]\n\n",
    ]


def test_usage_at_the_end_is_transcript_13() -> None:
    """The fingerprint moves to the usage event."""
    *_, last_token, usage, done = events("chat", ("#",) * 5, usage="end")
    assert last_token.endswith(b'"finish_reason":"length","stop_reason":null,"token_ids":null}]}\n\n')
    tokens = b'"usage":{"prompt_tokens":18,"total_tokens":23,"completion_tokens":5}'
    assert usage == HEAD + b"]," + tokens + SIGNED + b"}\n\n"
    assert done == b"data: [DONE]\n\n"


def test_usage_on_every_event_is_transcript_14() -> None:
    """With details on the way and without them at the end."""
    role, first, *_ = events("chat", ("#",) * 5, usage="every")
    zero = b'"usage":{"prompt_tokens":18,"total_tokens":18,"completion_tokens":0,"completion_tokens_details":null}'
    one = b'"usage":{"prompt_tokens":18,"total_tokens":19,"completion_tokens":1,"completion_tokens_details":null}'
    assert role.endswith(b"]," + zero + b',"prompt_token_ids":null,"prompt_text":null}\n\n')
    assert first.endswith(b"]," + one + b"}\n\n")


def test_a_completion_stream_is_transcript_21() -> None:
    """No role, and stop_reason on every event."""
    first, *_ = events("completions", ("self", ","))
    assert first == (
        b'data: {"id":"i","object":"text_completion","created":9,"model":"m","choices":[{"index":0,"text":"self",'
        b'"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}\n\n'
    )


def test_a_message_stream_is_transcript_25() -> None:
    """Named events in Anthropic's order, no [DONE]."""
    assert events("messages", ("a", " b")) == [
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"i","type":"message","role":"assistant",'
        b'"content":[],"model":"m","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":18,'
        b'"output_tokens":0}}}\n\n',
        b'event: content_block_start\ndata: {"type":"content_block_start","content_block":{"type":"text","text":""},'
        b'"index":0}\n\n',
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"a"},'
        b'"index":0}\n\n',
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":" b"},'
        b'"index":0}\n\n',
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens",'
        b'"stop_sequence":null},"usage":{"input_tokens":18,"output_tokens":2}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ]


def test_a_response_stream_numbers_its_events() -> None:
    """From 0, without a gap, as in transcript 23; the delta to the byte."""
    made = events("responses", ("def", " use"))
    assert made[4] == (
        b'event: response.output_text.delta\ndata: {"content_index":0,"delta":"def","item_id":"msg_1","logprobs":[],'
        b'"output_index":0,"sequence_number":4,"type":"response.output_text.delta"}\n\n'
    )
    for number, event in enumerate(made):
        assert b'"sequence_number":%d,' % number in event


@pytest.mark.parametrize("family", ["chat", "completions", "responses", "messages"])
def test_every_event_ends_itself(family: ApiFamily) -> None:
    """One blank line, at its end, by which clients split."""
    for event in events(family, ("a\n\n", ' "b"', "")):
        assert event.endswith(b"\n\n")
        assert event.count(b"\n\n") == 1


def test_choices_of_different_lengths_end_by_themselves() -> None:
    """The shorter one is silent afterwards."""
    made = events("chat", ("a",), ("b", "c", "d"))
    assert [b'"finish_reason":"length"' in event for event in made[2:-1]] == [True, False, False, True]


def aborted(family: ApiFamily, k: int, *deltas: tuple[str, ...], usage: Literal["none", "end"] = "none") -> list[bytes]:
    """The events that end a stream of choices in place of token k and of everything after it."""
    choices = tuple(SimulatedChoice(texts, "length") for texts in deltas)
    writer = make_writer(
        Stamp("i", 9, "m"), GenerationJob(family, True, (18,), choices, 0, usage, len(choices)), "msg_1"
    )
    ended = writer.abort(k)
    assert ended is not None
    return ended


def test_an_aborted_chat_ends_with_a_token_and_its_reason() -> None:
    """As a real vLLM did at SIGTERM: the token's text, the fingerprint, [DONE]."""
    assert aborted("chat", 1, ("a", "b", "c")) == [
        HEAD + b'{"index":0,"delta":{"content":"b"},"logprobs":null,"finish_reason":"abort","stop_reason":null,'
        b'"token_ids":null}]' + SIGNED + b"}\n\n",
        b"data: [DONE]\n\n",
    ]


def test_usage_of_an_aborted_stream_counts_what_was_sent() -> None:
    """A completion's, too."""
    last_token, usage, _ = aborted("completions", 1, ("a", "b", "c"), usage="end")
    assert b'"text":"b","logprobs":null,"finish_reason":"abort"' in last_token
    assert b'"completion_tokens":2}' in usage


def test_choice_that_has_ended_is_not_aborted() -> None:
    """It has its own reason already; the other one gets the abort."""
    last_token, usage, _ = aborted("chat", 2, ("a",), ("b", "c", "d", "e"), usage="end")
    assert b'"index":1,"delta":{"content":"d"}' in last_token
    assert b'"completion_tokens":4}' in usage


@pytest.mark.parametrize("family", ["responses", "messages"])
def test_other_paths_are_cut_by_an_abort(family: ApiFamily) -> None:
    """Nobody has seen what vLLM does there."""
    job = GenerationJob(family, True, (18,), (SimulatedChoice(("a", "b"), "length"),), 0, echo=ECHO)
    assert make_writer(Stamp("i", 9, "m"), job, "msg_1").abort(1) is None
