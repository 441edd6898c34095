"""The rest of a response or of a message that another engine writes once more from its beginning.

These streams are a sequence of frames (an item begins, a part ends) with runs of deltas between them. The frames of
both engines are the same, in the same order, but for their ids, times and usage; of a run the text is compared, since
the engines divide it into other deltas. Behind the delivered part everything passes, with the first engine's ids, and
with `sequence_number` counted on.

A signature of thinking is drawn anew by each engine. It is a frame here: the first one's stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aiaas.openai.delivered import Delivered
from aiaas.openai.joint import DiffersError
from aiaas.openai.nested import ValuePath, entries_of, list_of, set_at, value_at, values_of
from aiaas.openai.splice import set_field

_IDS: Final = ("id", "item_id", "call_id")
# Where the ids of an event stand, besides the event itself.
_HOLDERS: Final = ("response", "item", "message", "content_block")
# These differ between two engines though the answer is the same.
_FREE: Final = frozenset(
    ("sequence_number", "created_at", "completed_at", "usage", "logprobs", "signature", "encrypted_content",
     "system_fingerprint", "metrics")
)  # fmt: skip
# The last event of an engine that did not finish.
_BROKEN: Final = ("error", "response.failed", "response.cancelled")


class _Token(msgspec.Struct):
    """A token, without its probability: two engines agree on the latter but for its last digits."""

    token: str
    bytes: list[int] | None = None


class _ResponseDelta(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Source: the delta events of vLLM 0.32's `/v1/responses`."""

    type: str
    delta: str
    output_index: int
    item_id: str
    content_index: int | None = None
    summary_index: int | None = None
    sequence_number: int | None = None
    logprobs: list[_Token] | None = None
    obfuscation: str | None = None


class _Block(msgspec.Struct, forbid_unknown_fields=True):
    """A block's delta; it has one of the texts."""

    type: str
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _BlockDelta(msgspec.Struct, forbid_unknown_fields=True):
    """Source: `AnthropicStreamEvent` of vLLM 0.32."""

    type: str
    index: int
    delta: _Block


_RESPONSE_DELTA: Final = msgspec.json.Decoder(_ResponseDelta)
_BLOCK_DELTA: Final = msgspec.json.Decoder(_BlockDelta)
_FRAME: Final = msgspec.json.Decoder(dict[str, Any])
_DELTAS: Final = frozenset(
    f"response.{name}.delta"
    for name in (
        "output_text", "reasoning_text", "reasoning_summary_text", "refusal", "function_call_arguments",
        "custom_tool_call_input",
    )
)  # fmt: skip
_BLOCKS: Final = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class _Delta(msgspec.Struct, frozen=True):
    """A piece of a text. `kind` tells which text; `path` where the piece stands."""

    kind: tuple[object, ...]
    text: str
    path: ValuePath
    tokens: list[_Token]


class _Run:
    """A text that the client has, in one or more deltas."""

    def __init__(self, kind: tuple[object, ...]) -> None:
        self.kind = kind
        self.text = Delivered()
        self.tokens = Delivered()

    def add(self, delta: _Delta) -> None:
        self.text.add(delta.text)
        self.tokens.add(delta.tokens)

    @property
    def pending(self) -> bool:
        return self.text.pending or self.tokens.pending


