"""aiaas.proxy.upstream.wait_estimate: rates out of the grants of the last seconds, and the waits that follow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.wait_estimate import LONG_WINDOW, GrantRates, SlotPace, predict
from aiaas.proxy.upstream.waiter import Demand, Waiter
from tests.proxy.conftest import config_of, plan_of


def granted(began: float, *times: float) -> SlotPace:
    """Grants at these times."""
    grants = SlotPace(began)
    for time in times:
        grants.add(time)
    return grants


# when the queue began, the grants, now, and the rate
RATES: dict[str, tuple[float, list[float], float, float | None]] = {
    "none yet": (0, [], 5, None),
    "two say nothing": (0, [1, 2], 5, None),
    "three, since it began": (0, [1, 2, 3], 4, 3 / 4),
    "the last ten seconds": (0, [0.1 * n for n in range(400)], 40, 10),
    "of a second that has not ended": (0, [0.1 * n for n in range(400)], 39.95, 10.0),
    "faster in the last ten": (0, [*range(20), *[20 + 0.25 * n for n in range(40)]], 30, 4),
    "slow, by the last sixty": (0, [*range(5, 100, 5)], 98, 12 / 60),
    "many at once, then none": (0, [20.0] * 64, 35, 64 / 35),
    "all are too old": (0, [1, 2, 3], 64, None),
    "clock stands still": (7, [7, 7, 7], 7, None),
    "clock goes back": (7, [7.5, 7.5, 7.5, 5], 6, None),
}


@pytest.mark.parametrize(("began", "times", "now", "rate"), RATES.values(), ids=RATES)
def test_rate_of_grants(began: float, times: list[float], now: float, rate: float | None) -> None:
    """Of the last 10 s if there were three, else of the last 60, and of no time before the queue began."""
    assert granted(began, *times).rate(now) == (None if rate is None else pytest.approx(rate, rel=0.02))


def test_memory_for_grants_is_bounded() -> None:
    """However many there are, and however long they go on."""
    grants = granted(0, *[0.5 * n for n in range(10_000)])
    assert len(grants._buckets) == LONG_WINDOW + 1
    assert grants.rate(5000) == pytest.approx(2, rel=0.1)


def test_keys_are_kept_only_while_they_wait() -> None:
    """A key that no longer waits costs nothing, and begins anew."""
    rates = GrantRates()
    rates.begin("a", 0)
    for time in (1, 2, 3):
        rates.granted("a", time)
    assert (len(rates), rates.own_rate("a", 4)) == (1, 3 / 4)
    rates.forget("a")
    rates.forget("a")
    assert (len(rates), rates.own_rate("a", 4)) == (0, None)


@pytest.mark.parametrize(("pause", "rate"), [(1.5, 3 / 4.5), (60, None)], ids=["short", "long"])
def test_rate_of_all_outlives_a_short_pause(pause: float, rate: float | None) -> None:
    """A small queue is empty now and then; after a long pause, what was before says nothing."""
    rates = GrantRates()
    rates.begin("a", 0)
    for time in (1, 2, 3):
        rates.granted("a", time)
    rates.forget("a")
    rates.begin("a", 3 + pause)
    assert rates.equal_rate("a", 3 + pause, 1, 1) == rate


def test_equal_part_is_at_least_its_turn_in_the_whole_queue() -> None:
    """Of five keys that wait each gets a fifth; the last one in a queue of two requests needs three grants, not six."""
    rates = GrantRates()
    for key in "abcd":
        rates.begin(key, 0)
    for time in range(1, 11):
        rates.granted("a", time)
    assert rates.equal_rate("new", 10, 1, 100) == pytest.approx(1 / 5)
    assert rates.equal_rate("a", 10, 2, 100) == pytest.approx(1 / 4)
    assert rates.equal_rate("new", 10, 1, 2) == pytest.approx(1 / 3)


# -- a backend's queue ---------------------------------------------------------------------------------------------


class ClockLoop(asyncio.SelectorEventLoop):
    """A loop to make futures of, whose clock the test sets; it never runs."""

    now = 100.0

    def time(self) -> float:
        """The test's time."""
        return self.now


