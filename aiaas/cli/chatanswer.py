"""The text of a streamed chat as it comes: answer and reasoning, told apart."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from aiaas.httpclient.answer import Answer
from aiaas.openai.sse import event_data
from aiaas.openai.toplevel import UNREADABLE


class TakeText(Protocol):
    """Gets each part of the answer."""

    def __call__(self, text: str, *, is_reasoning: bool) -> None:
        """One part."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_CHUNK: Final[msgspec.json.Decoder[_Chunk]] = msgspec.json.Decoder(_Chunk)


class ChatAnswer(Answer):
    """A streamed answer that hands on its text."""

    __slots__ = ("_take",)

    def __init__(self, take: TakeText) -> None:
        super().__init__(wants_stream=True)
        self._take = take

    def _event(self, event: bytes, now: float) -> None:
        super()._event(event, now)
        data = event_data(event)
        if data is None or self.error:
            return
        try:
            chunk = _CHUNK.decode(data)
        except UNREADABLE:  # [DONE]
            return
        for choice in chunk.choices:
            delta = choice.delta
            if thought := delta.reasoning or delta.reasoning_content:
                self._take(thought, is_reasoning=True)
            if text := delta.content or delta.refusal:
                self._take(text, is_reasoning=False)
