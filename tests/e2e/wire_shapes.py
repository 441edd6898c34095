"""Shapes of answers and of streams: keys in order with their types. See `wire_cases` for what it is part of.

A shape shows a value's type ("str"), or None where it is null; of a list its first item.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.wire_client import (
    CHAT,
    COMPLETIONS,
    JSON_HEADERS,
    MESSAGES,
    RESPONSES,
    STREAM_HEADERS,
    Target,
    ask,
    chat,
    completion,
    fill,
    message,
    same_order,
    shape,
)

Shape = Any

_USAGE = {"prompt_tokens": "int", "total_tokens": "int", "completion_tokens": "int"}
_USAGE_FULL = {**_USAGE, "prompt_tokens_details": None, "completion_tokens_details": None}
_CHAT = {
    "id": "str",
    "object": "str",
    "created": "int",
    "model": "str",
    "choices": [
        {
            "index": "int",
            "message": {
                "role": "str",
                "content": "str",
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "reasoning": None,
            },
            "logprobs": None,
            "finish_reason": "str",
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }
    ],
    "service_tier": None,
    "system_fingerprint": "str",
    "usage": _USAGE_FULL,
    "prompt_logprobs": None,
    "prompt_token_ids": None,
    "prompt_text": None,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "metrics": None,
}
_COMPLETION = {
    "id": "str",
    "object": "str",
    "created": "int",
    "model": "str",
    "choices": [
        {
            "index": "int",
            "text": "str",
            "logprobs": None,
            "finish_reason": "str",
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }
    ],
    "service_tier": None,
    "system_fingerprint": "str",
    "usage": _USAGE_FULL,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "metrics": None,
}
_OUTPUT_TEXT = {"annotations": [], "text": "str", "type": "str", "logprobs": None}
_OUTPUT_ITEM = {
    "id": "str",
    "content": [_OUTPUT_TEXT],
    "role": "str",
    "status": "str",
    "type": "str",
    "phase": None,
}
_RESPONSE = {
    "id": "str",
    "created_at": "int",
    "incomplete_details": {"reason": "str"},
    "instructions": None,
    "metadata": None,
    "model": "str",
    "object": "str",
    "output": [_OUTPUT_ITEM],
    "parallel_tool_calls": "bool",
    "temperature": "float",
    "tool_choice": "str",
    "tools": [],
    "top_p": "float",
    "background": "bool",
    "max_output_tokens": "int",
    "max_tool_calls": None,
    "previous_response_id": None,
    "prompt": None,
    "reasoning": None,
    "service_tier": "str",
    "status": "str",
    "text": None,
    "top_logprobs": None,
    "truncation": "str",
    "usage": {
        "input_tokens": "int",
        "input_tokens_details": {
            "cached_tokens": "int",
            "cache_write_tokens": "int",
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": "int",
        "output_tokens_details": {
            "reasoning_tokens": "int",
            "tool_output_tokens": "int",
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": "int",
    },
    "user": None,
    "presence_penalty": "float",
    "frequency_penalty": "float",
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "input_messages": None,
    "output_messages": None,
}
_RESPONSE_BEGUN = {**_RESPONSE, "incomplete_details": None, "output": [], "usage": None}
_MODELS = {
    "object": "str",
    "data": [
        {
            "id": "str",
            "object": "str",
            "created": "int",
            "owned_by": "str",
            "root": "str",
            "parent": None,
            "max_model_len": "int",
            "permission": [
                {
                    "id": "str",
                    "object": "str",
                    "created": "int",
                    "allow_create_engine": "bool",
                    "allow_sampling": "bool",
                    "allow_logprobs": "bool",
                    "allow_search_indices": "bool",
                    "allow_view": "bool",
                    "allow_fine_tuning": "bool",
                    "organization": "str",
                    "group": None,
                    "is_blocking": "bool",
                }
            ],
        }
    ],
}
_TOKENS = {"count": "int", "max_model_len": "int", "tokens": ["int"], "token_strs": None}
_MESSAGE = {
    "id": "str",
    "type": "str",
    "role": "str",
    "content": [{"type": "str", "text": "str"}],
    "model": "str",
    "stop_reason": "str",
    "usage": {"input_tokens": "int", "output_tokens": "int"},
}


@dataclass(frozen=True)
class Whole:
    """A request, its path, and the shape of its answer."""

    id: str
    path: str
    body: Any
    expected: Shape
    method: str = "POST"


WHOLE = (
    Whole("chat", CHAT, chat(), _CHAT),
    Whole("chat without a model, fields unknown", CHAT, chat(foo_bar=1, user="u", metadata={"a": "b"}), _CHAT),
    Whole("chat with a role unknown", CHAT, chat(messages=[{"role": "martian", "content": "x"}]), _CHAT),
    Whole(
        "chat with parts of text",
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}]),
        _CHAT,
    ),
    Whole("chat with nulls", CHAT, chat(stream=None, n=None, model=None, stop=None, tools=None), _CHAT),
    Whole("chat with numbers as text", CHAT, chat(max_tokens="5", stream="false"), _CHAT),
    Whole("chat with empty stream options", CHAT, chat(stream_options={}), _CHAT),
    Whole("completion", COMPLETIONS, completion(), _COMPLETION),
    Whole("completion of token ids", COMPLETIONS, completion(prompt=[5, 6]), _COMPLETION),
    Whole("completion of several prompts", COMPLETIONS, completion(prompt=["a", "b"]), _COMPLETION),
    Whole("response", RESPONSES, {"input": "hello", "max_output_tokens": 5, "ignore_eos": True}, _RESPONSE),
    Whole("message", MESSAGES, message(), _MESSAGE),
    Whole(
        "message count",
        f"{MESSAGES}/count_tokens",
        {"model": "{model}", "messages": chat()["messages"]},
        {"input_tokens": "int", "context_management": {"original_input_tokens": "int"}},
    ),
    Whole("tokenize", "/tokenize", {"prompt": "hello world"}, _TOKENS),
    Whole("tokenize a conversation", "/tokenize", {"messages": chat()["messages"]}, _TOKENS),
    Whole(
        "tokenize with texts",
        "/tokenize",
        {"prompt": "hello", "return_token_strs": True},
        {**_TOKENS, "token_strs": ["str"]},
    ),
    Whole("detokenize", "/detokenize", {"tokens": [100, 101]}, {"prompt": "str"}),
    Whole("invocations", "/invocations", chat(), _CHAT),
    Whole("invocations of a completion, any model", "/invocations", completion(model="nope"), _COMPLETION),
    Whole("models", "/v1/models", None, _MODELS, "GET"),
    Whole("version", "/version", None, {"version": "str"}, "GET"),
    Whole("load", "/load", None, {"server_load": "int"}, "GET"),
)


def check_whole(target: Target, case: Whole) -> None:
    """200, vLLM's headers, and the body's keys in vLLM's order."""
    answer = ask(target, case.method, case.path, fill(case.body, target))
    assert answer.status == 200, answer.body
    assert answer.header_names == JSON_HEADERS
    assert answer.header("content-type") == "application/json"
    assert same_order(shape(answer.json()), case.expected)


