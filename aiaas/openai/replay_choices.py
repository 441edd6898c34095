"""The rest of a chat or of a completion that another engine writes once more from its beginning.

Texts are compared, never events: an event holds one token or twelve, as the engine happened to be busy. For each choice
and each of its texts (thinking, content, the name and the arguments of each call), what the client has is the beginning
of what the second engine writes. An event of which the client has everything is dropped, one of which it has a part is
written again with the rest, and from there on they pass, under the first stream's id.

New text while delivered text has not come again yet would be in another order than the first engine's: an error.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from aiaas.openai.chat_cut import frame_of
from aiaas.openai.delivered import Delivered, TextPart
from aiaas.openai.joint import DiffersError
from aiaas.openai.nested import ValuePath, entries_of, list_of, set_at, value_at
from aiaas.openai.replay_events import ChoicePart, Part, event_of, parts_of
from aiaas.openai.splice import set_field

_DONE: Final = b"[DONE]"
_BROKEN: Final = ("abort", "error")  # the reasons of an engine that did not finish


class _Frame(msgspec.Struct, forbid_unknown_fields=True):
    """The beginning of an event, in front of its choices."""

    id: str
    object: str
    created: int
    model: str


_FRAME: Final = msgspec.json.Decoder(_Frame)
_ONCE: Final = ("prompt_token_ids", "prompt_text")  # in the first event alone


class _Edit(NamedTuple):
    """A change of one value: another one; nothing if `value` is None; or a list without its first `cut` entries."""

    path: ValuePath
    value: bytes | None
    cut: int = 0


class _Answer:
    """One choice, as far as the client has it."""

    def __init__(self) -> None:
        self.texts: dict[str, Delivered] = {}
        self.stages: dict[str, str] = {}
        self.role = False
        self.prompt = False
        self.finish: str | None = None
        self.finished = False  # the second engine has finished it, too
        self.calls: dict[int, frozenset[str]] = {}  # which of `id` and `type` the client has, by the call's index

    def deliver(self, choice: ChoicePart) -> None:
        """The client has this part of the choice."""
        for part in parts_of(choice):
            if self.finish is not None:
                raise DiffersError("text behind the end")
            self.texts.setdefault(part.name, Delivered()).add(part.piece)
            self.stages[part.name] = part.stage
        self.role = self.role or choice.role is not None
        self.prompt = self.prompt or choice.prompt_token_ids is not None
        self.finish = choice.finish_reason or self.finish
        for call in choice.calls:
            had = [name for name in ("id", "type") if getattr(call, name) is not None]
            self.calls[call.index] = self.calls.get(call.index, frozenset()).union(had)

    @property
    def pending(self) -> list[str]:
        """The texts of which the second engine has not written all that was delivered."""
        return [name for name, text in self.texts.items() if text.pending]

    def check_end(self) -> None:
        """Raise DiffersError if something that was delivered has not come again."""
        if self.pending or (self.finish is not None and not self.finished):
            raise DiffersError("the answer ends before what was delivered")

    def left(self, choice: ChoicePart) -> list[tuple[Part, TextPart]]:
        """Each part with its news. Raises DiffersError."""
        lefts = []
        for part in parts_of(choice):
            text = self.texts.get(part.name)
            left = part.piece if text is None else text.left(part.piece)
            if (
                left
                and part.stage
                and self.texts
                and any(self.stages[name] not in ("", part.stage) for name in self.pending)
            ):
                raise DiffersError("new text in front of text that was delivered")
            lefts.append((part, left))
        if any(left for _, left in lefts):
            if self.pending:
                raise DiffersError("new text in front of tokens that were delivered")
            if self.finish is not None or self.finished:
                raise DiffersError("the answer goes on behind its end")
        return lefts

    def is_end(self, choice: ChoicePart) -> bool:
        """Whether this part has the finish_reason, which the client does not have. Raises DiffersError."""
        if choice.finish_reason is None:
            return False
        if choice.finish_reason in _BROKEN:
            raise DiffersError("the second engine broke off, too")
        if self.finish not in (None, choice.finish_reason):
            raise DiffersError("another finish_reason than was delivered")
        again, self.finished = self.finished, True
        self.check_end()
        return self.finish is None and not again


class Choices:
    """An answer of one or several choices."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._answers: dict[int, _Answer] = {}
        self._frame = b""  # the first engine's
        self._other = b""  # the second engine's
        self._head: _Frame | None = None
        self._prompt = False  # the client has the prompt's tokens
        self._usage = False
        self._done = False

    def deliver(self, data: bytes) -> None:
        """The client has this event. Raises DiffersError if it cannot be read exactly, and as msgspec does."""
        if self._done or data.strip() == _DONE:
            self._done = True
            return
        event, choices = event_of(data, self._path)
        frame = frame_of(data)
        if self._usage or frame != (self._frame or frame):
            raise DiffersError("events of two answers")
        if not self._frame:
            self._frame, self._head = frame, _head(frame)
        self._prompt = self._prompt or any(getattr(event, name) is not None for name in _ONCE)
        self._usage = self._is_usage(event.usage, choices)
        for choice in choices:
            self._answers.setdefault(choice.index, _Answer()).deliver(choice)

    def event(self, data: bytes) -> bytes:
        """The data for the client; empty if it has them. Raises DiffersError, and as msgspec does."""
        if data.strip() == _DONE:
            return self._last(data, had=self._done)
        event, choices = event_of(data, self._path)
        framed = self._framed(data)
        if self._is_usage(event.usage, choices):
            return self._last(framed, had=self._usage)
        edits = [self._edits(choice) for choice in choices]
        if all(each is None for each in edits):
            return b""
        if self._usage or self._done:
            raise DiffersError("the answer goes on behind its end")
        if not any(each is None or each for each in edits):
            return framed
        entries = entries_of(value_at(framed, ("choices",)))
        changed = [_changed(entry, each) for entry, each in zip(entries, edits, strict=True) if each is not None]
        framed = set_field(framed, "choices", list_of(changed))
        for name in _ONCE if self._prompt else ():
            framed = set_field(framed, name, b"null") if getattr(event, name) is not None else framed
        return framed

    def _last(self, data: bytes, *, had: bool) -> bytes:
        """Data that come behind all choices."""
        for answer in self._answers.values():
            answer.check_end()
        return b"" if had else data

    def _is_usage(self, usage: dict[str, Any] | None, choices: list[ChoicePart]) -> bool:
        if not choices and usage is None:
            raise DiffersError("an event that cannot be read")
        return not choices

    def _framed(self, data: bytes) -> bytes:
        """The data under the first stream's id."""
        frame = frame_of(data)
        if not self._other or frame != self._other:
            head = _head(frame)
            if self._head is None:
                self._frame, self._head = frame, head
            if (head.object, head.model) != (self._head.object, self._head.model):
                raise DiffersError("another model than before")
            self._other = frame
        return self._frame + data[len(frame) :]

    def _edits(self, choice: ChoicePart) -> list[_Edit] | None:
        """The changes that make a choice one for the client; None if it has all of it."""
        answer = self._answers.setdefault(choice.index, _Answer())
        lefts = answer.left(choice)
        end = answer.is_end(choice)
        role = choice.role is not None and not answer.role
        calls = _new_calls(answer, choice, lefts)
        if not (end or role or any(calls) or any(left for _, left in lefts)):
            return None
        edits = [edit for part, left in lefts if len(left) < len(part.piece) for edit in _cuts(part, left)]
        if choice.role is not None and answer.role:
            edits.append(_Edit(("delta", "role"), None))
        for at, call in enumerate(choice.calls):
            had = answer.calls.get(call.index, frozenset())
            names = [name for name in ("id", "type") if name in had and getattr(call, name) is not None]
            edits += [_Edit(("delta", "tool_calls", at, name), None) for name in names]
        if not edits:
            return edits
        if answer.prompt and choice.prompt_token_ids is not None:
            edits.append(_Edit(("prompt_token_ids",), b"null"))
        if calls and not any(calls):
            return [*edits, _Edit(("delta", "tool_calls"), None)]
        old = [at for at, new in enumerate(calls) if not new]
        return edits + [_Edit(("delta", "tool_calls", at), None) for at in reversed(old)]


