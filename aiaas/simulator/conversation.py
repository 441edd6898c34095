"""A conversation as the tokens that the engine reads: the cost of a prompt, what /tokenize shows, and an open answer.

    <|start|> ROLE <|text|> TEXT <|end|>      each message: 4 tokens and those of its text
    <|start|> assistant <|text|>              the opening of an answer (`add_generation_prompt`)

With `continue_final_message` the last message has no <|end|> and no opening follows, so that the engine continues its
text. A chat's tools stand in front of the first message as JSON. Usage and /tokenize count these same tokens.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from aiaas.simulator import errors
from aiaas.simulator.forms import Opening
from aiaas.simulator.generate import tokenize

ChatMessage = dict[str, Any]

_MEDIA: Final = frozenset({"image_url", "input_audio", "audio_url", "video_url"})
# A tool call's arguments that are nested deeper exceed CPython 3.11's recursion limit of 1000, some of which vLLM's own
# frames use; vLLM parses 500 levels.
_MAX_NESTING: Final = 900


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat's prompt.

    model    named where media are refused
    opening  whether an answer is opened after the last message
    opened   whether the engine continues the last message
    """

    model: str
    messages: Sequence[ChatMessage]
    tools: Sequence[object] | None = None
    opening: bool = True
    opened: bool = False

    def pieces(self) -> list[str]:
        """Return the tokens. Raises WireError for images and sound, which the simulated model cannot read."""
        found = tokenize(json.dumps(self.tools)) if self.tools else []
        for message in self.messages:
            text = tokenize(text_of(message, self.model))
            found += ["<|start|>", str(message.get("role")), "<|text|>", *text, "<|end|>"]
        if self.opened:
            found.pop()
        return [*found, "<|start|>", "assistant", "<|text|>"] if self.opening else found

    @property
    def answered(self) -> Sequence[ChatMessage]:
        """The messages that the answer follows: without its own beginning."""
        return self.messages[:-1] if self.opened else self.messages

    @property
    def beginning(self) -> str:
        """The text that the engine continues, or ""."""
        return text_of(self.messages[-1], self.model) if self.opened else ""


def chat_prompt(
    model: str, messages: Sequence[ChatMessage], tools: Sequence[object] | None, form: Opening
) -> ChatPrompt:
    """Build a chat's prompt.

    Raises:
        WireError: 400, there is no message, or `continue_final_message` contradicts the rest; 500, arguments of a tool
            call are nested too deep.
    """
    if not messages:
        raise errors.empty_conversation()
    check_arguments(calls_of(messages))
    if form.continue_final_message:
        if messages[-1].get("content") is None:
            raise errors.nothing_to_continue()
        if form.add_generation_prompt:
            raise errors.opened_and_continued()
    return ChatPrompt(model, messages, tools, form.add_generation_prompt, form.continue_final_message)


def calls_of(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the function calls in a conversation."""
    calls = [
        call for message in messages if isinstance(message.get("tool_calls"), list) for call in message["tool_calls"]
    ]
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    return [function for function in functions if isinstance(function, dict)]


def check_arguments(calls: Iterable[ChatMessage]) -> None:
    """Refuse arguments that are nested too deep for vLLM's JSON parser; vLLM ignores text that is not JSON."""
    for call in calls:
        arguments = call.get("arguments")
        if isinstance(arguments, str):
            steps = ((character in "[{") - (character in "]}") for character in arguments)
            if max(accumulate(steps), default=0) > _MAX_NESTING:
                raise errors.nested_too_deep()


def text_of(message: ChatMessage, model: str) -> str:
    """Return a message's text, its parts as lines. Raises WireError for images and sound."""
    content = message.get("content")
    if not isinstance(content, list):
        return str(content or "")
    parts = [part for part in content if isinstance(part, dict)]
    if any(part.get("type") in _MEDIA for part in parts):
        raise errors.bad_request(f"{model} is not a multimodal model")
    return "\n".join(str(part.get("text", "")) for part in parts)
