"""Lenient reading, against the table (`lenient_table.py`) and against pydantic itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from pydantic import TypeAdapter, ValidationError

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.lenient import as_utf8, scalar, truth, whole
from aiaas.openai.peek import Peek, peek
from aiaas.proxy.client.request_target import path_of
from tests.openai.lenient_page import PAGE, page
from tests.openai.lenient_table import (
    BODIES,
    REFUSED,
    TARGETS,
    TRUTH,
    TRUTH_FIELDS,
    WHOLE,
    WHOLE_FIELDS,
    Body,
    Reading,
    Target,
)

WHOLES = [(written, REFUSED if row.why else reads) for row in WHOLE for written, reads in row.written.items()]
TRUTHS = [(written, REFUSED if row.why else reads) for row in TRUTH for written, reads in row.written.items()]
INT: TypeAdapter[int] = TypeAdapter(int)
BOOL: TypeAdapter[bool] = TypeAdapter(bool)


def read_of(peeked: Peek, field: str) -> Reading:
    """The value read for `field`."""
    if field == "n":
        return peeked.choices
    if field == "stream_options.include_usage":
        return peeked.include_usage
    return peeked.max_output if field.startswith("max_") else getattr(peeked, field)


def body_of(field: str, written: str) -> bytes:
    """A body with `field`, which may be one inside another."""
    outer, _, inner = field.partition(".")
    value = f'{{"{inner}": {written}}}' if inner else written
    return f'{{"model": "m", "stream": true, "{outer}": {value}}}'.replace(
        '"stream": true, "stream"', '"stream"'
    ).encode()


@pytest.mark.parametrize(("path", "field"), [*WHOLE_FIELDS, *TRUTH_FIELDS])
def test_a_field_is_read_as_vllm_reads_it_or_refused(path: str, field: str) -> None:
    """Row by row."""
    for written, reads in WHOLES if (path, field) in WHOLE_FIELDS else TRUTHS:
        body = body_of(field, written)
        if reads == REFUSED:
            with pytest.raises(ClientError) as caught:
                peek(body, path)
            assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_request", field), body
        else:
            assert read_of(peek(body, path), field) == reads, body


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{number} {row.what}") for number, row in enumerate(BODIES)])
def test_a_body_is_read_or_refused_as_the_table_says(row: Body) -> None:
    """Encodings, fields that the path does not know, fields beside each other."""
    if row.taken and not row.why:
        peeked = peek(as_utf8(row.body), row.path)
        assert {name: getattr(peeked, name) for name in row.reads} == row.reads
    elif "model" in row.what and row.taken:  # refused where the route is looked up
        assert peek(row.body, row.path).model is None
    else:
        with pytest.raises(ClientError) as caught:
            peek(as_utf8(row.body), row.path)
        assert caught.value.status == 400


@pytest.mark.parametrize("row", TARGETS, ids=[row.target for row in TARGETS])
def test_a_target_is_served_as_the_table_says(row: Target) -> None:
    """An unknown path stays as it is, and gets a 404."""
    path = path_of(row.target)
    known = {*paths.GENERATE, paths.MODELS, paths.HEALTH, paths.READY}
    assert (path if path in known else None) == row.served


def test_the_page_holds_the_table() -> None:
    """docs/accepted.md matches the table: `python -m tests.openai.lenient_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


NUMBERS = (
    st.floats() | st.integers() | st.integers(0, 3) | st.booleans() | st.sampled_from([2.0**62, 2.0**63, -(2.0**63)])
)
TEXTS = st.text("0123456789_+-. \t\x0b\x1c\x85\xa0\u2003\u200b\ufeff\u0665e", max_size=12) | st.text(max_size=3)
WORDS = st.sampled_from(["true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "1", "0"]).flatmap(
    lambda word: st.tuples(*(st.sampled_from([c, c.upper()]) for c in word)).map("".join)
)


@given(NUMBERS | TEXTS)
def test_whole_numbers_are_pydantics(value: Any) -> None:
    """The same number, or refused by both."""
    assert _or_refused(whole, value) == _or_refused(INT.validate_python, value)


@given(NUMBERS | TEXTS | WORDS | WORDS.map(lambda word: word + " "))
def test_truth_values_are_pydantics(value: Any) -> None:
    """The same truth value, or refused by both."""
    assert _or_refused(truth, value) == _or_refused(BOOL.validate_python, value)


def _or_refused(read: Any, value: Any) -> Reading:
    try:
        result: Reading = read(value)
    except (ValueError, ValidationError):
        return REFUSED
    return result


def test_a_long_value_is_not_read() -> None:
    """A number of a million digits would take long."""
    assert scalar(Raw(b"1" * 100)) == int("1" * 100)
    with pytest.raises(ValueError, match="longer than 100"):
        scalar(Raw(b"1" * 101))


@given(
    st.text(max_size=6),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]),
)
def test_every_encoding_that_python_detects_comes_out_as_utf8(text: str, encoding: str) -> None:
    """As `json.loads` reads it."""
    body = json.dumps({"a": text}, ensure_ascii=False).encode(encoding)
    read = as_utf8(body)
    assert json.loads(body) == json.loads(read.decode()) == {"a": text}
    assert read is body or encoding != "utf-8"


def test_an_unfinished_text_after_a_wrong_type_is_not_json() -> None:
    """The strict decoder stops at the wrong type, before it has seen the rest."""
    with pytest.raises(ClientError) as caught:
        peek(b'{"stream": 1, "model": ', paths.CHAT)
    assert caught.value.code == "invalid_json"
