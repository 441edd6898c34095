"""Read what vLLM reads although it is not written as its field's type says: `"50"`, `50.0`, `1` for true, UTF-16.

Theory: FastAPI gives vLLM's request models what Python's `json.loads` made of the body, and pydantic converts it in its
lax mode. The same parser reads the value here, and the rules below are pydantic's own for int and bool. So a value
comes out as the number that vLLM gets, or is refused. `tests/openai/lenient_table.py` holds the decisions, and
`tests/e2e/test_vllm_lenient.py` asks vLLM's own request models for theirs.

This is a slow path: `peek` comes here only after its strict decoder has refused a field's type.
"""

from __future__ import annotations

import json
import re
from typing import Final

from msgspec import Raw

from aiaas.openai.toplevel import unreadable

# Bytes of a value that is converted. 2^63 has 19 digits; a number of a million digits holds up everybody.
LONGEST_VALUE: Final = 100
# pydantic converts no float from here on.
_FLOATS: Final = 2.0**63

# Rust's `trim`, which pydantic uses: Unicode's White_Space. Python's `str.strip` takes four control characters more.
_BLANK: Final = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*"
_WHOLE: Final = re.compile(f"{_BLANK}([+-]?[0-9]+(?:_[0-9]+)*)(?:\\.0+)?{_BLANK}")
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "off"})


def scalar(written: Raw) -> object:
    """The value as vLLM's parser reads it. Raises ValueError for one that is longer than LONGEST_VALUE."""
    view = memoryview(written)
    if len(view) > LONGEST_VALUE:
        raise ValueError(f"longer than {LONGEST_VALUE} bytes")
    value: object = json.loads(bytes(view))
    return value


def whole(value: object) -> int:
    """The whole number that pydantic makes of `value`. Raises ValueError where it makes none."""
    if isinstance(value, int):  # or a truth value, which is 0 or 1
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _FLOATS:
        return int(value)
    if isinstance(value, str) and (found := _WHOLE.fullmatch(value)) is not None:
        return int(found[1])
    raise ValueError("not a whole number")


def truth(value: object) -> bool:
    """The truth value that pydantic makes of `value`. Raises ValueError where it makes none."""
    if isinstance(value, str):
        word = value.lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    elif isinstance(value, (int, float)) and value in (0, 1):
        return value == 1
    raise ValueError("neither true nor false")


def as_utf8(body: bytes) -> bytes:
    """`body` in UTF-8 and without a byte order mark; what `json.loads` takes for UTF-16 or UTF-32 is converted.

    Nearly every body is returned as it is. Raises ClientError 400 `invalid_json` where it is not in the encoding that
    its first bytes announce.
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
