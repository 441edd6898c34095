"""Join the rest of a chat to what its client has: the events of the second engine, as those of the first would be.

One id, one `created`, one role, no text twice. An event that does not fit ends the answer: an overlap that differs,
thinking behind content, an event that cannot be read.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas.openai.chat_cut import ChatCut, ChatEvent, chat_event, frame_of
from aiaas.openai.resumable import Continuation
from aiaas.openai.splice import set_field
from aiaas.openai.sse import event_data

_TEXT: Final = msgspec.json.Decoder(str)


class DiffersError(Exception):
    """The second engine writes something else than the first did; the message says what."""


class Joint:
    """The rest of one answer.

    delivered  LLM tokens of the text that the second engine reads as a part of its prompt
    begun      whether text of the rest has come
    """

    def __init__(self, cut: ChatCut, rest: Continuation, delivered: int) -> None:
        self._frame = cut.frame
        self._overlap = rest.overlap
        self._blanks = rest.blanks
        self._delivered = delivered
        self.begun = False

    def event(self, event: bytes) -> bytes:
        """The event for the client; empty where it has it already. Raises DiffersError."""
        data = event_data(event)
        if data is None or data.strip() == b"[DONE]":
            return event
        read, frame = chat_event(data), frame_of(data)
        if read is None or not frame:
            raise DiffersError("an event that cannot be read")
        data = self._frame + data[len(frame) :]
        if read.choice is None:
            return _as_event(self._usage(read, data))
        delta = read.choice.delta
        if delta.thinking:
            raise DiffersError("thinking behind content")
        text = delta.content or ""
        if (left := self._left(text)) != text:
            data = _replaced(data, text, left)
        if left or delta.calls:
            self.begun = True
        elif read.choice.finish_reason is None:  # the role, or text that the client has
            return b""
        if self._overlap and not self._blanks and (delta.calls or read.choice.finish_reason is not None):
            raise DiffersError("the answer ends before what was delivered")
        return _as_event(data if read.usage is None else self._usage(read, data))

    def _left(self, text: str) -> str:
        """The part of `text` that the client does not have yet."""
        if self._blanks:
            text = text.lstrip()
            self._blanks = not text
            self._overlap = ""
            return text
        known = min(len(text), len(self._overlap))
        if text[:known] != self._overlap[:known]:
            raise DiffersError("other text than was delivered")
        self._overlap = self._overlap[known:]
        return text[known:]

    def _usage(self, read: ChatEvent, data: bytes) -> bytes:
        """The usage of the whole answer: the second engine took a part of the output for its prompt."""
        usage = read.usage
        if usage is None or not self._delivered:
            return data
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt, int) or not isinstance(completion, int) or prompt < self._delivered:
            raise DiffersError("a usage that cannot be read")
        counts = {"prompt_tokens": prompt - self._delivered, "completion_tokens": completion + self._delivered}
        return set_field(data, "usage", msgspec.json.encode(usage | counts))


def _replaced(data: bytes, text: str, left: str) -> bytes:
    """The data with `left` for the content `text`."""
    at = data.find(b'"content":') + len(b'"content":')
    end = at
    while data[end : end + 1] != b'"' or end == at:
        end += 2 if data[end : end + 1] == b"\\" else 1
    if at < len(b'"content":') or _TEXT.decode(data[at : end + 1]) != text:
        raise DiffersError("an event that cannot be read")
    return data[:at] + msgspec.json.encode(left) + data[end + 1 :]


def _as_event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
