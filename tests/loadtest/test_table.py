"""A table as Markdown, and figures in the digits that count."""

from __future__ import annotations

import pytest

from aiaas.loadtest.table import ReportTable, number, seconds, share, to_markdown


def test_markdown_is_a_table() -> None:
    """With a bar in a cell escaped."""
    text = to_markdown(ReportTable("T", ("", "a|b"), (("x", "1|2"),)))
    assert text == "### T\n\n|   | a\\|b |\n| --- | ---: |\n| x | 1\\|2 |\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0004, "400 us"), (0.0512, "51.2 ms"), (0.842, "842 ms"), (1.234, "1.23 s"), (83.2, "83 s"), (0.0, "0 us")],
)
def test_durations_are_read_at_a_glance(value: float, text: str) -> None:
    """In the unit that fits."""
    assert seconds(value) == text


def test_numbers_and_shares_have_the_digits_that_count() -> None:
    """A small share is not rounded to nothing."""
    assert [number(value) for value in (1234.5, 12.34, 1.234)] == ["1234", "12.3", "1.23"]
    assert [share(value) for value in (0.0, 0.0012, 0.5)] == ["0 %", "0.12 %", "50.0 %"]