class Typed:
    """A response or a message."""

    def __init__(self) -> None:
        self._items: list[_Run | dict[str, Any]] = []
        self._at = 0  # the first item that the second engine has not written yet
        self._ids: dict[str, str] = {}  # the first engine's, by the second one's
        self._number: int | None = None  # of the last event that the client has
        self._created = b""

    def deliver(self, data: bytes) -> None:
        """The client has this event. Raises DiffersError if it cannot be read exactly, and as msgspec does."""
        item = _item(data)
        fields = values_of(data)
        if "sequence_number" in fields:
            self._number = msgspec.json.decode(fields["sequence_number"], type=int)
        if isinstance(item, dict):
            if item["type"] in _BROKEN:
                raise DiffersError("the engine's error")
            if not self._created and isinstance(item.get("response"), dict) and "created_at" in item["response"]:
                self._created = value_at(data, ("response", "created_at"))
            self._items.append(item)
            return
        last = self._items[-1] if self._items else None
        if not isinstance(last, _Run) or last.kind != item.kind:
            if not item.text:
                return
            last = _Run(item.kind)
            self._items.append(last)
        last.add(item)

    def event(self, data: bytes) -> bytes:
        """The data for the client; empty if it has them. Raises DiffersError, and as msgspec does."""
        item = _item(data)
        if isinstance(item, dict) and item["type"] in _BROKEN:
            raise DiffersError("the second engine broke off, too")
        self._pass_ended_run(item)
        if self._at == len(self._items):
            return self._numbered(self._with_ids(data))
        expected = self._items[self._at]
        if isinstance(item, dict):
            if isinstance(expected, _Run):
                raise DiffersError("a text ends before what was delivered")
            self._match(expected, item)
            self._at += 1
            return b""
        if not item.text and not item.tokens:
            return b""
        if not isinstance(expected, _Run) or expected.kind != item.kind:
            raise DiffersError("another text than was delivered")
        return self._left(expected, item, data)

    def _pass_ended_run(self, item: _Delta | dict[str, Any]) -> None:
        """Go on behind a run of which nothing is left, where this item does not belong to it."""
        if self._at < len(self._items):
            run = self._items[self._at]
            if isinstance(run, _Run) and not run.pending and (isinstance(item, dict) or item.kind != run.kind):
                self._at += 1

    def _left(self, run: _Run, delta: _Delta, data: bytes) -> bytes:
        """The part of a delta that the client does not have."""
        text, tokens = run.text.left(delta.text), run.tokens.left(delta.tokens)
        if not text and not tokens:
            return b""
        if self._at < len(self._items) - 1 or run.pending or not text:
            raise DiffersError("more text than was delivered")
        if len(text) < len(delta.text):
            data = set_at(data, delta.path, msgspec.json.encode(text))
        if (cut := len(delta.tokens) - len(tokens)) > 0:
            data = set_field(data, "logprobs", list_of(entries_of(value_at(data, ("logprobs",)))[cut:]))
        return self._numbered(self._with_ids(data))

    def _match(self, first: Any, second: Any, name: str = "") -> None:
        """Compare a frame of both engines, and learn the ids of the second. Raises DiffersError."""
        if name in _FREE:
            return
        if isinstance(first, dict) and isinstance(second, dict):
            if first.keys() - _FREE != second.keys() - _FREE:
                raise DiffersError("another event than was delivered")
            for key, value in first.items():
                self._match(value, second.get(key), key)
        elif isinstance(first, list) and isinstance(second, list):
            if len(first) != len(second):
                raise DiffersError("another event than was delivered")
            for mine, other in zip(first, second, strict=True):
                self._match(mine, other)
        elif name in _IDS and isinstance(first, str) and isinstance(second, str):
            if self._ids.setdefault(second, first) != first:
                raise DiffersError("other ids than were delivered")
        elif first != second:
            raise DiffersError("another event than was delivered")

    def _with_ids(self, data: bytes) -> bytes:
        """The data with the first engine's ids, and its time."""
        changed = {other: mine for other, mine in self._ids.items() if other != mine}
        data = _renamed(data, changed, self._created)
        if any(msgspec.json.encode(other) in data for other in changed):
            raise DiffersError("an id in an unknown place")
        return data

    def _numbered(self, data: bytes) -> bytes:
        if self._number is None or "sequence_number" not in values_of(data):
            return data
        self._number += 1
        return set_field(data, "sequence_number", b"%d" % self._number)


def _item(data: bytes) -> _Delta | dict[str, Any]:
    """The delta in these data, or the whole frame. Raises DiffersError, and as msgspec does."""
    frame = _FRAME.decode(data)
    kind = frame.get("type")
    if not isinstance(kind, str):
        raise DiffersError("an event without a type")
    if kind == "content_block_delta":
        return frame if _is_signature(frame) else _block_delta(data)
    if not kind.endswith(".delta"):
        return frame
    if kind not in _DELTAS:
        raise DiffersError("an unknown kind of text")
    delta = _RESPONSE_DELTA.decode(data)
    where = (kind, delta.output_index, delta.content_index, delta.summary_index)
    return _Delta(where, delta.delta, ("delta",), delta.logprobs or [])


def _block_delta(data: bytes) -> _Delta:
    event = _BLOCK_DELTA.decode(data)
    name = _BLOCKS.get(event.delta.type, "")
    texts = {field: getattr(event.delta, field) for field in _BLOCKS.values()}
    text = texts.pop(name, None)
    if text is None or any(other is not None for other in texts.values()):
        raise DiffersError("an unknown kind of text")
    return _Delta((event.delta.type, event.index), text, ("delta", name), [])


def _is_signature(frame: Mapping[str, Any]) -> bool:
    delta = frame.get("delta")
    return isinstance(delta, dict) and bool(delta.get("type") == "signature_delta")


def _renamed(data: bytes, ids: Mapping[str, str], created: bytes) -> bytes:
    """An object with other ids, also in the objects that it holds."""
    for name, value in values_of(data).items():
        if name in _IDS and value.startswith(b'"'):
            text = msgspec.json.decode(value)
            if text in ids:
                data = set_field(data, name, msgspec.json.encode(ids[text]))
        elif name in _HOLDERS and value.startswith(b"{"):
            data = set_field(data, name, _renamed(value, ids, created))
        elif name == "output" and value.startswith(b"["):
            entries = [_renamed(entry, ids, b"") if entry.startswith(b"{") else entry for entry in entries_of(value)]
            data = set_field(data, name, list_of(entries))
        elif name == "created_at" and created:
            data = set_field(data, name, created)
    return data
