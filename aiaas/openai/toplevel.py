"""Read the fields of a JSON object one by one, duplicates included, without parsing their values.

msgspec decodes an object into a dict of raw slices at the speed of C, but a dict keeps only the last of two equal keys.
So make each key a `JsonKey` object, never equal to another; then the dict keeps all fields in order:

    top_level(b'{"n": 1, "mod\\u0065l": "a", "n": 2}')  ->  ("n", 1), ("model", "a"), ("n", 2)

This is the slow path of `peek` and `splice`: about 0.2 us a field, independent of nesting. The number of fields is
bounded, since each field costs a Python call.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from aiaas.errors import ClientError
from aiaas.openai import windows

MAX_FIELDS: Final = 1000  # vLLM's longest request model has fewer than a hundred fields
MAX_NAME: Final = 1000  # characters of a field's name; the regex that walks over names took 60 bytes for each escape

# A JSON escape of a lower-case letter or an underscore: the fields that we read have only these in their names. The
# escapes of Go's encoder (`<`, `>`, `&`) and of Python's (everything beyond ASCII) do not match.
_BACKSLASH: Final = ord("\\")
_ESCAPED_LETTER: Final = re.compile(rb"\\u00(?:5[fF]|6[1-9a-fA-F]|7[0-9aA])")
_ESCAPE: Final = 6  # bytes of an escape


def may_hide_keys(body: bytes) -> bool:
    r"""Whether `body` may hold a key that we read, written with escapes, such as `mod\u0065l`.

    If so, a search for `"model"` does not find every key. True for some harmless bodies, never false for such a key.
    """
    # A number, as bytes would cost four times as much. For longer texts `find`: `in` first tries them as a number.
    if _BACKSLASH not in body:
        return False
    # Not `\u00`: some texts have millions of backslashes, and each starts a comparison.
    first = windows.find_in(body, b"u00")
    return first > 0 and windows.search_in(_ESCAPED_LETTER, body, first - 1, _ESCAPE) is not None


UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def unreadable(error: BaseException) -> ClientError:
    """The 400 for an error of msgspec (one of UNREADABLE).

    A later read of the same body may fail although the first succeeded: a decoder skips the invalid UTF-8 of keys that
    it does not need, and msgspec's maximum depth depends on the depth of Python's own stack.
    """
    if isinstance(error, RecursionError):
        return ClientError(400, "invalid_request", "The body is nested too deeply.")
    return ClientError(400, "invalid_json", "The body is not valid JSON (RFC 8259, in UTF-8).")


class JsonKey:
    """One occurrence of a key. Keys compare by identity, so that a repeated key becomes a second entry."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def top_level(body: bytes) -> list[tuple[str, msgspec.Raw]]:
    """Every field of the object: its name with escapes resolved, and its raw value.

    Raises ClientError 400: one of `unreadable`, or `invalid_request` for more than MAX_FIELDS fields or for a name
    longer than MAX_NAME.
    """
    seen = 0

    def key(_: type, name: Any) -> JsonKey:
        nonlocal seen
        seen += 1
        if seen > MAX_FIELDS:
            raise ClientError(400, "invalid_request", f"The body has more than {MAX_FIELDS} top-level fields.")
        if len(name) > MAX_NAME:
            raise ClientError(400, "invalid_request", f"A field's name is longer than {MAX_NAME} characters.")
        return JsonKey(name)

    try:
        fields = msgspec.json.decode(body, type=dict[JsonKey, msgspec.Raw], dec_hook=key)
    except UNREADABLE as error:
        raise unreadable(error) from None
    return [(key.name, value) for key, value in fields.items()]
