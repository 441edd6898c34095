"""aiaas.openai.streams: which events carry output and text, and which end a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.openai import paths
from aiaas.openai.streams import ends_stream, finished_choices, form_of, next_number, text_size

ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


def event(data: Any, name: str = "") -> bytes:
    """An event as vLLM writes it, under a name where it has one."""
    lead = f"event: {name}\n" if name else ""
    return f"{lead}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def chat(**delta: Any) -> bytes:
    """A chat's event."""
    return event({"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]})


def text(**choice: Any) -> bytes:
    """A completion's event."""
    return event({"choices": [{"index": 0, **choice, "finish_reason": None, "stop_reason": None}]})


def message(**delta: Any) -> bytes:
    """A message's event."""
    return event({"type": "content_block_delta", "delta": delta, "index": 0}, "content_block_delta")


def response(name: str, **fields: Any) -> bytes:
    """A response's event."""
    return event({**fields, "type": f"response.{name}"}, f"response.{name}")


TOOL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "", "arguments": ""}}
# Path, event, whether it carries output, and how much text it has.
EVENTS: dict[str, tuple[str, bytes, bool, int]] = {
    "chat: role": (paths.CHAT, event(ROLE), True, 0),
    "chat: content": (paths.CHAT, chat(content="Hello"), True, 5),
    "chat: role and content": (paths.CHAT, chat(role="assistant", content="Hi"), True, 2),
    "chat: reasoning": (paths.CHAT, chat(reasoning="Hm"), True, 2),
    "chat: reasoning_content": (paths.CHAT, chat(content=None, reasoning_content="Hm."), True, 3),
    "chat: a tool's name": (paths.CHAT, chat(tool_calls=[TOOL | {"function": {"name": "f"}}]), True, 1),
    "chat: a tool's arguments": (paths.CHAT, chat(tool_calls=[TOOL | {"function": {"arguments": "{}"}}]), True, 2),
    "chat: a tool without anything": (paths.CHAT, chat(tool_calls=[TOOL]), True, 0),
    "chat: no tools": (paths.CHAT, chat(content="", tool_calls=[]), True, 0),
    "chat: usage": (paths.CHAT, event({"choices": [], "usage": {"prompt_tokens": 1}}), False, 0),
    "chat: quoted": (paths.CHAT, chat(content='"delta":"finish_reason":null'), True, 28),
    "completions: text": (paths.COMPLETIONS, text(text="a b"), True, 3),
    "completions: no text": (paths.COMPLETIONS, text(text=""), True, 0),
    "completions: a token that is `text`": (
        paths.COMPLETIONS,
        text(text="x", logprobs={"tokens": ["text"], "top_logprobs": [{"text": -0.5}]}),
        True,
        1,
    ),
    "responses: created": (paths.RESPONSES, response("created", response={"tools": [{"delta": 1}]}), False, 0),
    "responses: part added": (paths.RESPONSES, response("content_part.added", part={"text": ""}), False, 0),
    "responses: text": (paths.RESPONSES, response("output_text.delta", delta="Hello", logprobs=[]), True, 5),
    "responses: reasoning": (paths.RESPONSES, response("reasoning_text.delta", delta="Hm"), True, 2),
    "responses: arguments": (paths.RESPONSES, response("function_call_arguments.delta", delta="{}"), True, 2),
    "responses: empty": (paths.RESPONSES, response("output_text.delta", delta=""), True, 0),
    "responses: text done": (paths.RESPONSES, response("output_text.done", text="x.delta"), False, 0),
    "messages: start": (paths.MESSAGES, event({"type": "message_start", "message": {}}, "message_start"), False, 0),
    "messages: block start": (
        paths.MESSAGES,
        event({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}, "content_block_start"),
        False,
        0,
    ),
    "messages: text": (paths.MESSAGES, message(type="text_delta", text="Hello"), True, 5),
    "messages: thinking": (paths.MESSAGES, message(type="thinking_delta", thinking="Hm"), True, 2),
    "messages: arguments": (paths.MESSAGES, message(type="input_json_delta", partial_json='{"'), True, 2),
    "messages: signature": (paths.MESSAGES, message(type="signature_delta", signature="abc"), True, 0),
    "messages: delta": (
        paths.MESSAGES, event({"type": "message_delta", "delta": {"stop_reason": "end"}}, "message_delta"), False, 0
    ),
    "[DONE]": (paths.CHAT, b"data: [DONE]\n\n", False, 0),
    "a comment": (paths.CHAT, b": ping\n\n", False, 0),
    "no JSON": (paths.CHAT, b"data: {\n\n", False, 0),
    "nested deep": (paths.CHAT, b'data: {"x":[{"finish_reason":null,"delta":{"a":' + b"[" * 3000 + b"\n\n", True, 0),
}  # fmt: skip


@pytest.mark.parametrize(("path", "data", "output", "size"), EVENTS.values(), ids=EVENTS)
def test_output_and_text_of_an_event(path: str, data: bytes, output: bool, size: int) -> None:
    """The mark, which the relay counts, is in each output event once and in no other; the pattern says the same."""
    form = form_of(path)
    assert (data.count(form.mark), len(form.output.findall(data))) == (int(output), int(output))
    assert text_size(data) == size


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (paths.CHAT, event({"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]})),
        (paths.COMPLETIONS, event({"choices": [{"text": "x", "finish_reason": "length"}]})),
    ],
    ids=["chat", "completions"],
)
def test_event_that_finishes_a_choice_is_not_ordinary(path: str, data: bytes) -> None:
    """Such an event is output without the mark: it must not pass unread."""
    assert (data.count(form_of(path).mark), len(form_of(path).output.findall(data))) == (0, 1)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (paths.CHAT, b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'),
        (paths.COMPLETIONS, b'data:{"choices": [{"text": "x"}]}\n\n'),
        (paths.RESPONSES, b'data: {"type": "response.output_text.delta", "delta": "x"}\n\n'),
        (paths.RESPONSES, b'event: response.output_text.delta\r\ndata: {"type":"response.output_text.delta"}\r\n\r\n'),
        (paths.MESSAGES, b'data: {"type": "content_block_delta", "delta": {"text": "x"}}\n\n'),
    ],
    ids=["chat", "completions", "responses without names", "responses in CR LF", "messages without names"],
)
def test_output_of_other_servers_is_counted(path: str, data: bytes) -> None:
    """Whatever their spaces and line ends."""
    assert len(form_of(path).output.findall(data)) == 1


def test_ends_of_other_servers_are_known() -> None:
    """tests/proxy/end_table.py has the table; here are the shapes that it lacks."""
    assert ends_stream(b"data: [DONE] \r\n\r\n", form_of(paths.CHAT))
    assert ends_stream(b'data: {"type" : "message_stop"}\n\n', form_of(paths.MESSAGES))
    assert not ends_stream(message(type="text_delta", text='"type":"message_stop"'), form_of(paths.MESSAGES))
    assert finished_choices(b'{"finish_reason" : "stop"},{"finish_reason":null},{"finish_reason":"length"}') == 2


@pytest.mark.parametrize(
    ("events", "number"),
    [(b"", 0), (b'{"sequence_number":4}{"sequence_number": 5}', 6), (b'{"sequence_number":99999999999999}', 0)],
    ids=["none", "the last", "absurd"],
)
def test_number_of_the_next_event(events: bytes, number: int) -> None:
    """One more than the last."""
    assert next_number(events) == number
