"""aiaas.proxy.telemetry.loop_lag: the watch on the event loop, with a clock and a sleep of the test's own."""

from __future__ import annotations

import pytest

from aiaas.proxy.telemetry.loop_lag import LAG_INTERVAL, watch_lag


class Enough(Exception):
    """Raised to end the loop once the test has seen enough."""


async def test_the_lag_is_what_each_sleep_took_too_long() -> None:
    """A loop that is on time has no lag; a timer that fires early, by rounding, shows no negative one."""
    now = 100.0
    late = iter([0.0, 0.3, -0.0005])
    seen: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        if len(seen) == 3:
            raise Enough
        now += seconds + next(late)

    with pytest.raises(Enough):
        await watch_lag(seen.append, lambda: now, sleep)
    assert seen == pytest.approx([0.0, 0.3, 0.0])
    assert now == pytest.approx(100.0 + 3 * LAG_INTERVAL + 0.2995)
