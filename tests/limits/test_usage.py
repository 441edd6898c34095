"""aiaas.limits.usage: days, independent of everything else."""

import calendar

import pytest

from aiaas.limits.usage import day_from, day_of, day_text

MIDNIGHT = calendar.timegm((2026, 3, 1, 0, 0, 0))


def test_a_day_begins_at_midnight_utc() -> None:
    """Whatever the machine's time zone is."""
    assert day_text(day_of(MIDNIGHT)) == "2026-03-01"
    assert day_text(day_of(MIDNIGHT - 0.001)) == "2026-02-28"
    assert day_text(day_of(MIDNIGHT + 86399.9)) == "2026-03-01"


def test_a_days_text_leads_back_to_it() -> None:
    """And no other text does."""
    assert day_from(day_text(20_780)) == 20_780
    with pytest.raises(ValueError):
        day_from("2026-02-30")
