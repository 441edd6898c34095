"""aiaas.cli.words: numbers as people read them."""

from __future__ import annotations

import re

import pytest

from aiaas.cli.words import clock_time, size, time_span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0 s"),
        (0.0004, "400 µs"),
        (0.0123, "12.3 ms"),
        (2.4149, "2.41 s"),
        (12.4, "12 s"),
        (60, "1 min"),
        (95, "1 min 35 s"),
        (1260, "21 min"),
        (12_000, "3 h 20 min"),
        (280_800, "3 d 6 h"),
        (8_640_000, "100 d"),
    ],
)
def test_span_has_two_units_at_most(seconds: float, text: str) -> None:
    """The second one only where the first is small."""
    assert time_span(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (250_000, "250 kB"),
                                             (5_000_000, "5.0 MB"), (2e12, "2000 GB")])  # fmt: skip
def test_size_has_a_decimal_unit(count: int, text: str) -> None:
    """With one decimal below a hundred."""
    assert size(count) == text


def test_moment_is_local_time() -> None:
    """With its zone."""
    assert re.fullmatch(r"2027-01-1\d \d\d:\d\d:\d\d \S+", clock_time(1_800_000_000.0))
