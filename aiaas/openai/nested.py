"""Change a value deep inside of a JSON object, and leave every byte outside of it as it was written.

    set_at(b'{"a": [{"b": 1}, {"c": 2}]}', ("a", 1, "c"), b"3")  ->  b'{"a": [{"b": 1},{"c": 3}]}'

A list on the way is written again without blanks between its entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from aiaas.openai.splice import remove_field, set_field

ValuePath = tuple[str | int, ...]

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


def values_of(body: bytes) -> dict[str, bytes]:
    """The values of an object, as they are written. Raises as msgspec does."""
    return {name: bytes(value) for name, value in _OBJECT.decode(body).items()}


def entries_of(body: bytes) -> list[bytes]:
    """The entries of a list, as they are written. Raises as msgspec does."""
    return [bytes(entry) for entry in _LIST.decode(body)]


def list_of(entries: Iterable[bytes]) -> bytes:
    """The list of these entries."""
    return b"[" + b",".join(entries) + b"]"


def value_at(body: bytes, path: ValuePath) -> bytes:
    """The value at `path`, which `body` has."""
    for step in path:
        body = entries_of(body)[step] if isinstance(step, int) else values_of(body)[step]
    return body


def set_at(body: bytes, path: ValuePath, value: bytes | None) -> bytes:
    """`body` with `value` at `path`, which it has; without that field or entry where `value` is None.

    Raises as msgspec and `set_field` do.
    """
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        entries = entries_of(body)
        changed = value if not rest else set_at(entries[step], rest, value)
        entries[step : step + 1] = [] if changed is None else [changed]
        return list_of(entries)
    if rest:
        return set_field(body, step, set_at(values_of(body)[step], rest, value))
    return remove_field(body, step) if value is None else set_field(body, step, value)
