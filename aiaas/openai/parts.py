"""Find a field of a message's parts that belongs to the operator: tensors (`image_embeds`), and names of cached media.

    {"type": "image_embeds", "image_embeds": "<base64>"}
    {"type": "image_url", "image_url": null, "uuid": "x"}     the picture that the engine's cache knows as x

Only parts count, the objects in a list below `content` or `output`: the same name in a tool's schema, in `metadata` or
beside a message's `role` is data. As in `media.py`, a search of the bytes ends nearly every request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from aiaas.errors import ClientError
from aiaas.openai.media import MAX_DEPTH, MAX_OBJECTS, READ
from aiaas.openai.toplevel import UNREADABLE, top_level, unreadable

_UUID: Final = "uuid"
_INSIDE: Final = ("content", "output")
# vLLM reads `uuid` of media only.
_TEXTS: Final = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "tool_use", "tool_result"})
_WINDOW: Final = 256 * 1024  # bytes; one search blocks all other threads until it ends


def part_field(body: bytes, path: str, names: frozenset[str], *, escaped: bool) -> str | None:
    """The place of a part's field in `names` with a value, in `body`, a request to `path`; None if absent.

        messages[3].content[1].image_embeds

    escaped  the result of `may_hide_keys(body)`

    Raises ClientError 400 `invalid_request` for more than MAX_OBJECTS lists and objects.
    """
    fields = READ[path]
    if not fields or not (escaped or _has(body, b'_embeds"') or (_UUID in names and _has(body, b'"uuid"'))):
        return None
    for name, written in top_level(body):
        value = bytes(written)
        if name in fields and value[:1] in (b"[", b"{"):
            if value.count(b"{") + value.count(b"[") > MAX_OBJECTS:
                raise ClientError(400, "invalid_request", "The body holds too many values besides images or audio.")
            try:
                decoded = msgspec.json.decode(value)
            except UNREADABLE as error:
                raise unreadable(error) from None
            for place, part in _parts(decoded, name, 0):
                if (found := _field(part, names)) is not None:
                    return f"{place}.{found}"
    return None


def _field(part: dict[str, Any], names: frozenset[str]) -> str | None:
    for name in names:
        if part.get(name) is not None and (name != _UUID or part.get("type") not in _TEXTS):
            return name
    return None


def _parts(value: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part in `value`, with its place. Lists directly in lists are the conversations of a batch."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            here = f"{place}[{number}]"
            if isinstance(item, dict) and depth > 0:
                yield here, item
            yield from _parts(item, here, depth)
    elif isinstance(value, dict) and depth <= MAX_DEPTH:
        for name in _INSIDE:
            if name in value:
                yield from _parts(value[name], f"{place}.{name}", depth + 1)


def _has(body: bytes, what: bytes) -> bool:
    if len(body) <= _WINDOW:
        return body.find(what) >= 0
    return any(body.find(what, at, at + _WINDOW + len(what)) >= 0 for at in range(0, len(body), _WINDOW))
