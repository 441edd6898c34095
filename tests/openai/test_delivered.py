"""A text of which a client has the beginning is written once more."""

from __future__ import annotations

import pytest

from aiaas.openai.delivered import Delivered, TextPart
from aiaas.openai.joint import DiffersError


@pytest.mark.parametrize(
    ("had", "again", "left"),
    [
        pytest.param(["ab", "c"], ["a", "bcd", "e"], ["", "d", "e"], id="text"),
        pytest.param([["a"], ["b"]], [["a", "b", "c"]], [["c"]], id="list"),
        pytest.param([], ["a"], ["a"], id="nothing delivered"),
    ],
)
def test_delivered_beginning_is_left_out(had: list[TextPart], again: list[TextPart], left: list[TextPart]) -> None:
    """However the text is divided; it is pending until all of it has come again."""
    text = Delivered()
    for piece in had:
        text.add(piece)
    assert text.pending == bool(had)
    assert [text.left(piece) for piece in again] == left
    assert not text.pending


def test_other_text_than_delivered_differs() -> None:
    """Already where the first piece of it is too short to reach the end."""
    text = Delivered()
    text.add("abcd")
    assert text.left("ab") == ""
    assert text.pending
    with pytest.raises(DiffersError):
        text.left("d")
