"""aiaas.openai.grammar: grammars of real clients pass, those that hold up everybody do not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.errors import ClientError
from aiaas.openai.engine_fields import LARGEST_GRAMMAR
from aiaas.openai.grammar import refuse_large_grammar, unrolled


def refusal(name: str, value: Any) -> str | None:
    """The message, None if the grammar passes."""
    try:
        refuse_large_grammar(name, json.dumps(value).encode(), LARGEST_GRAMMAR)
    except ClientError as error:
        return str(error) if error.param == name else "wrong param"
    return None


def nested(levels: int) -> dict[str, Any]:
    """A schema of so many levels of objects."""
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def schema(inner: Any) -> dict[str, Any]:
    """A `response_format`."""
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": inner}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response_format", {"type": "json_object"}),
        ("response_format", schema(nested(28))),
        ("response_format", schema({"properties": {f"field{n}": {"type": "string"} for n in range(500)}})),
        ("response_format", schema({"description": "x" * 100_000, "title": "t"})),
        ("response_format", schema({"pattern": "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$", "maxLength": 10_000})),
        ("response_format", schema({"properties": {"pattern": {"type": "string"}, "maxLength": {"type": "number"}}})),
        ("structured_outputs", {"choice": ["positive", "negative"]}),
        ("structured_outputs", {"choice": ["ten chars."] * 1000}),
        ("structured_outputs", {"json": json.dumps(nested(20))}),
        ("structured_outputs", {"json": "not JSON {{{"}),
        ("structured_outputs", {"grammar": 'root ::= "a"{3}'}),
        ("guided_regex", r"\d{4}-\d{2}-\d{2}|[a-z\]{}]{1,64}"),
        ("text", {"format": schema({"type": "object"})}),
    ],
)
def test_grammar_of_a_real_client_passes(name: str, value: Any) -> None:
    """Names of properties are no bounds."""
    assert refusal(name, value) is None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("structured_outputs", {"choice": ["x" * 1000] * 500}, "bytes"),
        ("structured_outputs", {"choice": ["x"] * 1001}, "1000 choices"),
        ("guided_choice", ["x"] * 1001, "1000 choices"),
        ("structured_outputs", {"json": {"enum": ["x" * 1000] * 100}}, "bytes"),
        ("structured_outputs", {"json": json.dumps(nested(40))}, "nested"),
        ("structured_outputs", {"regex": "[a-z]{1,2001}"}, "repeat"),
        ("structured_outputs", {"regex": "x" * 8193}, "8192 characters"),
        ("structured_outputs", {"regex": "([a-z]{1,100}){1,100}"}, "repeat"),
        ("structured_outputs", {"whitespace_pattern": "[ ]{5000}"}, "repeat"),
        ("structured_outputs", {"grammar": 'root ::= "a"{1,5000}'}, "repeat"),
        ("structured_outputs", {"structural_tag": json.dumps({"pattern": "a{5000}"})}, "repeat"),
        ("guided_regex", "a{99999999999999999999}", "repeat"),
        ("response_format", schema(nested(31)), "nested"),
        ("response_format", schema({"maxLength": 100_000}), "maxLength"),
        ("response_format", schema({"anyOf": [{"maxLength": 9000}] * 6}), "in all"),
        ("response_format", schema({"patt" + "ern": "(a{50}){50}"}), "repeat"),
        ("response_format", schema({"enum": ["x" * 300_000]}), "bytes"),
        ("response_format", schema({"description": "x" * 300_000}), "bytes"),
    ],
)
def test_grammar_that_holds_up_everybody_is_refused(name: str, value: Any, says: str) -> None:
    """500 choices of 1,000 characters took 80 s."""
    assert says in (refusal(name, value) or "")


def test_escaped_key_does_not_hide_a_bound() -> None:
    """JSON reads it as the same key."""
    with pytest.raises(ClientError):
        refuse_large_grammar("structured_outputs", rb'{"reg\u0065x":"a{5000}"}', LARGEST_GRAMMAR)


def test_very_deep_value_is_refused_and_not_an_error() -> None:
    """msgspec raises RecursionError."""
    with pytest.raises(ClientError):
        refuse_large_grammar("response_format", b"[" * 5000 + b"]" * 5000, LARGEST_GRAMMAR)


@pytest.mark.parametrize(
    ("regex", "count"),
    [
        ("abc*[x{9}]+", 0), ("a{3}", 3), ("a{2,}b", 2), ("a{,4}", 4), ("(ab){3}", 6), ("(a{2}b){3}", 9),
        (r"\{5}(?:x|y{2}){2}", 6), ("a{b}{", 0), (")(", 0), ("{3}", 0), ("(?P<n>a){2}", 2),
    ],
)  # fmt: skip
def test_repetitions_of_a_regex_are_counted(regex: str, count: int) -> None:
    """Within groups they multiply; braces without a number are characters."""
    assert unrolled(regex) == count
