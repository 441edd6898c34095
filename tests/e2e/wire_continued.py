"""An answer that is cut and continued elsewhere, and the counts of /tokenize. See `wire_cases` for what it is part of.

The answers repeat one word, so that the text of a beginning is the same tokens again on a real vLLM, too.
"""

from __future__ import annotations

from typing import Any

from tests.e2e.wire_client import CHAT, HELLO, STREAM_HEADERS, Target, ask, chat

CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}
WHOLE = 20  # tokens of an uncut answer
CUT = 8  # tokens of its beginning
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def _words(target: Target, **more: Any) -> dict[str, Any]:
    """A chat whose answer is the word "word" on a real vLLM."""
    token = ask(target, "POST", "/tokenize", {"prompt": "a word"}).json()["tokens"][-1]
    return chat(**{"logit_bias": {str(token): 100}, "max_tokens": WHOLE, **more})


def _answer(target: Target, body: dict[str, Any]) -> tuple[str, dict[str, int]]:
    """Its text and its usage."""
    answer = ask(target, "POST", CHAT, body)
    assert answer.status == 200, answer.body
    return answer.json()["choices"][0]["message"]["content"], answer.json()["usage"]


def _opened(text: str) -> list[dict[str, Any]]:
    return [*HELLO, {"role": "assistant", "content": text}]


def _count(target: Target, messages: list[dict[str, Any]], **more: Any) -> int:
    counted = ask(target, "POST", "/tokenize", {"messages": messages, **more}).json()
    assert counted["count"] == len(counted["tokens"])
    return int(counted["count"])


def a_cut_answer_goes_on_as_it_would_have(target: Target) -> None:
    """The beginning and its continuation are the uncut text; the beginning counts as prompt, the total is the same."""
    whole, usage = _answer(target, _words(target))
    beginning, _ = _answer(target, _words(target, max_tokens=CUT))
    rest, rest_usage = _answer(target, _words(target, messages=_opened(beginning), max_tokens=WHOLE - CUT, **CONTINUED))
    assert whole == beginning + rest
    assert rest_usage["prompt_tokens"] == usage["prompt_tokens"] + CUT
    assert rest_usage["completion_tokens"] == WHOLE - CUT
    assert rest_usage["total_tokens"] == usage["total_tokens"]


def a_continued_stream_is_a_stream_of_its_own(target: Target) -> None:
    """Its role first, then only the rest, its own `created`, the request's id, one usage."""
    whole, _ = _answer(target, _words(target))
    beginning, _ = _answer(target, _words(target, max_tokens=CUT))
    body = _words(target, messages=_opened(beginning), max_tokens=WHOLE - CUT, stream=True, **CONTINUED)
    answer = ask(target, "POST", CHAT, body | {"stream_options": {"include_usage": True}}, {"X-Request-Id": "gw-7"})
    assert answer.header_names == STREAM_HEADERS
    events = [data for _, data in answer.events()]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {event["id"] for event in events[:-1]} == {"chatcmpl-gw-7"}
    texts = [event["choices"][0]["delta"].get("content", "") for event in events[:-2]]
    assert beginning + "".join(texts) == whole
    assert [event["choices"][0]["finish_reason"] for event in events[1:-2]] == [None] * (len(texts) - 2) + ["length"]
    assert events[-2]["usage"]["completion_tokens"] == WHOLE - CUT
    assert events[-1] == "[DONE]"


def a_stop_string_is_looked_for_in_the_rest_alone(target: Target) -> None:
    """The beginning has it, too; the continuation ends before its own first one, with its reason and the string."""
    beginning, _ = _answer(target, _words(target, max_tokens=CUT))
    assert "o" in beginning
    body = _words(target, messages=_opened(beginning), max_tokens=WHOLE - CUT, **CONTINUED)
    rest, _ = _answer(target, body)
    stopped = ask(target, "POST", CHAT, body | {"stop": ["o"]}).json()["choices"][0]
    assert stopped["message"]["content"] == rest[: rest.index("o")] != ""
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", "o")


def an_empty_message_is_continued_from_its_start(target: Target) -> None:
    """The same prompt, to the token, as with the opening of an answer."""
    text, usage = _answer(target, _words(target))
    assert _answer(target, _words(target, messages=_opened(""), **CONTINUED)) == (text, usage)


def tokenize_counts_what_each_opening_costs(target: Target) -> None:
    """The opening, an open message, tools: each as the usage of a chat with the same fields."""
    opened = _opened("word word")
    for messages, more in (
        (HELLO, {}),
        (opened, {}),
        (opened, {"add_generation_prompt": False}),
        (opened, CONTINUED),
    ):
        _, usage = _answer(target, chat(messages=messages, **more))
        assert _count(target, messages, **more) == usage["prompt_tokens"]
    assert _count(target, opened, **CONTINUED) < _count(target, opened, add_generation_prompt=False)
    assert _count(target, opened, add_generation_prompt=False) < _count(target, opened)


def tokenize_counts_the_tools_of_a_chat(target: Target) -> None:
    """Where the chat has tools, whatever its template makes of them."""
    body = chat(tools=[_TOOL], tool_choice="none")
    _, usage = _answer(target, body)
    assert _count(target, HELLO, tools=[_TOOL]) == usage["prompt_tokens"]


CONTINUATIONS = (
    a_cut_answer_goes_on_as_it_would_have,
    a_continued_stream_is_a_stream_of_its_own,
    a_stop_string_is_looked_for_in_the_rest_alone,
    an_empty_message_is_continued_from_its_start,
    tokenize_counts_what_each_opening_costs,
    tokenize_counts_the_tools_of_a_chat,
)
