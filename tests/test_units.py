"""aiaas.units: durations and sizes, as they arrive from YAML, the environment or a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120s", 120.0), ("2m", 120.0), ("500ms", 0.5), ("1h", 3600.0), ("1.5s", 1.5), ("90d", 7_776_000.0),
        ("2w", 1_209_600.0), ("2 h", 7200.0), (0, 0.0), ("0", 0.0), ("0s", 0.0),
    ],
)  # fmt: skip
def test_a_duration_is_read_in_seconds(text: object, seconds: float) -> None:
    """Each unit gives its seconds, and 0 needs none."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", [120, "120", 1.5, True, None, "", "s", "-1s", "1y", "1 minute", "1e3s", "100us", "1s2", "nan", "٣s", []]
)
def test_invalid_duration_is_refused(text: object) -> None:
    """A bare number, another unit, a negative or an endless one; the message shows how to write one."""
    with pytest.raises(ValueError, match=r"write (a number with a unit, such as 500ms|\d.*s or )"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("10MiB", 10 * 1024**2), ("10MB", 10**7), ("32KiB", 32768), ("1GiB", 1024**3), ("5B", 5), (0, 0), ("1kB", 1000)],
)
def test_a_size_is_read_in_bytes(text: object, size: int) -> None:
    """Binary and decimal units give their bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", [10, "10", "10M", "10mb", "1.5MiB", "-1B", True, None, "", "B"])
def test_invalid_size_is_refused(text: object) -> None:
    """A bare number, an ambiguous unit or a fraction is a ValueError."""
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(0, 7 * 24 * 3600 * 1000))
def test_a_written_duration_reads_back(milliseconds: int) -> None:
    """parse_duration reads back the duration that format_duration wrote."""
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, rel=1e-5)


@given(st.integers(0, 10**12 - 1))
def test_a_written_size_reads_back(size: int) -> None:
    """parse_size reads back the size that format_size wrote."""
    assert parse_size(format_size(size)) == size
