"""Answers as two engines write them: the same text, divided into other events, under other ids."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, NamedTuple

from hypothesis import strategies as st

from aiaas.openai.paths import CHAT
from aiaas.openai.sse import EventSplitter, event_data

TEXT = st.text(st.sampled_from('ab \n"\\{é😀你'), min_size=1, max_size=6)
DONE = b"data: [DONE]\n\n"


class Answer(NamedTuple):
    """One choice."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[tuple[str, str], ...] = ()  # names and arguments
    finish: str = "stop"


class Unit(NamedTuple):
    """The smallest piece that an event can have: a character, or the name of a call."""

    channel: str  # reasoning, content, call or arguments
    text: str
    call: int = 0


class Engine(NamedTuple):
    """The differences between two engines."""

    created: int
    mark: str  # in the ids that it draws
    logprobs: bool = False
    usage: bool = False  # on each event


def answers(path: str) -> st.SearchStrategy[list[Answer]]:
    """One to three choices."""
    if path != CHAT:
        return st.lists(st.builds(Answer, content=TEXT), min_size=1, max_size=3)
    calls = st.lists(st.tuples(st.sampled_from(["get", "get_it"]), TEXT), max_size=2).map(tuple)
    one = st.builds(Answer, st.just("") | TEXT, st.just("") | TEXT, calls, st.sampled_from(["stop", "tool_calls"]))
    return st.lists(one, min_size=1, max_size=3)


def units(answer: Answer) -> list[Unit]:
    """The answer as an engine generates it."""
    found = [Unit("reasoning", each) for each in answer.reasoning] + [Unit("content", each) for each in answer.content]
    for at, (name, arguments) in enumerate(answer.calls):
        found += [Unit("call", name, at), *(Unit("arguments", each, at) for each in arguments)]
    return found


def stream(data: st.DataObject, path: str, written: list[Answer], engine: Engine) -> list[bytes]:
    """The events of these choices, divided and interleaved in any way."""
    events = [role(index, engine) for index in range(len(written))] if path == CHAT else []
    waiting = {index: _events(data, path, index, answer, engine) for index, answer in enumerate(written)}
    while waiting:
        index = data.draw(st.sampled_from(sorted(waiting)))
        events.append(waiting[index].pop(0))
        if not waiting[index]:
            del waiting[index]
    return [*events, event([], engine, usage={"prompt_tokens": 3, "completion_tokens": 5}), DONE]


def _events(data: st.DataObject, path: str, index: int, answer: Answer, engine: Engine) -> list[bytes]:
    left, events = units(answer), []
    at = 0
    while left or not events or data.draw(st.booleans()):
        size = data.draw(st.integers(0 if events else 1, 12))
        taken, left = left[:size], left[size:]
        ends = not left and data.draw(st.booleans())
        make = chat_choice if path == CHAT else text_choice
        events.append(event([make(index, taken, at, engine, answer.finish if ends else None)], engine))
        at += len(taken)
        if ends:
            return events
    return [
        *events,
        event([(chat_choice if path == CHAT else text_choice)(index, [], at, engine, answer.finish)], engine),
    ]


def role(index: int, engine: Engine) -> bytes:
    """A chat's first event."""
    choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    return event([choice], engine, usage={"completion_tokens": 0} if engine.usage else None)


def event(choices: list[dict[str, Any]], engine: Engine, usage: dict[str, int] | None = None) -> bytes:
    """As vLLM 0.32 writes it."""
    frame = {"id": f"id-{engine.mark}", "object": "chunk", "created": engine.created, "model": "m", "choices": choices}
    usage = usage or ({"completion_tokens": 1} if engine.usage else None)
    return written_event(frame | ({"usage": usage} if usage else {}))


def written_event(fields: dict[str, Any], name: str = "") -> bytes:
    """An event with these data."""
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def chat_choice(index: int, taken: list[Unit], at: int, engine: Engine, finish: str | None) -> dict[str, Any]:
    """The part of a chat's choice with these units, of which the first is number `at`."""
    delta: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for unit in taken:
        if unit.channel in ("reasoning", "content"):
            delta[unit.channel] = delta.get(unit.channel, "") + unit.text
            continue
        call = calls.setdefault(unit.call, {"index": unit.call, "function": {}})
        if unit.channel == "call":
            call |= {"id": f"call-{engine.mark}-{index}-{unit.call}", "type": "function"}
            call["function"] = {"name": unit.text, "arguments": ""}
        else:
            call["function"]["arguments"] = call["function"].get("arguments", "") + unit.text
    if calls:
        delta["tool_calls"] = list(calls.values())
    probable = [
        {"token": unit.text, "logprob": -engine.created / 7, "bytes": [1], "top_logprobs": []} for unit in taken
    ]
    return {
        "index": index,
        "delta": delta or {"content": ""},
        "logprobs": {"content": probable} if engine.logprobs else None,
        "finish_reason": finish,
        "token_ids": list(range(at, at + len(taken))) if engine.logprobs else None,
    }


def text_choice(index: int, taken: list[Unit], at: int, engine: Engine, finish: str | None) -> dict[str, Any]:
    """The part of a completion with these units, of which the first is number `at`."""
    probable = {
        "text_offset": list(range(at, at + len(taken))),
        "token_logprobs": [-engine.created / 7 for _ in taken],
        "tokens": [unit.text for unit in taken],
        "top_logprobs": [{unit.text: -1.0} for unit in taken],
    }
    return {
        "index": index,
        "text": "".join(unit.text for unit in taken),
        "logprobs": probable if engine.logprobs else None,
        "finish_reason": finish,
        "stop_reason": None,
        "prompt_token_ids": [7, 8] if engine.logprobs and at == 0 else None,
        "token_ids": list(range(at, at + len(taken))) if engine.logprobs else None,
    }


def heard(events: bytes) -> dict[str, Any]:
    """Chat or completion events as a client joins them: each text and list whole, and how often the rest came."""
    texts: defaultdict[str, str] = defaultdict(str)
    lists: defaultdict[str, list[Any]] = defaultdict(list)
    counts: defaultdict[str, int] = defaultdict(int)
    ids, calls = set(), set()
    for each in EventSplitter().feed(events):
        data = event_data(each)
        if data is None or data == b"[DONE]":
            counts["done"] += data is not None
            continue
        read = json.loads(data)
        ids.add((read["id"], read["created"]))
        counts["usage"] += not read["choices"]
        for choice in read["choices"]:
            index = choice["index"]
            delta = choice.get("delta", {})
            counts[f"{index} finish {choice['finish_reason']}"] += choice["finish_reason"] is not None
            counts[f"{index} role"] += "role" in delta
            texts[f"{index} content"] += choice.get("text") or delta.get("content") or ""
            texts[f"{index} reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls", []):
                name = f"{index} call {call['index']}"
                calls |= {call["id"]} if "id" in call else set()
                counts[f"{name} id"] += "id" in call
                counts[f"{name} type"] += "type" in call
                texts[f"{name} name"] += call["function"].get("name", "")
                texts[f"{name} arguments"] += call["function"].get("arguments", "")
            lists[f"{index} ids"] += choice.get("token_ids") or []
            lists[f"{index} prompt"] += choice.get("prompt_token_ids") or []
            for name, listed in (choice.get("logprobs") or {}).items():
                lists[f"{index} list of {name}"] += [each["token"] if name == "content" else each for each in listed]
    whole = {name: value for name, value in (texts | lists | counts).items() if value and "logprobs" not in name}
    return whole | {"streams": len(ids), "calls": len(calls)}
