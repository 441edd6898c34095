"""A value deep inside of a JSON object is changed, and nothing else."""

from __future__ import annotations

from aiaas.openai.nested import ValuePath, entries_of, set_at, value_at

BODY = b'{"a": [{"b":  1.50, "c": "\\u00e9"}], "d":1}'


def test_value_is_replaced_and_other_bytes_stay() -> None:
    """Blanks, the form of numbers, and escapes."""
    path: ValuePath = ("a", 0, "c")
    assert value_at(BODY, path) == b'"\\u00e9"'
    assert set_at(BODY, path, b"2") == b'{"a": [{"b":  1.50, "c": 2}], "d":1}'


def test_value_is_removed() -> None:
    """A field, with its comma, or an entry."""
    assert set_at(BODY, ("a", 0, "b"), None) == b'{"a": [{ "c": "\\u00e9"}], "d":1}'.replace(b"{ ", b"{")
    assert set_at(BODY, ("a", 0), None) == b'{"a": [], "d":1}'
    assert entries_of(b"[1 , 2]") == [b"1", b"2"]