@pytest.fixture
def loop() -> Iterator[ClockLoop]:
    """A loop with a clock of the test."""
    made = ClockLoop()
    yield made
    made.close()


def state(**backend: Any) -> BackendState:
    """A backend with one endpoint, which has one slot."""
    plan = plan_of(config_of(["http://127.0.0.1:1"], {"max_inflight": 1, **backend}, {})).backends[0]
    return BackendState(plan, lambda _endpoint, _up, _reason: None)


def flood(loop: ClockLoop, *backends: BackendState, waiting: int = 10, key: str = "a") -> list[Waiter]:
    """Requests of a key: one in the slot of each backend, and those that wait at all of them."""
    for backend in backends:
        backend.begin(backend.endpoints[0], Demand(key, 10))
    waiters = [Waiter(Demand(key, 10), (), None, loop.create_future()) for _ in range(waiting)]
    for waiter in waiters:
        for backend in backends:
            assert backend.wait(waiter)
    return waiters


def serve(loop: ClockLoop, backend: BackendState, count: int, each: float = 1.0) -> None:
    """So many requests end, one after the other."""
    for _ in range(count):
        loop.now += each
        backend.endpoints[0].give_back()


def test_wait_is_own_position_by_own_rate(loop: ClockLoop) -> None:
    """Six still wait, and one goes on each second: the next one waits for seven."""
    backend = state()
    flood(loop, backend)
    assert predict([backend], "a", loop.now) is None
    serve(loop, backend, 4)
    assert predict([backend], "a", loop.now) == (7, True)
    assert predict([backend], "b", loop.now) == (2, False)


def test_last_waiter_takes_the_rate_of_its_key_along(loop: ClockLoop) -> None:
    """No key that waits is left behind, whichever way its requests go: served, given up, displaced."""
    backend = state(queue={"size": 3})
    waiters = flood(loop, backend, waiting=3)
    (other,) = [Waiter(Demand("b", 10), (), None, loop.create_future())]
    assert backend.wait(other)  # the newest of the other key goes
    assert (len(backend.rates), backend.waiting) == (2, 3)
    backend.forget(waiters[0])
    serve(loop, backend, 2)
    assert (len(backend.rates), backend.waiting) == (0, 0)


def test_endpoint_down_leaves_no_key_behind(loop: ClockLoop) -> None:
    """All waits end at once; what comes afterwards is not measured by the time in which nothing was up."""
    backend = state()
    flood(loop, backend)
    serve(loop, backend, 4)
    backend.endpoints[0].set_up(False, "test")
    assert (len(backend.rates), backend.waiting) == (0, 0)
    loop.now += 30
    backend.endpoints[0].set_up(True, "test")
    flood(loop, backend)
    assert predict([backend], "a", loop.now) is None


def test_two_backends_serve_at_their_rates_together(loop: ClockLoop) -> None:
    """A request waits at both, and has the first slot that comes free; one that gives none is left out."""
    one, two = state(), state()
    waiters = flood(loop, one, two)
    serve(loop, one, 4)
    for waiter in waiters[:4]:
        two.forget(waiter)
    assert predict([one, two], "a", loop.now) == (7, False)
    loop.now -= 4
    serve(loop, two, 4)
    for waiter in waiters[4:8]:
        one.forget(waiter)
    assert predict([one, two], "a", loop.now) == (1.5, True)


def test_standing_clock_predicts_nothing(loop: ClockLoop) -> None:
    """No time has passed, however many were served: nothing is known, and nothing is divided by zero."""
    backend = state()
    flood(loop, backend)
    serve(loop, backend, 4, each=0)
    assert predict([backend], "a", loop.now) is None


def test_no_grants_for_long_is_not_known(loop: ClockLoop) -> None:
    """An engine that ends nothing for a minute says nothing about the wait: it is not taken for endless."""
    backend = state()
    flood(loop, backend)
    loop.now += 90
    assert predict([backend], "a", loop.now) is None
    serve(loop, backend, 4)
    loop.now += 90
    expected = predict([backend], "a", loop.now)
    assert expected is None or expected.seconds < inf
