"""The texts of the problem codes."""

from __future__ import annotations

from aiaas.config import codes
from aiaas.config.code_texts import CODES


def test_every_code_has_one_text() -> None:
    """In the order of the codes, each with a title and a fix."""
    numbers = [value for name, value in vars(codes).items() if name.isupper()]
    assert list(CODES) == numbers == sorted(numbers)
    assert all(title and text.endswith(".") for title, text in CODES.values())