def _head(frame: bytes) -> _Frame:
    return _FRAME.decode(frame + b"}")


def _new_calls(answer: _Answer, choice: ChoicePart, lefts: list[tuple[Part, TextPart]]) -> list[bool]:
    """For each part of a call in this choice, whether it has news."""
    new = {part.paths[0][:3] for part, left in lefts if left}
    return [
        ("delta", "tool_calls", at) in new
        or (call.id is not None and "id" not in answer.calls.get(call.index, frozenset()))
        for at, call in enumerate(choice.calls)
    ]


def _cuts(part: Part, left: TextPart) -> list[_Edit]:
    """The changes that leave `left` of a part."""
    if isinstance(left, list):
        return [_Edit(path, None, len(part.piece) - len(left)) for path in part.paths]
    # A client puts the pieces of a name together, and may take a second name, even an empty one, for a second call.
    is_name = part.paths[0][-1] == "name"
    return [_Edit(part.paths[0], None if is_name and not left else msgspec.json.encode(left))]


def _changed(written: bytes, edits: list[_Edit]) -> bytes:
    """A choice with these changes, in order."""
    for edit in edits:
        value = edit.value
        if edit.cut:
            value = list_of(entries_of(value_at(written, edit.path))[edit.cut :])
        written = set_at(written, edit.path, value)
    return written