def _chunk(choice: Shape, *, before: Shape = None, after: Shape = None) -> Shape:
    head = {"id": "str", "object": "str", "created": "int", "model": "str"}
    return {**head, "choices": [choice] if choice else [], **(before or {}), **(after or {})}


_ROLE = {"index": "int", "delta": {"role": "str", "content": "str"}, "logprobs": None, "finish_reason": None}
_DELTA = {"index": "int", "delta": {"content": "str"}, "logprobs": None, "finish_reason": None, "token_ids": None}
_DELTA_END = {
    "index": "int",
    "delta": {"content": "str"},
    "logprobs": None,
    "finish_reason": "str",
    "stop_reason": None,
    "token_ids": None,
}
_TEXT = {
    "index": "int",
    "text": "str",
    "logprobs": None,
    "finish_reason": None,
    "stop_reason": None,
    "prompt_token_ids": None,
    "token_ids": None,
}
_TEXT_END = {**_TEXT, "finish_reason": "str"}
_PROMPT_NULLS = {"prompt_token_ids": None, "prompt_text": None}
_SIGNED = {"system_fingerprint": "str"}
_RUNNING = {"usage": {**_USAGE, "completion_tokens_details": None}}
_FINAL = (None, _chunk(None, before={"usage": _USAGE}, after=_SIGNED))
_DONE = (None, "[DONE]")


def _named(name: str, **more: Shape) -> tuple[str, Shape]:
    return name, more


_SEQUENCE = {"sequence_number": "int", "type": "str"}
_AT = {"item_id": "str", "output_index": "int"}
_RESPONSE_EVENTS = (
    _named("response.created", response=_RESPONSE_BEGUN, **_SEQUENCE),
    _named("response.in_progress", response=_RESPONSE_BEGUN, **_SEQUENCE),
    _named(
        "response.output_item.added",
        item={**_OUTPUT_ITEM, "content": []},
        output_index="int",
        **_SEQUENCE,
    ),
    _named(
        "response.content_part.added", content_index="int", **_AT, part={**_OUTPUT_TEXT, "logprobs": []}, **_SEQUENCE
    ),
    _named(
        "response.output_text.delta",
        content_index="int",
        delta="str",
        item_id="str",
        logprobs=[],
        output_index="int",
        **_SEQUENCE,
    ),
    _named(
        "response.output_text.done",
        content_index="int",
        item_id="str",
        logprobs=[],
        output_index="int",
        sequence_number="int",
        text="str",
        type="str",
    ),
    _named("response.content_part.done", content_index="int", **_AT, part=_OUTPUT_TEXT, **_SEQUENCE),
    _named("response.output_item.done", item=_OUTPUT_ITEM, output_index="int", **_SEQUENCE),
    _named("response.completed", response=_RESPONSE, **_SEQUENCE),
)
_MESSAGE_START = {
    "id": "str",
    "type": "str",
    "role": "str",
    "content": [],
    "model": "str",
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": "int", "output_tokens": "int"},
}
_MESSAGE_EVENTS = (
    _named("message_start", type="str", message=_MESSAGE_START),
    _named("content_block_start", type="str", content_block={"type": "str", "text": "str"}, index="int"),
    _named("content_block_delta", type="str", delta={"type": "str", "text": "str"}, index="int"),
    _named("content_block_stop", type="str", index="int"),
    _named(
        "message_delta",
        type="str",
        delta={"stop_reason": "str", "stop_sequence": None},
        usage={"input_tokens": "int", "output_tokens": "int"},
    ),
    _named("message_stop", type="str"),
)


