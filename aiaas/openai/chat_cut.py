"""The part of a chat stream that its client has when it breaks off, read from the bytes that were relayed to it.

Read only once a stream has broken, so it parses every event. None stands for an answer that cannot be read exactly: it
goes on only where it is known to the last character what the client has.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aiaas.openai.sse import EventSplitter, event_data

_CHOICES: Final = b',"choices":'  # a quote inside a JSON string is escaped, so no text holds this


class ChatCut(msgspec.Struct, frozen=True):
    """The answer to a request for one choice, as far as the client has it.

    frame      the beginning of each of its events: `{"id":...,"object":...,"created":...,"model":...`
    reasoning  the text of the model's thinking
    content    the text of the answer
    calls      whether a tool call has begun
    finished   whether its finish_reason has come: nothing but usage and `[DONE]` is missing
    events     those with text
    """

    frame: bytes
    reasoning: str = ""
    content: str = ""
    calls: bool = False
    finished: bool = False
    events: int = 0


class Delta(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of vLLM 0.32's `DeltaMessage`. An unknown one may be part of the answer, so it is an error.

    reasoning_content  the name of `reasoning` before vLLM 0.12
    """

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw | None = None
    refusal: None = None
    audio: None = None

    @property
    def thinking(self) -> str:
        """The text of the model's thinking."""
        return self.reasoning or self.reasoning_content or ""

    @property
    def calls(self) -> bool:
        """Whether it has a part of a tool call."""
        return bool(self.tool_calls) or self.function_call is not None


class _Choice(msgspec.Struct):
    index: int
    delta: Delta
    finish_reason: str | None = None


class ChatEvent(msgspec.Struct):
    """One event of a chat's stream."""

    choices: list[_Choice]
    usage: dict[str, Any] | None = None

    @property
    def choice(self) -> _Choice | None:
        """Its only choice; None for the event with the usage."""
        return self.choices[0] if self.choices else None


_EVENT: Final = msgspec.json.Decoder(ChatEvent)


def chat_event(data: bytes) -> ChatEvent | None:
    """The event in these data; None if vLLM does not write such events of one choice."""
    try:
        event = _EVENT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return event if len(event.choices) < 2 and all(choice.index == 0 for choice in event.choices) else None


def frame_of(data: bytes) -> bytes:
    """The bytes of an event's data that stand in front of its choices; empty if they are not there."""
    return data[: max(0, data.find(_CHOICES))]


def chat_cut(relayed: bytes) -> ChatCut | None:
    """The part that the client has; None where that is not clear.

    relayed  whole events; comments among them do not count
    """
    frame, reasoning, content = b"", [], []
    calls = finished = False
    events = 0
    for event in EventSplitter(limit=len(relayed)).feed(relayed):
        data = event_data(event)
        if data is None:
            continue
        read = chat_event(data)
        if read is None:
            return None
        frame = frame or frame_of(data)
        choice = read.choice
        if choice is None:
            continue
        delta = choice.delta
        reasoning.append(delta.thinking)
        content.append(delta.content or "")
        calls = calls or delta.calls
        finished = finished or choice.finish_reason is not None
        events += bool(delta.thinking or delta.content or delta.calls)
    if not frame:
        return None
    return ChatCut(frame, "".join(reasoning), "".join(content), calls, finished, events)
