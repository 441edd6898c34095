"""aiaas.limits.near: which limit a key is closest to."""

from __future__ import annotations

import pytest

from aiaas.limits.model import UNLIMITED, Limits, Rate
from aiaas.limits.near import Nearness, nearest
from aiaas.limits.state import State, windows_at

NOW, WALL = 1000.0, 1_800_000_000.0
WINDOWS = windows_at(WALL)


def state(**facts: float) -> State:
    """The state of a key."""
    made = State()
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("facts", "limits", "found"),
    [
        pytest.param({}, UNLIMITED, None, id="no limit"),
        pytest.param({}, Limits(requests=Rate(60, 10)), Nearness("requests", 0, 10, 0.0), id="nothing used"),
        pytest.param(
            {"requests": NOW + 9, "slots": 1},
            Limits(requests=Rate(60, 10), concurrent=4),
            Nearness("requests", 9, 10, 9.0),
            id="the nearer of two",
        ),
        pytest.param(
            {"tokens": NOW + 600}, Limits(tokens=Rate(60, 60)), Nearness("tokens", 60, 60, 600.0), id="overdrawn"
        ),
        pytest.param({"slots": 3}, Limits(concurrent=4), Nearness("concurrency", 3, 4, None), id="slots"),
        pytest.param(
            {"day": WINDOWS.day, "day_tokens": 5, "month": WINDOWS.month, "month_tokens": 90},
            Limits(tokens_per_day=10, tokens_per_month=100),
            Nearness("quota", 90, 100, WINDOWS.month_end - WALL),
            id="the month",
        ),
        pytest.param(
            {"day": WINDOWS.day - 1, "day_tokens": 10},
            Limits(tokens_per_day=10),
            Nearness("quota", 0, 10, WINDOWS.day_end - WALL),
            id="yesterday",
        ),
    ],
)
def test_nearest_limit_is_found(facts: dict[str, float], limits: Limits, found: Nearness | None) -> None:
    """By the part that is used."""
    assert nearest(state(**facts), limits, NOW, WALL) == found
