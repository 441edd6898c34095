"""The fate of requests when a replica is killed at 10 s."""

from __future__ import annotations

from typing import Any

import pytest

from aiaas.loadtest.killed import Fates, Killed, faults_of, killed
from aiaas.loadtest.sample import Kill, Sample, StreamParts
from tests.loadtest.samples import failed, sample

KILL = Kill("kill -9 1", at=10.0, ended=10.1, code=0)
WHOLE = StreamParts(finish="length", asked=11)


def streamed(due: float = 9.5, *, parts: StreamParts | None = WHOLE, **more: Any) -> Sample:
    """A whole stream of 11 tokens that is in flight at 10 s and begins at 9.7 s."""
    return sample(due, **({"parts": parts, "gaps": (100_000,) * 8} | more))


def figures(*samples: Sample, kill: Kill = KILL) -> Killed:
    return killed(samples, kill)


def test_a_whole_stream_in_flight_is_not_lost() -> None:
    """One that ended before, and one that the client left, do not count."""
    found = figures(streamed(), streamed(8.0), streamed(aborted=True))
    assert (found.in_flight, found.later) == (Fates(requests=1, whole=1), Fates())
    assert (found.in_flight.lost, found.begun, found.held) == (0, 1, True)


@pytest.mark.parametrize(
    ("error", "field"),
    [
        ("in_stream", "error_events"),
        ("cut", "cut"),
        ("reset", "cut"),
        ("timeout", "cut"),
        ("garbage", "cut"),
        ("http_503", "refused"),
        ("http_429", "refused"),
        ("connect", "refused"),
    ],
)
def test_each_failure_has_one_fate(error: str, field: str) -> None:
    """In flight and later alike; only what was in flight is lost."""
    found = figures(streamed(), failed(9.9, error), failed(11.0, error))
    assert found.in_flight == Fates(requests=2, whole=1, **{field: 1})
    assert found.later == Fates(requests=1, **{field: 1})
    assert found.refusals == ({error: 2} if field == "refused" else {})
    assert (found.in_flight.lost, found.held) == (1, False)


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        (StreamParts(ids=2), ["id"]),
        (StreamParts(roles=0), ["role"]),
        (StreamParts(finishes=2), ["finish_reason"]),
        (StreamParts(finish="abort"), ["finish_reason"]),
        (StreamParts(finish="error"), ["finish_reason"]),
        (StreamParts(usages=0, dones=2), ["usage", "[DONE]"]),
        (StreamParts(asked=12), ["completion_tokens"]),
        (StreamParts(asked=11), []),
        (StreamParts(), []),
        (None, []),
    ],
)
def test_a_stream_that_only_looks_whole_is_spoiled(parts: StreamParts | None, wrong: list[str]) -> None:
    """Each wrong part is named; the length counts only where the request fixed it."""
    stream = streamed(parts=parts)
    assert faults_of(stream) == wrong
    found = figures(stream)
    assert (found.in_flight.spoiled, found.in_flight.lost) == (bool(wrong), bool(wrong))
    assert found.spoiled_by == dict.fromkeys(wrong, 1)


def test_a_request_without_an_event_had_not_begun() -> None:
    """It waits in a queue; its gaps do not count."""
    found = figures(streamed(9.9))
    assert (found.in_flight.requests, found.begun, found.gaps) == (1, 0, None)


def test_the_longest_gap_ended_after_the_kill() -> None:
    """Of each stream that had begun: at 9.7, 10.2 and 10.5 s, not the pause before; seconds."""
    early, late = streamed(9.0, gaps=(700_000, 200_000, 300_000), e2e=2.0), streamed(gaps=(500_000, 300_000))
    found = figures(early, late)
    assert found.gaps is not None
    assert (found.gaps.count, found.gaps.minimum, found.gaps.maximum) == (2, 0.3, 0.5)


@pytest.mark.parametrize("code", [1, -9, None], ids=["failed", "killed", "still running"])
def test_command_that_does_not_succeed_proves_nothing(code: int | None) -> None:
    """Perhaps nothing was killed."""
    assert not figures(streamed(), kill=Kill("false", 10.0, 10.1, code)).held


def test_a_run_without_a_stream_in_flight_proves_nothing() -> None:
    """The load was over, or had not begun."""
    assert not figures(streamed(11.0)).held
