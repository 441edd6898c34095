"""aiaas.proxy.workers.pulse: which silence counts as a worker's, by the clock alone."""

from __future__ import annotations

import pytest

from aiaas.proxy.workers.pulse import (
    ANSWERS_WITHIN,
    BEAT_INTERVAL,
    HANG_PATIENCE,
    PULSE_INTERVAL,
    PULSE_LATE,
    START_PATIENCE,
    Listening,
)

SECOND = PULSE_INTERVAL


def looked_until(now: float, listening: Listening | None = None) -> Listening:
    """A look every second, all on time."""
    listening = listening or Listening(0.0, 0.0)
    while listening.looked < now:
        listening = listening.look(listening.looked + SECOND)
    return listening


def test_a_worker_silent_for_the_patience_hangs() -> None:
    """And not a moment sooner; until then the worker is only missed."""
    listening = looked_until(30)
    assert not listening.hangs(30 - HANG_PATIENCE + 0.1, True, 30)
    assert listening.hangs(30 - HANG_PATIENCE, True, 30)
    assert listening.silence(12, 30) == 18


def test_a_worker_slow_for_five_seconds_does_not_hang() -> None:
    """Its loop was blocked; the worker is missed meanwhile, and counts again with its next message."""
    listening = looked_until(30)
    assert not listening.hangs(25, True, 30)
    assert not listening.answers(25, 30)
    assert listening.answers(30, 30)


def test_a_worker_that_has_not_spoken_yet_has_longer() -> None:
    """The worker loads the program; one that is stopped meanwhile is still noticed."""
    listening = looked_until(START_PATIENCE)
    assert not listening.hangs(START_PATIENCE - HANG_PATIENCE, False, START_PATIENCE)
    assert not listening.hangs(0.1, False, START_PATIENCE)
    assert listening.hangs(0, False, START_PATIENCE)


@pytest.mark.parametrize(
    "pause", [SECOND + PULSE_LATE + 0.1, HANG_PATIENCE, 3600.0], ids=["late", "stopped", "suspended"]
)
def test_a_supervisor_that_was_late_counts_anew(pause: float) -> None:
    """Nobody listened, so nobody knows; a worker that really hangs is found after the whole patience once more."""
    before = looked_until(20)
    heard, now = 20.0 - HANG_PATIENCE + SECOND, 20 + pause
    listening = before.look(now)
    assert listening.silence(heard, now) == 0
    assert listening.answers(heard, now)
    assert not listening.hangs(heard, True, now)
    then = looked_until(now + HANG_PATIENCE - SECOND, listening)
    assert not then.hangs(heard, True, then.looked)
    then = looked_until(now + HANG_PATIENCE, listening)
    assert then.hangs(heard, True, then.looked)


def test_a_look_that_is_a_little_late_changes_nothing() -> None:
    """Each look is on any machine; else a busy one would never find a worker that hangs."""
    listening = Listening(0.0, 0.0)
    for number in range(1, 20):
        listening = listening.look(number * (SECOND + PULSE_LATE))
    assert listening.since == 0
    assert listening.hangs(listening.looked - HANG_PATIENCE, True, listening.looked)


def test_words_after_a_break_count_from_when_they_came() -> None:
    """Not from the break's end, which is earlier."""
    listening = Listening(0.0, 0.0).look(100)
    then = looked_until(105, listening)
    assert then.silence(104, 105) == 1
    assert then.silence(50, 105) == 5


def test_a_healthy_worker_is_never_missed() -> None:
    """Its messages come more often than that, also where one or two are late."""
    assert 2 * BEAT_INTERVAL + PULSE_LATE <= ANSWERS_WITHIN < HANG_PATIENCE / 2
