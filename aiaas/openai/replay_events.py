"""The events of a chat or of a completion, strictly: a field that is not in this file may be a part of the answer.

Source: `ChatCompletionStreamResponse`, `DeltaMessage` and `CompletionStreamResponse` of vLLM 0.32; `reasoning_content`
is the name of `reasoning` before 0.12, which some versions wrote beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from aiaas.openai.delivered import TextPart
from aiaas.openai.joint import DiffersError
from aiaas.openai.nested import ValuePath
from aiaas.openai.paths import CHAT


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a tool call."""

    index: int
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    function_call: None = None
    audio: None = None


class _Token(msgspec.Struct):
    """A token, without its probability: two engines agree on the latter but for its last digits."""

    token: str
    bytes: list[int] | None = None


class _ChatTokens(msgspec.Struct, forbid_unknown_fields=True):
    content: list[_Token] | None = None
    refusal: None = None


class _TextTokens(msgspec.Struct, forbid_unknown_fields=True):
    """Parallel lists."""

    tokens: list[str]
    token_logprobs: list[Any] | None = None
    top_logprobs: list[Any] | None = None
    text_offset: list[Any] | None = None


class ChoicePart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of one choice; all of its bytes are what the engine wrote."""

    index: int
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: None = None
    routed_experts: None = None

    @property
    def role(self) -> str | None:
        """The role of a chat's answer."""
        return None

    @property
    def calls(self) -> list[Call]:
        """The parts of tool calls."""
        return []


class _ChatChoice(ChoicePart, forbid_unknown_fields=True, kw_only=True):
    delta: _Delta
    logprobs: _ChatTokens | None = None

    @property
    def role(self) -> str | None:
        return self.delta.role

    @property
    def calls(self) -> list[Call]:
        return self.delta.tool_calls or []


class _TextChoice(ChoicePart, forbid_unknown_fields=True, kw_only=True):
    text: str
    logprobs: _TextTokens | None = None


class AnswerEvent(msgspec.Struct):
    """One event: parts of choices, or the usage."""

    usage: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None


class _ChatEvent(AnswerEvent, kw_only=True):
    choices: list[_ChatChoice]


class _TextEvent(AnswerEvent, kw_only=True):
    choices: list[_TextChoice]


class Part(NamedTuple):
    """A piece of one text or list of a choice.

    name   of that text or list
    stage  texts of one stage are written beside each other, those of another before or after; empty for lists
    piece  what this event has of it
    paths  where it stands in the choice: lists that belong together are as long as each other
    """

    name: str
    stage: str
    piece: TextPart
    paths: tuple[ValuePath, ...]


def event_of(data: bytes, path: str) -> tuple[AnswerEvent, list[ChoicePart]]:
    """The event in these data, and its choices. Raises as msgspec does."""
    if path == CHAT:
        chat = _CHAT.decode(data)
        return chat, list(chat.choices)
    text = _TEXT.decode(data)
    return text, list(text.choices)


_CHAT: Final = msgspec.json.Decoder(_ChatEvent)
_TEXT: Final = msgspec.json.Decoder(_TextEvent)


def parts_of(choice: ChoicePart) -> Iterator[Part]:
    """The parts of a choice, in the order in which they were generated. Raises DiffersError if lists do not match."""
    if isinstance(choice, _ChatChoice):
        yield from _texts(choice.delta)
        if choice.logprobs is not None and choice.logprobs.content:
            yield Part("tokens", "", choice.logprobs.content, (("logprobs", "content"),))
    elif isinstance(choice, _TextChoice):
        if choice.text:
            yield Part("text", "text", choice.text, (("text",),))
        if choice.logprobs is not None and choice.logprobs.tokens:
            yield _parallel(choice.logprobs)
    if choice.token_ids:
        yield Part("token_ids", "", choice.token_ids, (("token_ids",),))


def _texts(delta: _Delta) -> Iterator[Part]:
    for name, stage, piece in (
        ("reasoning", "reasoning", delta.reasoning),
        ("reasoning_content", "reasoning", delta.reasoning_content),
        ("content", "content", delta.content),
        ("refusal", "refusal", delta.refusal),
    ):
        if piece:
            yield Part(name, stage, piece, (("delta", name),))
    for position, call in enumerate(delta.tool_calls or ()):
        path: ValuePath = ("delta", "tool_calls", position, "function")
        for name in ("name", "arguments"):
            piece = getattr(call.function, name, None)
            if piece:
                stage = f"{name} of call {call.index}"
                yield Part(stage, stage, piece, ((*path, name),))


def _parallel(tokens: _TextTokens) -> Part:
    names = [name for name in _PARALLEL if getattr(tokens, name) is not None]
    if any(len(getattr(tokens, name)) != len(tokens.tokens) for name in names):
        raise DiffersError("lists of tokens that do not match")
    return Part("tokens", "", tokens.tokens, tuple(("logprobs", name) for name in names))


_PARALLEL: Final = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
