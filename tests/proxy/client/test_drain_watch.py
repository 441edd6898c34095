"""aiaas.proxy.client.drain_watch: a client that takes none of the waiting bytes is dropped. Time is passed in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from aiaas.proxy.client.drain_watch import DrainWatch

SILENCE = 30.0


class Timer:
    """A loop's timer that fires when the test says so."""

    def __init__(self, delay: float, call: Callable[[], None]) -> None:
        self.delay = delay
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It never fires."""
        self.call = None


class Connection:
    """The connection, its loop and its transport in one: `waiting` bytes lie in the buffer."""

    def __init__(self) -> None:
        self.loop = self
        self.waiting = 0
        self.listener: object | None = None
        self.dropped: list[str] = []
        self.timers: list[Timer] = []

    def get_write_buffer_size(self) -> int:
        """Of the transport."""
        return self.waiting

    def call_later(self, delay: float, call: Callable[..., None], *args: Any) -> Timer:
        """Of the loop."""
        self.timers.append(Timer(delay, lambda: call(*args)))
        return self.timers[-1]

    def drop(self, reason: str) -> None:
        """Of the connection."""
        self.dropped.append(reason)

    def pass_time(self) -> int:
        """Fire the timers that are set; returns how many."""
        timers, self.timers = self.timers, []
        calls = [timer.call for timer in timers if timer.call is not None]
        assert all(timer.delay == SILENCE for timer in timers)
        for call in calls:
            call()
        return len(calls)


@pytest.fixture
def connection() -> Any:
    """A connection in whose buffer 100 bytes wait."""
    made = Connection()
    made.waiting = 100
    return made


@pytest.fixture
def watch() -> DrainWatch:
    """The watch over it."""
    return DrainWatch(SILENCE)


def test_watch_without_waiting_bytes_sets_no_timer(connection: Any, watch: DrainWatch) -> None:
    """Nearly every answer goes to the kernel at once."""
    connection.waiting = 0
    watch.watch(connection, connection)
    watch.watch(connection, None)
    assert not connection.timers


@pytest.mark.parametrize("waiting", [100, 101], ids=["as many", "more"])
def test_client_that_reads_nothing_is_dropped(connection: Any, watch: DrainWatch, waiting: int) -> None:
    """Once, with a reason for the log."""
    watch.watch(connection, connection)
    connection.waiting = waiting
    assert connection.pass_time() == 1
    assert connection.dropped == ["it did not read the end of its answer"]
    assert connection.pass_time() == 0


def test_client_that_reads_one_byte_has_the_time_again(connection: Any, watch: DrainWatch) -> None:
    """From then on the smaller number counts."""
    watch.watch(connection, connection)
    connection.waiting = 99
    assert connection.pass_time() == 1
    assert connection.dropped == []
    assert connection.pass_time() == 1
    assert len(connection.dropped) == 1


def test_client_that_reads_everything_is_left_alone(connection: Any, watch: DrainWatch) -> None:
    """Without a further timer."""
    watch.watch(connection, connection)
    connection.waiting = 0
    assert connection.pass_time() == 1
    assert (connection.dropped, connection.timers) == ([], [])


def test_watch_leaves_the_next_answer_to_its_writer(connection: Any, watch: DrainWatch) -> None:
    """The listener notices by itself that its client does not read."""
    watch.watch(connection, connection)
    connection.listener = object()
    assert connection.pass_time() == 1
    assert (connection.dropped, connection.timers) == ([], [])
    connection.listener = None
    watch.watch(connection, connection)
    assert connection.pass_time() == 1
    assert len(connection.dropped) == 1


def test_next_answer_starts_the_time_again(connection: Any, watch: DrainWatch) -> None:
    """Its bytes were not there when the first timer was set."""
    watch.watch(connection, connection)
    connection.waiting = 150
    watch.watch(connection, connection)
    connection.waiting = 120
    assert connection.pass_time() == 1
    assert connection.dropped == []


def test_stopped_watch_drops_nobody(connection: Any, watch: DrainWatch) -> None:
    """The connection is gone, and stopping again changes nothing."""
    watch.watch(connection, connection)
    watch.stop()
    watch.stop()
    assert connection.pass_time() == 0
    assert connection.dropped == []


def test_watch_does_not_refer_to_its_connection(connection: Any, watch: DrainWatch) -> None:
    """The watch holds its connection only while a timer runs, so the two never form a cycle."""
    before = sys.getrefcount(connection)
    watch.watch(connection, connection)
    watch.stop()
    connection.timers.clear()
    assert sys.getrefcount(connection) == before
