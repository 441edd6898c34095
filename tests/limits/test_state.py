"""The state of one key, and the windows that tokens are counted in."""

from __future__ import annotations

import calendar

import pytest

from aiaas.limits.model import Limits, Rate
from aiaas.limits.state import State, refused, windows_at


def moment(*parts: int) -> float:
    return float(calendar.timegm((*parts, 0, 0, 0)[:6]))


@pytest.mark.parametrize(
    ("at", "day", "month", "month_end"),
    [
        ((2026, 11, 23), (2026, 11, 23), (2026, 11, 1), (2026, 12, 1)),
        ((2026, 12, 31), (2026, 12, 31), (2026, 12, 1), (2027, 1, 1)),
        ((2028, 2, 29), (2028, 2, 29), (2028, 2, 1), (2028, 3, 1)),
    ],
    ids=["within a month", "the end of a year", "a leap day"],
)
def test_windows_are_utc_days_and_months(
    at: tuple[int, ...], day: tuple[int, ...], month: tuple[int, ...], month_end: tuple[int, ...]
) -> None:
    """From the first second to the last."""
    for second in (0, 86399):
        windows = windows_at(moment(*at) + second)
        assert windows.day == moment(*day)
        assert windows.day_end == windows.day + 86400
        assert (windows.month, windows.month_end) == (moment(*month), moment(*month_end))


def test_refusal_names_the_longest_wait_and_the_other_limits() -> None:
    """A limit that would admit it reports its state without this request."""
    state = State()
    state.requests, state.day, state.day_tokens = 100.0, moment(2026, 11, 23), 100
    wall = moment(2026, 11, 23) + 86_000
    limits = Limits(requests=Rate(60, 1), tokens=Rate(60, 60), tokens_per_day=100)
    found = refused(state, limits, 10, 99.5, wall, windows_at(wall))
    assert found.refused_by == "quota"
    assert found.refusal is not None
    assert found.refusal.retry_after == 400
    assert found.requests is not None
    assert found.requests.retry_after == 0.5
    assert found.tokens is not None
    assert (found.tokens.allowed, found.tokens.remaining) == (True, 60)
