"""Which ends of a stream are whole: one table, by path, from which `test_ends.py` takes its cases and docs/faults.md
its text (`fault_page.py`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from tests.fakes.vllm import DONE, error_stream_event, token_event, usage_event

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

RESPONSES_STREAM = [
    b'event: response.created\ndata: {"response":{"id":"resp_1","usage":null},"type":"response.created"}\n\n',
    b'event: response.output_text.delta\ndata: {"delta":"x","type":"response.output_text.delta"}\n\n',
    b'event: response.completed\ndata: {"response":{"id":"resp_1","usage":{"input_tokens":14,'
    b'"input_tokens_details":{"cached_tokens":0},"output_tokens":3,"total_tokens":17},"user":null},'
    b'"sequence_number":9,"type":"response.completed"}\n\n',
]
MESSAGES_STREAM = [
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"1","content":[],'
    b'"usage":{"input_tokens":14,"output_tokens":0}}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"\\n"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens"},'
    b'"usage":{"input_tokens":14,"output_tokens":3}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]


def finish(index: int = 0, **more: Any) -> bytes:
    """The last event of a choice that ended by itself."""
    choice = {"index": index, "delta": {"content": ""}, "finish_reason": "stop"}
    return b"data: " + json.dumps({"id": "chatcmpl-1", "choices": [choice], **more}).encode() + b"\n\n"


def text_event(finish_reason: str | None = None) -> bytes:
    """One event of a completion."""
    choice = {"index": 0, "text": "x", "logprobs": None, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


def response_event(name: str, **fields: Any) -> bytes:
    """One event of a response."""
    data = json.dumps({**fields, "type": f"response.{name}"}, separators=(",", ":")).encode()
    return b"event: response.%b\ndata: %b\n\n" % (name.encode(), data)


MESSAGES_ERROR: Final = b'event: error\ndata: {"type":"error","error":{"code":400}}\n\n'
DELTA: Final = RESPONSES_STREAM[1]


@dataclass(frozen=True)
class Ending:
    """A body of these events (one chunk each) that ends cleanly, in words, and whether the answer in it is whole."""

    path: str
    ends_with: str
    events: tuple[bytes, ...]
    whole: bool
    choices: int = 1


ENDS: Final = (
    Ending(CHAT, "`[DONE]`", (token_event() + DONE,), True),
    Ending(CHAT, "`[DONE]` in a read of its own", (token_event(), DONE), True),
    Ending(CHAT, "`[DONE]` without a space", (token_event(), b"data:[DONE]\n\n"), True),
    Ending(CHAT, "`[DONE]` without its blank line", (token_event(), DONE[:-2]), True),
    Ending(CHAT, "`[DONE]` of other line ends", (token_event(), DONE.replace(b"\n", b"\r\n")), True),
    Ending(CHAT, "a finish reason", (token_event(), finish()), True),
    Ending(CHAT, "a finish reason of other line ends", (finish().replace(b"\n", b"\r\n"),), True),
    Ending(CHAT, "a finish reason before usage", (token_event(), finish(), usage_event(18, 2)), True),
    Ending(CHAT, "a finish reason and a comment", (token_event() + finish(), b": ping\n\n", b": p\n\n"), True),
    Ending(
        CHAT, "finish reasons of two choices", (token_event(), finish(0), token_event(), finish(1)), True, choices=2
    ),
    Ending(CHAT, "an error event", (token_event(), error_stream_event("too long", 400)), True),
    Ending(CHAT, "a token", (token_event(),), False),
    Ending(CHAT, "many tokens in one read", (token_event() * 50,), False),
    Ending(CHAT, "a token that says `[DONE]`", (token_event("data: [DONE]"),), False),
    Ending(CHAT, "a token that says `finish_reason`", (token_event('"finish_reason":"stop"'),), False),
    Ending(CHAT, "a finish reason of one choice of two", (token_event(), finish(1), token_event()), False, choices=2),
    Ending(CHAT, "the end of one choice of two", (token_event(), finish(1)), False, choices=2),
    Ending(CHAT, "a comment", (token_event(), b": ping\n\n"), False),
    Ending(CHAT, "half an event", (token_event(), b'data: {"id": "half'), False),
    Ending(COMPLETIONS, "`[DONE]`", (text_event(), DONE), True),
    Ending(COMPLETIONS, "a finish reason", (text_event(), text_event("length")), True),
    Ending(COMPLETIONS, "a text", (text_event(),), False),
    Ending(RESPONSES, "`response.completed`", tuple(RESPONSES_STREAM), True),
    Ending(RESPONSES, "`response.incomplete`", (DELTA, response_event("incomplete", response={})), True),
    Ending(RESPONSES, "`response.failed`", (DELTA, response_event("failed", response={})), True),
    Ending(RESPONSES, "`[DONE]`", (DELTA, DONE), True),
    Ending(RESPONSES, "an error event", (DELTA, b'event: error\ndata: {"type":"error"}\n\n'), True),
    Ending(RESPONSES, "a text", (DELTA,), False),
    Ending(RESPONSES, "the text's own end", (DELTA, response_event("output_text.done", text="x")), False),
    Ending(MESSAGES, "`message_stop`", tuple(MESSAGES_STREAM), True),
    Ending(MESSAGES, "`[DONE]`", (*MESSAGES_STREAM[:2], DONE), True),
    Ending(
        MESSAGES,
        "an error event",
        (*MESSAGES_STREAM[:2], MESSAGES_ERROR),
        True,
    ),
    Ending(MESSAGES, "a text", tuple(MESSAGES_STREAM[:2]), False),
    Ending(MESSAGES, "a stop reason", tuple(MESSAGES_STREAM[:3]), False),
)
