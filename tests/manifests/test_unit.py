"""aiaas.manifests.unit: words as systemd reads them."""

from __future__ import annotations

import pytest

from aiaas.manifests.unit import assignment, command_line, unit_text


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("--max-model-len", "--max-model-len"),
        ("two words", '"two words"'),
        ("", '""'),
        ("$HOME", '"$$HOME"'),
        ("50%", '"50%%"'),
        ('{"a": 1}', '"{\\"a\\": 1}"'),
        ("a\\b", '"a\\\\b"'),
        ("it's", '"it\'s"'),
        ("a\nb\tc", '"a\\nb\\tc"'),
        (";", '";"'),
        ("größe", '"größe"'),
    ],
)
def test_word_of_a_command_is_written_as_it_is_meant(word: str, text: str) -> None:
    """systemd expands neither variables nor specifiers in it."""
    assert command_line(["/bin/x", word]) == f"/bin/x {text}"


def test_variable_keeps_its_dollar() -> None:
    """`Environment=` does not expand variables, but specifiers."""
    assert assignment("A", "$5 %h") == '"A=$5 %%h"'
    assert assignment("A", "b") == "A=b"


def test_unit_has_its_sections_in_order() -> None:
    """A line without a name is a comment."""
    text = unit_text("# Made\n", {"Unit": [("A", "1"), ("", "why"), ("A", "")], "Install": [("B", "2")]})
    assert text == "# Made\n\n[Unit]\nA=1\n# why\nA=\n\n[Install]\nB=2\n"
