"""YAML text that every reader takes for the same data."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from aiaas.config.tree import flatten, parse
from aiaas.config.write import to_yaml

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), include_characters="\n\t"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abcdefgh", min_size=1), inner),
    max_leaves=8,
)


def read_by_us(text: str) -> Any:
    """The value that the config's own reader, with YAML 1.2's core schema, reads from it."""
    node, problems = parse(text, "f")
    assert problems == []
    assert node is not None
    return flatten(node).data


@given(st.dictionaries(st.text("abcdefgh", min_size=1), JSON, min_size=1))
@example({"a": "1e3"})
@example({"a": "no", "b": ["y", "~", "0o17", "010", "1:30", "2026-01-01", "=", "<<", ".inf", "-", "?"]})
@example({"a": "two\nlines\n", "b": " lead\n trail \n", "c": "\n", "d": "x\n\n"})
def test_both_kinds_of_readers_read_what_was_written(data: dict[str, Any]) -> None:
    """YAML 1.1 (PyYAML) and YAML 1.2 (the config's reader) both give back the data."""
    text = to_yaml(data)
    assert yaml.safe_load(text) == data
    assert read_by_us(text) == data


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param("gpt-oss-20b", "gpt-oss-20b", id="a word"),
        pytest.param("app.kubernetes.io/name", "app.kubernetes.io/name", id="a label"),
        pytest.param("/v1", "/v1", id="a path"),
        pytest.param("120s", '"120s"', id="a duration"),
        pytest.param("no", '"no"', id="a flag of YAML 1.1"),
        pytest.param("y", '"y"', id="a flag of some"),
        pytest.param("1e3", '"1e3"', id="a number of YAML 1.2"),
        pytest.param("0o17", '"0o17"', id="a number of Go"),
        pytest.param("${NAME}", '"${NAME}"', id="a variable"),
    ],
)
def test_ambiguous_text_is_quoted(value: str, written: str) -> None:
    """Plain text stays plain, so that a person can read it; other text is in double quotes."""
    assert to_yaml({"a": value}) == f"a: {written}\n"


def test_text_of_several_lines_is_a_literal_block() -> None:
    """A config inside a ConfigMap reads as the config does."""
    assert to_yaml({"a": "x: 1\n\ny: 2\n"}) == "a: |\n  x: 1\n\n  y: 2\n"


def test_nothing_is_folded_and_nothing_is_an_alias() -> None:
    """A line stays one line, and a repeated value is written twice."""
    labels = {"k": "v"}
    text = to_yaml({"long": "word " * 200, "a": labels, "b": labels})
    assert text.count("\n") == 5
    assert "&" not in text
