"""An answer whose parts are counted: whether a stream is one answer, also where a gateway joined it from two.

Such a stream has one id, one event with the role, one `finish_reason`, one usage event and one `[DONE]`. Each event is
decoded a second time for this, which costs a tenth of reading it. Pure.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas.httpclient.answer import Answer
from aiaas.openai.sse import event_data


class _CountedDelta(msgspec.Struct):
    role: str | None = None


class _CountedChoice(msgspec.Struct):
    delta: _CountedDelta | None = None
    finish_reason: str | None = None


class _CountedUsage(msgspec.Struct):
    """Its fields do not matter here."""


class _CountedEvent(msgspec.Struct):
    id: str | None = None
    choices: list[_CountedChoice] | None = None
    usage: _CountedUsage | None = None


_DECODER: Final[msgspec.json.Decoder[_CountedEvent]] = msgspec.json.Decoder(_CountedEvent)


class CountedAnswer(Answer):
    """An answer with its counts.

    ids       changes of the id, the first one included: 1 for one id
    roles     events that name a role; 0 in a stream without deltas, whose `chat` is False
    finishes  events with a finish_reason; `finish` is the last one
    usages    events with usage and without choices
    dones     `[DONE]` events
    """

    __slots__ = ("_id", "chat", "dones", "finish", "finishes", "ids", "roles", "usages")

    def __init__(self, wants_stream: bool) -> None:
        super().__init__(wants_stream)
        self._id = ""
        self.ids = self.roles = self.finishes = self.usages = self.dones = 0
        self.finish = ""
        self.chat = False

    def _event(self, event: bytes, now: float) -> None:
        super()._event(event, now)
        data = event_data(event)
        if data is None:
            return
        if data.strip() == b"[DONE]":
            self.dones += 1
            return
        try:
            read = _DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # `Answer` has noted it
        if read.id is not None and read.id != self._id:
            self._id = read.id
            self.ids += 1
        for choice in read.choices or ():
            self._count(choice)
        if not read.choices and read.usage is not None:
            self.usages += 1

    def _count(self, choice: _CountedChoice) -> None:
        if choice.delta is not None:
            self.chat = True
            self.roles += choice.delta.role is not None
        if choice.finish_reason is not None:
            self.finishes += 1
            self.finish = choice.finish_reason
