"""Whether another engine can go on with a chat that broke off, and the request that makes it do so.

The delivered text becomes an open message of the assistant (`continue_final_message`), at the end of the client's own
messages. The joined answer is the uncut one wherever the text tokenizes back to the tokens that were sampled. Where it
would not be (a grammar begins again; penalties forget what was said; a seed draws the old random numbers again), the
answer: "no". So a request goes on only if every field of it is known to be harmless: a field that is not in this file
may be anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from aiaas.openai.chat_cut import ChatCut
from aiaas.openai.splice import set_fields
from aiaas.openai.toplevel import UNREADABLE, top_level

ResumeMode = Literal["off", "exact", "near"]


class Continuation(msgspec.Struct, frozen=True):
    """A request that goes on with an answer.

    body     the request; the bounds of its output are still the client's (`with_bounds`)
    overlap  the end of the delivered text, which the engine writes once more and the client does not get again
    blanks   whether blanks at the beginning of the rest are dropped: a template may have eaten those of the text
    """

    body: bytes
    overlap: str
    blanks: bool = False


class _Message(msgspec.Struct):
    role: str


_MESSAGES: Final = msgspec.json.Decoder(list[_Message])


class NotResumableError(Exception):
    """Another engine cannot go on with this answer; the message is the reason, in the words of the docs."""


# Harmless whatever their value.
_FREE: Final = frozenset(
    (
        "model", "messages", "stream", "max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p",
        "top_k", "min_p", "repetition_penalty", "stop", "stop_token_ids", "ignore_eos", "logit_bias", "user", "tools",
        "parallel_tool_calls", "metadata", "store", "service_tier", "priority", "cache_salt", "chat_template_kwargs",
        "reasoning_effort", "include_reasoning", "prompt_cache_key", "safety_identifier", "skip_special_tokens",
        "spaces_between_special_tokens", "seed", "frequency_penalty", "presence_penalty", "stream_interval",
        "verbosity", "prompt_cache_retention", "logprobs", "top_logprobs",
    )
)  # fmt: skip
# Fields of a chat that change its prompt, and that `/tokenize` knows as well (vLLM 0.32's TokenizeChatRequest).
_SHAPES_PROMPT: Final = ("tools", "chat_template", "chat_template_kwargs", "mm_processor_kwargs")
# Harmless with one of these values; null always is.
_ONLY: Final[Mapping[str, Callable[[Any], bool]]] = {
    "n": lambda value: value == 1,
    "best_of": lambda value: value == 1,
    "response_format": lambda value: isinstance(value, dict) and value.get("type") == "text",
    "tool_choice": lambda value: value in ("auto", "none"),
    "echo": lambda value: value is False,
    "continue_final_message": lambda value: value is False,
    "add_generation_prompt": lambda value: value is True,
    "use_beam_search": lambda value: value is False,
    "stream_options": lambda value: isinstance(value, dict) and not value.get("continuous_usage_stats"),
    "return_token_ids": lambda value: value is False,
    "include_stop_str_in_output": lambda value: value is False,
    "bad_words": lambda value: value == [],
    "functions": lambda value: value == [],
}


def continuation(body: bytes, cut: ChatCut, mode: ResumeMode) -> Continuation:
    """The request that goes on with `cut`, the answer to `body`. Raises NotResumableError."""
    fields = _fields(body)
    for name, value in fields.items():
        if value is not None and name not in _FREE and not (name in _ONLY and _ONLY[name](value)):
            raise NotResumableError(f"the request has {name}")
    if cut.calls:
        raise NotResumableError("a tool call has begun")
    greedy = fields.get("temperature") == 0
    changed = _near(fields, cut, greedy=greedy)
    if changed and mode != "near":
        raise NotResumableError(changed)
    messages = _messages(body)
    kept, overlap = _roll_back(cut.content, stops=bool(fields.get("stop")))
    if overlap and not greedy and (overlap.strip() or mode != "near"):
        raise NotResumableError("the cut is at a blank or in a possible stop string, and the answer is sampled")
    if overlap and fields.get("logprobs"):
        raise NotResumableError("the cut is at a blank or in a possible stop string, and the request has logprobs")
    values = {}
    if kept or cut.reasoning:
        message = {"role": "assistant", "content": kept} | ({"reasoning": cut.reasoning} if cut.reasoning else {})
        values["messages"] = messages[:-1].rstrip() + b"," + msgspec.json.encode(message) + b"]"
        values |= {"continue_final_message": b"true", "add_generation_prompt": b"false"}
    if fields.get("seed") is not None and not greedy:
        values["seed"] = b"null"  # the same one would draw the old numbers again, and the text would echo itself
    return Continuation(set_fields(body, values), overlap, blanks=bool(overlap) and not greedy)


def with_bounds(body: bytes, delivered: int) -> bytes:
    """`body` with the rest of its bounds, after `delivered` LLM tokens. Raises NotResumableError if none is left."""
    fields = _fields(body)
    values = {}
    for name in ("max_tokens", "max_completion_tokens"):
        bound = fields.get(name)
        if isinstance(bound, int):
            if bound <= delivered:
                raise NotResumableError("the bound of its output is reached")
            values[name] = b"%d" % (bound - delivered)
    least = fields.get("min_tokens")
    if isinstance(least, int) and least:
        values["min_tokens"] = b"%d" % max(0, least - delivered)
    return set_fields(body, values)


def counting(body: bytes, rest: bytes, model: str) -> tuple[bytes, bytes] | None:
    """The two requests to vLLM's `/tokenize` whose counts differ by the tokens of the delivered text: the prompt of
    `body`, and that of `rest`, its continuation. None where `rest` does not continue a text."""
    fields = dict(top_level(rest))
    if "continue_final_message" not in fields:
        return None
    whole: dict[str, msgspec.Raw] = {name: fields[name] for name in _SHAPES_PROMPT if name in fields}
    whole |= {"model": msgspec.Raw(msgspec.json.encode(model)), "messages": dict(top_level(body))["messages"]}
    open_ended = whole | {
        name: fields[name] for name in ("messages", "continue_final_message", "add_generation_prompt")
    }
    return msgspec.json.encode(whole), msgspec.json.encode(open_ended)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return {
            str(name): None if name == "messages" else msgspec.json.decode(value) for name, value in top_level(body)
        }
    except UNREADABLE:
        raise NotResumableError("the request cannot be read") from None


def _near(fields: Mapping[str, Any], cut: ChatCut, *, greedy: bool) -> str:
    """Why the rest would not be the same answer, though a sensible one; empty where it is the same."""
    if cut.reasoning:
        if not cut.content:
            raise NotResumableError("the cut is in the model's thinking")
        return "the model has been thinking, which a template may write in another way"
    if fields.get("seed") is not None and not greedy:
        return "the request has a seed"
    if "\ufffd" in cut.content:  # stands for bytes that no text has: they are not sampled again from it
        return "its text has bytes that are not UTF-8"
    if fields.get("frequency_penalty") or fields.get("presence_penalty"):
        return "the request has a penalty, which would forget the text so far"
    return ""


def _messages(body: bytes) -> bytes:
    """The client's messages as it wrote them."""
    written = dict(top_level(body)).get("messages", b"null")
    try:
        last = _MESSAGES.decode(written)[-1]
    except (*UNREADABLE, IndexError):
        raise NotResumableError("the request has no messages") from None
    if last.role == "assistant":
        raise NotResumableError("the last message is the assistant's")
    return bytes(written)


def _roll_back(content: str, *, stops: bool) -> tuple[str, str]:
    """The text to go on from, and its end that is written once more.

    Some templates trim a message, so it must not end in blanks. With stop strings vLLM holds back characters, so the
    text may end inside of a token: go back to the last blank.
    """
    kept = content.rstrip()
    if stops and kept == content:
        kept = content[: len(content) - len(content.split()[-1])].rstrip() if content.split() else ""
    return kept, content[len(kept) :]
