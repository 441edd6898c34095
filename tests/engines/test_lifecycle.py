"""aiaas.engines.lifecycle: the next step of an engine, tested without an engine and without a clock."""

from __future__ import annotations

import pytest

from aiaas.engines.lifecycle import (
    AnswersAgain,
    Changed,
    Died,
    GaveUp,
    Healthy,
    Life,
    NotAnswering,
    Restarting,
    Starting,
    StillLoading,
    Stopped,
    Waiting,
    backoff,
    describe,
)


def test_the_wait_doubles_up_to_a_minute():
    """The n-th death in a row is followed by 1, 2, 4, ... and at most 60 s, however large n is."""
    assert [backoff(n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff(100_000) == 60


def test_an_engine_that_was_healthy_once_is_restarted_for_ever():
    """Its settings are known to work, so no number of deaths gives it up."""
    life, _ = Life().become_healthy(now=1)
    for _ in range(20):
        life, then = life.die(now=2)
    assert then == Restarting(60)


def test_engine_never_healthy_is_given_up_after_five_deaths():
    """A wrong model name is not fixed by waiting."""
    life, thens = Life(), []
    for _ in range(5):
        life, _ = life.start(now=0, argv=("vllm",))
        life, then = life.die(now=1)
        thens.append(then)
    assert thens == [Restarting(1), Restarting(2), Restarting(4), Restarting(8), GaveUp(5)]


@pytest.mark.parametrize(
    ("healthy_for", "expected_wait"),
    [pytest.param(59.9, 8, id="just short of a minute"), pytest.param(60, 1, id="a minute")],
)
def test_a_minute_of_health_ends_the_row_of_deaths(healthy_for, expected_wait):
    """The next death counts as the first."""
    life = Life(deaths=3, ever_healthy=True)
    life, _ = life.start(now=100, argv=())
    life, healthy = life.become_healthy(now=130)
    _, then = life.die(now=130 + healthy_for)
    assert healthy == Healthy(30)
    assert then == Restarting(expected_wait)


def test_health_does_not_carry_over_to_the_next_process():
    """A process that dies while loading adds to the row, however long its predecessor was healthy."""
    life, _ = Life().become_healthy(now=0)
    life, first = life.die(now=1000)
    life, starting = life.start(now=1001, argv=())
    assert life.healthy_at is None
    _, second = life.die(now=5000)
    assert (first, starting.attempt, second) == (Restarting(1), 1, Restarting(2))


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Starting(1, ("vllm", "serve", "m")), "starting: vllm serve m"),
        (Starting(3, ("vllm",)), "starting, attempt 3"),
        (StillLoading(10.2, "Loading weights: 40%"), "still loading after 10 s: Loading weights: 40%"),
        (StillLoading(5, ""), "still loading after 5 s"),
        (Healthy(27.31), "healthy after 27.3 s"),
        (Died(1, "ValueError: no such model", ("a",), 3), "died after 3.0 s: exit code 1: ValueError: no such model"),
        (Died(0, "", (), 3), "died after 3.0 s: exit code 0"),
        (Died(137, "", (), 9), "died after 9.0 s: SIGKILL, perhaps from the kernel's out-of-memory killer"),
        (Died(139, "", (), 9), "died after 9.0 s: SIGSEGV"),
        (Died(255, "", (), 9), "died after 9.0 s: exit code 255"),
        (Died(None, "frozen: no answer", ("x",), 600), "ended after 600.0 s: frozen: no answer"),
        (NotAnswering(10.4), "no answer to /health for 10 s, so it gets no requests"),
        (AnswersAgain(), "answers /health again"),
        (Changed(), "settings changed, starting again with them"),
        (
            Waiting(8100),
            "another aiaas still runs an engine on port 8100, perhaps to finish streams; waiting for its end",
        ),
        (Restarting(4), "restarting in 4 s"),
        (GaveUp(5), "gave up after 5 failed starts: its models answer 503 until a reload changes its settings"),
        (Stopped(1.24, killed=False), "stopped after 1.2 s"),
        (Stopped(30, killed=True), "stopped after 30.0 s (killed: it did not exit by itself)"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_every_event_is_one_plain_line(event, line):
    """An operator reads what happened and, where needed, what to do."""
    assert describe(event) == line