@dataclass(frozen=True)
class Stream:
    """A streamed request and its events' names and shapes; runs of equal ones are shown once."""

    id: str
    path: str
    body: Any
    expected: tuple[tuple[str | None, Shape], ...]
    extra: dict[str, Any] = field(default_factory=dict)


_WITH_USAGE = {"include_usage": True}
_EVERY_USAGE = {"include_usage": True, "continuous_usage_stats": True}
_ROLE_EVENT = (None, _chunk(_ROLE, after=_PROMPT_NULLS))
_DELTA_EVENT = (None, _chunk(_DELTA))

STREAMS = (
    Stream("chat", CHAT, chat(), (_ROLE_EVENT, _DELTA_EVENT, (None, _chunk(_DELTA_END, after=_SIGNED)), _DONE)),
    Stream(
        "chat, empty stream options",
        CHAT,
        chat(stream_options={}),
        (_ROLE_EVENT, _DELTA_EVENT, (None, _chunk(_DELTA_END, after=_SIGNED)), _DONE),
    ),
    Stream(
        "chat with usage",
        CHAT,
        chat(stream_options=_WITH_USAGE),
        (_ROLE_EVENT, _DELTA_EVENT, (None, _chunk(_DELTA_END)), _FINAL, _DONE),
    ),
    Stream(
        "chat with usage on every event",
        CHAT,
        chat(stream_options=_EVERY_USAGE),
        (
            (None, _chunk(_ROLE, before=_RUNNING, after=_PROMPT_NULLS)),
            (None, _chunk(_DELTA, after=_RUNNING)),
            (None, _chunk(_DELTA_END, after=_RUNNING)),
            _FINAL,
            _DONE,
        ),
    ),
    Stream(
        "chat that ends at once",
        CHAT,
        chat(ignore_eos=False, logit_bias={"2": 100}),
        (_ROLE_EVENT, (None, _chunk(_DELTA_END, after=_SIGNED)), _DONE),
    ),
    Stream(
        "completion",
        COMPLETIONS,
        completion(),
        ((None, _chunk(_TEXT)), (None, _chunk(_TEXT_END, after=_SIGNED)), _DONE),
    ),
    Stream(
        "completion with usage",
        COMPLETIONS,
        completion(stream_options=_WITH_USAGE),
        ((None, _chunk(_TEXT)), (None, _chunk(_TEXT_END)), _FINAL, _DONE),
    ),
    Stream(
        "completion with usage on every event",
        COMPLETIONS,
        completion(stream_options=_EVERY_USAGE),
        (
            (None, _chunk(_TEXT, after={"usage": _USAGE})),
            (None, _chunk(_TEXT_END, after={"usage": _USAGE})),
            _FINAL,
            _DONE,
        ),
    ),
    Stream("response", RESPONSES, {"input": "hello", "max_output_tokens": 5, "ignore_eos": True}, _RESPONSE_EVENTS),
    Stream(
        "response that ends at once",
        RESPONSES,
        {"input": "hello", "max_output_tokens": 5, "logit_bias": {"2": 100}},
        (
            *_RESPONSE_EVENTS[:2],
            _named("response.completed", response={**_RESPONSE, "incomplete_details": None, "output": []}, **_SEQUENCE),
        ),
    ),
    Stream("message", MESSAGES, message(), _MESSAGE_EVENTS),
)


def check_stream(target: Target, case: Stream) -> None:
    """200, the stream's headers, each event in a chunk of its own, and the events in vLLM's order and shape."""
    answer = ask(target, "POST", case.path, fill({**case.body, "stream": True}, target))
    assert answer.status == 200, answer.body
    assert answer.header_names == STREAM_HEADERS
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.header("transfer-encoding") == "chunked"
    seen = [(name, data if isinstance(data, str) else shape(data)) for name, data in answer.events()]
    runs = [next(run) for _, run in itertools.groupby(seen)]
    assert [name for name, _ in runs] == [name for name, _ in case.expected]
    for (_, found), (name, expected) in zip(runs, case.expected, strict=True):
        assert same_order(found, expected), (name, found, expected)
