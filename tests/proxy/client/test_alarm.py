"""The timer that a connection's requests share, on a loop whose time the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from aiaas.proxy.client.alarm import Alarm


class Handle:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """As much of an event loop as an Alarm uses; `go(to)` fires what is due."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def call_at(self, at: float, call: Callable[[], Any]) -> Handle:
        self.handles.append(Handle(at, call))
        return self.handles[-1]

    def armed(self) -> list[Handle]:
        return [handle for handle in self.handles if not handle.cancelled]

    def go(self, to: float) -> None:
        while due := [handle for handle in self.armed() if handle.at <= to]:
            due[0].cancel()
            due[0].call()


def alarm_of(loop: Loop) -> Alarm:
    return Alarm(cast(asyncio.AbstractEventLoop, loop))


def test_many_requests_cost_one_timer() -> None:
    """A due time that is later than the timer's leaves the timer as it is."""
    loop = Loop()
    alarm = alarm_of(loop)
    for start in range(100):
        alarm.set(start + 15.0, lambda: None)
        alarm.clear()
    assert len(loop.handles) == 1


def test_a_timer_that_fires_early_arms_itself_for_the_rest() -> None:
    """The call comes at the due time that was set last, neither before nor twice."""
    loop, calls = Loop(), list[float]()
    alarm = alarm_of(loop)
    alarm.set(15.0, lambda: calls.append(15.0))
    alarm.set(40.0, lambda: calls.append(40.0))
    loop.go(39.0)
    assert calls == []
    loop.go(100.0)
    assert calls == [40.0]


def test_an_earlier_due_time_is_kept() -> None:
    """A timer that would fire too late is replaced by an earlier one."""
    loop, calls = Loop(), list[float]()
    alarm = alarm_of(loop)
    alarm.set(120.0, lambda: calls.append(120.0))
    alarm.set(5.0, lambda: calls.append(5.0))
    loop.go(5.0)
    assert calls == [5.0]
    assert loop.armed() == []


def test_a_cleared_alarm_calls_nothing() -> None:
    """An ended alarm is not called, and its timer is cancelled."""
    loop, calls = Loop(), list[float]()
    alarm = alarm_of(loop)
    alarm.set(5.0, lambda: calls.append(5.0))
    alarm.clear()
    loop.go(100.0)
    assert calls == []
    assert loop.armed() == []


def test_a_call_may_set_the_alarm_again() -> None:
    """A tick that looks again later is called again."""
    loop, calls = Loop(), list[float]()
    alarm = alarm_of(loop)

    def tick() -> None:
        calls.append(1.0)
        if len(calls) < 3:
            alarm.set(len(calls) * 10.0, tick)

    alarm.set(1.0, tick)
    loop.go(100.0)
    assert len(calls) == 3


def test_a_closed_alarm_leaves_no_timer() -> None:
    """A connection that has gone is not kept by its timer."""
    loop = Loop()
    alarm = alarm_of(loop)
    alarm.set(5.0, lambda: None)
    alarm.close()
    assert loop.armed() == []
