"""Change a top-level field of a request body and leave every other byte as the client wrote it.

Decoding and encoding again would lose order, number formats and repeated unknown fields. So find the span of the value
and replace it:

    set_field(b'{"model": "chat", "n": 1}', "model", b'"llama"')  ->  b'{"model": "llama", "n": 1}'

In the usual case the key occurs once in the body, and msgspec finds it at the top level, so that occurrence is the key.
Otherwise (the key also occurs nested, in a string, or with escapes) walk the object field by field; the lengths of
msgspec's raw values take the walk past nested values. Both ways are linear in the body's length. For a large body the
walk is quicker, since it does not search (10 MiB of escaped text: 10 ms against 40).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from aiaas.openai.toplevel import UNREADABLE, may_hide_keys, top_level, unreadable

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
LARGEST_DECODED: Final = 256 * 1024  # bytes
_COLON: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_KEY: Final = re.compile(rb'[ \t\r\n,]*"[^"\\]*(?:\\.[^"\\]*)*"[ \t\r\n]*:[ \t\r\n]*')


def set_field(body: bytes, name: str, value: bytes) -> bytes:
    """`body`, a JSON object that `peek` accepted, with the top-level field `name` set to `value`, itself JSON.

    The old value is replaced in place; an absent field is inserted after the opening brace. If the key is repeated
    (`peek` refuses that for the fields it reads), every value is replaced. `name` consists of lower-case letters and
    underscores, like all of vLLM's names. Raises as `top_level` does.
    """
    if len(body) > LARGEST_DECODED:
        return _walk(body, top_level(body), name, value)
    try:
        fields = _OBJECT.decode(body)
    except UNREADABLE as error:
        raise unreadable(error) from None
    old = fields.get(name)
    if old is None:
        return _insert(body, name, value, empty=not fields)
    key = b'"%b"' % name.encode()
    at = body.find(key)
    if at < 0 or body.find(key, at + 1) >= 0 or may_hide_keys(body):
        return _walk(body, top_level(body), name, value)
    colon = _COLON.match(body, at + len(key))
    assert colon is not None  # the parser found the key
    start = colon.end()
    return body[:start] + value + body[start + len(memoryview(old)) :]


def replace_model(body: bytes, old: str, value: bytes, *, plain: bool) -> bytes:
    """`set_field` for `model`, whose value is known to be the text `old`. Needs no parser if `plain` (`Peek.plain`)."""
    if plain:
        name = old.encode()
        for key in (b'"model": ', b'"model":'):
            spliced = body.replace(b"".join((key, b'"', name, b'"')), key + value, 1)
            if spliced != body:
                return spliced
    return set_field(body, "model", value)


def set_fields(body: bytes, values: Mapping[str, bytes]) -> bytes:
    """Call `set_field` for each of several fields."""
    for name, value in values.items():
        body = set_field(body, name, value)
    return body


def remove_field(body: bytes, name: str) -> bytes:
    """`body`, a JSON object that `peek` accepted, without the top-level field `name`; other bytes stay.

    The comma in front of the field goes with it; that behind it, where no field is left in front.
    """
    at = body.index(b"{") + 1
    parts = [body[:at]]
    removed = kept = False
    for key, old in top_level(body):
        head = _KEY.match(body, at)
        assert head is not None  # the parser found a field here
        end = head.end() + len(memoryview(old))
        if key == name:
            removed = True
        else:
            part = body[at:end]
            parts.append(part.lstrip(b" \t\r\n,") if removed and not kept else part)
            kept = True
        at = end
    parts.append(body[at:])
    return b"".join(parts)


def insert_field(body: bytes, name: str, value: bytes) -> bytes:
    """`body`, a JSON object with other fields and without the field `name`, with that field first."""
    return _insert(body, name, value, empty=False)


def ask_for_usage(body: bytes, *, has_options: bool) -> bytes:
    """`body`, a request for a stream that `peek` accepted, with `stream_options.include_usage` set.

    The other options stay unchanged (`has_options`: the body has `stream_options`).
    """
    value = b'{"include_usage":true}'
    if has_options:
        options = bytes(dict(top_level(body))["stream_options"])
        value = set_field(options, "include_usage", b"true")
        # vLLM obeys `continuous_usage_stats` only together with `include_usage`. A client that sets the former alone
        # gets no usage on its events, so unset it.
        continuous = dict(top_level(options)).get("continuous_usage_stats")
        if continuous is not None and bytes(continuous) not in (b"false", b"null"):
            value = set_field(value, "continuous_usage_stats", b"false")
    return set_field(body, "stream_options", value)


def _insert(body: bytes, name: str, value: bytes, *, empty: bool) -> bytes:
    brace = body.index(b"{") + 1
    return body[:brace] + b'"' + name.encode() + b'":' + value + (b"" if empty else b",") + body[brace:]


def _walk(body: bytes, fields: list[tuple[str, msgspec.Raw]], name: str, value: bytes) -> bytes:
    parts: list[bytes] = []
    kept = 0
    at = body.index(b"{") + 1
    for key, old in fields:
        head = _KEY.match(body, at)
        assert head is not None  # the parser found a field here
        at = head.end() + len(memoryview(old))
        if key == name:
            parts += (body[kept : head.end()], value)
            kept = at
    if not parts:
        return _insert(body, name, value, empty=not fields)
    parts.append(body[kept:])
    return b"".join(parts)
