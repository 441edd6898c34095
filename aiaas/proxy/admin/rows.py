"""The rows of `/requests` and `/refusals`: encoded one by one, and merged over several processes without decoding.

Encoding 10,000 rows in one call would keep the GIL from the streams for too long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Final

import msgspec

_ENCODE: Final = msgspec.json.Encoder().encode

LIVE: Final = "live"  # the oldest first; the rows of any other list, the newest


class EncodedRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One row as JSON, and the moment that orders it: POSIX seconds."""

    at: float
    json: bytes


class Rows(msgspec.Struct):
    """The lists of an answer by name, and for refusals their numbers by error code."""

    lists: dict[str, list[EncodedRow]]
    by_code: dict[str, int] | None = None


def row(at: float, view: msgspec.Struct) -> EncodedRow:
    """Encode one view."""
    return EncodedRow(at, _ENCODE(view))


def merged(parts: Iterable[Rows], limit: int) -> Rows:
    """The rows of all `parts`, up to `limit` in each list."""
    whole = Rows({})
    for part in parts:
        for name, rows in part.lists.items():
            whole.lists.setdefault(name, []).extend(rows)
        if part.by_code is not None:
            whole.by_code = _added(whole.by_code or {}, part.by_code)
    for name, rows in whole.lists.items():
        rows.sort(key=_moment, reverse=name != LIVE)
        del rows[limit:]
    return whole


def encoded_rows(rows: Rows) -> bytes:
    """The answer as JSON. Call this in a thread: it is put together row by row, without a copy of the whole."""
    text = BytesIO()
    opening = b"{"
    for name, found in rows.lists.items():
        text.write(b'%b"%b":[' % (opening, name.encode()))
        for number, each in enumerate(found):
            if number:
                text.write(b",")
            text.write(each.json)
        text.write(b"]")
        opening = b","
    if rows.by_code is not None:
        text.write(b',"by_code":%b' % _ENCODE(rows.by_code))
    text.write(b"}")
    return text.getvalue()


def _moment(found: EncodedRow) -> float:
    return found.at


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
