"""Convert values that vLLM accepts although they do not have the field's type: `"50"`, `50.0`, `1` for true, UTF-16.

Theory: FastAPI parses the body with Python's `json.loads` and passes the result to vLLM's request models, and pydantic
converts each value in its lax mode. This module uses the same parser, and pydantic's own rules for int and bool. So a
value is converted to the number that vLLM gets, or refused. `tests/openai/lenient_table.py` holds the decisions, and
`tests/e2e/test_vllm_lenient.py` compares them with those of vLLM's own request models.

This is a slow path: `peek` uses it only after its strict decoder has refused a field's type.
"""

from __future__ import annotations

import json
import re
from typing import Final

from msgspec import Raw

from aiaas.openai.toplevel import unreadable

# Bytes of a value to convert. 2^63 has 19 digits; converting a number of a million digits would block the event loop.
LONGEST_VALUE: Final = 100
# pydantic does not convert floats of this size or more.
_FLOATS: Final = 2.0**63

# Rust's `trim`, which pydantic uses, strips Unicode's White_Space. Python's `str.strip` strips four more characters.
_BLANK: Final = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*"
_WHOLE: Final = re.compile(f"{_BLANK}([+-]?[0-9]+(?:_[0-9]+)*)(?:\\.0+)?{_BLANK}")
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "off"})


def scalar(written: Raw) -> object:
    """The value as vLLM's parser reads it. Raises ValueError if it is longer than LONGEST_VALUE."""
    view = memoryview(written)
    if len(view) > LONGEST_VALUE:
        raise ValueError(f"longer than {LONGEST_VALUE} bytes")
    value: object = json.loads(bytes(view))
    return value


def whole(value: object) -> int:
    """The whole number to which pydantic converts `value`. Raises ValueError if pydantic refuses it."""
    if isinstance(value, int):  # a bool too, as 0 or 1
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _FLOATS:
        return int(value)
    if isinstance(value, str) and (found := _WHOLE.fullmatch(value)) is not None:
        return int(found[1])
    raise ValueError("not a whole number")


def truth(value: object) -> bool:
    """The truth value to which pydantic converts `value`. Raises ValueError if pydantic refuses it."""
    if isinstance(value, str):
        word = value.lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    elif isinstance(value, (int, float)) and value in (0, 1):
        return value == 1
    raise ValueError("neither true nor false")


def as_utf8(body: bytes) -> bytes:
    """`body` in UTF-8 without a byte order mark, converted if `json.loads` would read it as UTF-16 or UTF-32.

    Nearly every body is returned unchanged. Raises ClientError 400 `invalid_json` if the body is not valid in the
    encoding that its first bytes announce.
    """
    if body[:2] == b'{"':
        return body
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        return body
    if encoding == "utf-8-sig":
        return body[3:]
    try:
        return body.decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise unreadable(error) from None
