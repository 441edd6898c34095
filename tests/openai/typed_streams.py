"""Responses and messages as two engines write them: the same text, divided into other deltas, under other ids."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from aiaas.openai.paths import RESPONSES
from aiaas.openai.sse import EventSplitter, event_data
from tests.openai.replayed_streams import TEXT, Answer, Engine, written_event

CALLS = st.lists(st.tuples(st.sampled_from(["get", "get_it"]), TEXT), max_size=2).map(tuple)
ANSWERS = st.builds(Answer, st.just("") | TEXT, st.just("") | TEXT, CALLS)


def typed_stream(data: st.DataObject, path: str, answer: Answer, engine: Engine) -> list[bytes]:
    """The events of an answer, its texts divided in any way."""
    make = _response if path == RESPONSES else _message
    events = []
    for number, fields in enumerate(make(data, answer, engine)):
        numbered = {"sequence_number": number} if path == RESPONSES else {}
        events.append(written_event(fields | numbered, fields["type"]))
    return events


def _pieces(data: st.DataObject, text: str) -> Iterator[str]:
    while text:
        size = data.draw(st.integers(1, len(text)))
        yield text[:size]
        text = text[size:]


def _response(data: st.DataObject, answer: Answer, engine: Engine) -> Iterator[dict[str, Any]]:
    output: list[dict[str, Any]] = []
    response = {"id": f"resp-{engine.mark}", "created_at": engine.created, "object": "response", "output": output}
    yield {"response": response | {"output": []}, "type": "response.created"}
    yield {"response": response | {"output": []}, "type": "response.in_progress"}
    texts = [("reasoning", answer.reasoning), ("output", answer.content)]
    for kind, text in [each for each in texts if each[1]]:
        item = {"id": f"{kind}-{engine.mark}", "type": kind, "content": []}
        at: dict[str, Any] = {"item_id": item["id"], "output_index": len(output), "content_index": 0}
        yield {"item": item, "output_index": len(output), "type": "response.output_item.added"}
        yield at | {"part": {"text": "", "type": f"{kind}_text"}, "type": "response.content_part.added"}
        for piece in _pieces(data, text):
            tokens = [{"token": each, "logprob": -engine.created / 7, "bytes": []} for each in piece]
            listed = {"logprobs": tokens if engine.logprobs else []} if kind == "output" else {}
            yield {"delta": piece, "type": f"response.{kind}_text.delta"} | at | listed
        part = {"text": text, "type": f"{kind}_text", "logprobs": [engine.created]}
        yield at | {"text": text, "type": f"response.{kind}_text.done"}
        yield at | {"part": part, "type": "response.content_part.done"}
        item = item | {"content": [part], "status": "completed"}
        yield {"item": item, "output_index": len(output), "type": "response.output_item.done"}
        output.append(item)
    for number, (name, arguments) in enumerate(answer.calls):
        ids = {"id": f"fc-{engine.mark}-{number}", "call_id": f"call-{engine.mark}-{number}"}
        item = ids | {"type": "function_call", "name": name, "arguments": ""}
        at = {"item_id": item["id"], "output_index": len(output)}
        yield {"item": item, "output_index": len(output), "type": "response.output_item.added"}
        for piece in _pieces(data, arguments):
            yield at | {"delta": piece, "type": "response.function_call_arguments.delta"}
        yield at | {"arguments": arguments, "name": name, "type": "response.function_call_arguments.done"}
        item = item | {"arguments": arguments}
        yield {"item": item, "output_index": len(output), "type": "response.output_item.done"}
        output.append(item)
    yield {"response": response | {"usage": {"output_tokens": 5}}, "type": "response.completed"}


def _message(data: st.DataObject, answer: Answer, engine: Engine) -> Iterator[dict[str, Any]]:
    usage = {"input_tokens": 3, "cache_read_input_tokens": engine.created}
    yield {"type": "message_start", "message": {"id": f"id-{engine.mark}", "role": "assistant", "usage": usage}}
    blocks = [("thinking", answer.reasoning, {"thinking": ""}), ("text", answer.content, {"text": ""})]
    for number, (name, arguments) in enumerate(answer.calls):
        blocks.append(("tool_use", arguments, {"id": f"call-{engine.mark}-{number}", "name": name, "input": {}}))
    for index, (kind, text, fields) in enumerate(each for each in blocks if each[1]):
        yield {"type": "content_block_start", "content_block": {"type": kind} | fields, "index": index}
        delta, field = {
            "thinking": ("thinking_delta", "thinking"),
            "text": ("text_delta", "text"),
            "tool_use": ("input_json_delta", "partial_json"),
        }[kind]
        for piece in _pieces(data, text):
            yield {"type": "content_block_delta", "delta": {"type": delta, field: piece}, "index": index}
        if kind == "thinking":
            signed = {"type": "signature_delta", "signature": f"signed-{engine.mark}"}
            yield {"type": "content_block_delta", "delta": signed, "index": index}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    yield {"type": "message_stop"}


def typed_heard(events: bytes) -> dict[str, Any]:
    """The events as a client joins them: texts whole, frames in order, each id by the number of its first use."""
    texts: defaultdict[str, str] = defaultdict(str)
    tokens: list[str] = []
    frames, numbers = [], []
    names: dict[str, int] = {}
    for each in EventSplitter().feed(events):
        data = event_data(each)
        if data is None:
            continue
        read = json.loads(data)
        assert each.startswith(f"event: {read['type']}\n".encode())
        numbers.append(read.pop("sequence_number", None))
        delta = read.get("delta")
        if read["type"].endswith(".delta"):
            texts[f"{read['type']} {read['output_index']} {names.setdefault(read['item_id'], len(names))}"] += delta
            tokens += [token["token"] for token in read.get("logprobs", [])]
        elif read["type"] == "content_block_delta" and "signature" not in delta:
            texts[f"{delta.pop('type')} {read['index']}"] += next(iter(delta.values()))
        else:
            frames.append(_named(read, names))
    return {"texts": dict(texts), "tokens": tokens, "frames": frames, "numbers": numbers == _counted(numbers)}


def _counted(numbers: list[int | None]) -> list[int | None]:
    return [None] * len(numbers) if None in numbers else list(range(len(numbers)))


def _named(value: Any, names: dict[str, int]) -> Any:
    """The value with numbers for ids, and without the fields in which two engines differ."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in ("created_at", "logprobs", "usage", "signature")}
        return {
            key: names.setdefault(each, len(names)) if key in ("id", "item_id", "call_id") else _named(each, names)
            for key, each in kept.items()
        }
    return [_named(each, names) for each in value] if isinstance(value, list) else value
