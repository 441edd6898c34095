"""The admissions of a correct limiter, and how a wrong one is found out."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiaas.errors import CheckFailed
from aiaas.limits.gcra import decide
from aiaas.limits.headers import go_duration as written
from aiaas.limits.model import Rate
from aiaas.loadtest.limit_check import (
    OfferedRequest,
    ToldLimit,
    is_full,
    judge_offers,
    offers_needed,
    seconds_told,
    told_of,
)


def offered(
    rate: Rate, pauses: list[float], *, real: Rate | None = None, latency: float = 0.01
) -> list[OfferedRequest]:
    """Offers to a limiter that announces `rate` and enforces `real`, one after each pause, decided halfway."""
    tat, now, offers = None, 0.0, []
    for pause in pauses:
        now += pause
        decision, tat = decide(tat, real or rate, 1, now + latency / 2)
        told = ToldLimit(
            rate.per_minute, min(decision.remaining, rate.burst - 1), decision.reset_after, decision.retry_after
        )
        offers.append(OfferedRequest(now, now + latency, decision.allowed, told))
    return offers


@example(per_minute=1, burst=1, pauses=[0.5, 0.4375, 0.5, 0.5, 0.375] * 3, latency=1.0)
@given(
    per_minute=st.integers(1, 600),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 0.5), min_size=1, max_size=60),
    latency=st.floats(0.0001, 1),
)
def test_a_correct_limiter_always_passes(per_minute: int, burst: int, pauses: list[float], latency: float) -> None:
    """Whatever its rate, the pauses and the latency, as long as the load exceeds the limit."""
    rate = Rate(per_minute, burst)
    interval = 60 / per_minute
    at_once = [0.0] * (burst + 5)
    offers = offered(rate, [*at_once, *(pause * interval for pause in pauses)], latency=latency)
    checks = judge_offers(offers, len(at_once), None)
    assert [check.name for check in checks if not check.held] == []


@pytest.mark.parametrize(
    ("real", "broken"),
    [
        pytest.param(Rate(120, 5), "admitted under overload", id="twice the rate (two replicas, each its own)"),
        pytest.param(Rate(60, 10), "admitted under overload", id="twice the burst"),
        pytest.param(Rate(30, 5), "admitted under overload", id="half the rate"),
        pytest.param(Rate(60, 2), "admitted at once", id="less at once than it says"),
        pytest.param(Rate(60_000, 5000), "admitted under overload", id="no limit at all"),
    ],
)
def test_a_limiter_that_does_not_do_what_it_says_is_found(real: Rate, broken: str) -> None:
    """60 a minute and 5 at once, by its header."""
    pauses = [0.0] * 10 + [0.5] * 40
    offers = offered(Rate(60, 5), pauses, real=real)
    first = offers[0]
    offers[0] = OfferedRequest(first.sent, first.ended, True, ToldLimit(60, 4, 1.0, None))
    assert broken in [check.name for check in judge_offers(offers, 10, None) if not check.held]


def test_a_client_that_waits_as_told_must_be_admitted() -> None:
    """And a 429 must say how long."""
    offers = offered(Rate(60, 2), [0.0] * 4)
    refused = OfferedRequest(2.0, 2.01, False, ToldLimit(60, 0, 1.0, 1.0))
    silent = [*offers, OfferedRequest(0.1, 0.11, False, ToldLimit(60, 0, 1.0, None))]
    assert not judge_offers(offers, 4, refused)[-1].held
    assert judge_offers(offers, 4, OfferedRequest(2.0, 2.01, True, ToldLimit(60, 0, 1.0)))[-1].held
    assert [check.name for check in judge_offers(silent, 4, None) if not check.held] == ["429s with a Retry-After"]


@given(seconds=st.floats(0, 10_000))
def test_durations_are_read_as_our_headers_write_them(seconds: float) -> None:
    """Rounded up to milliseconds by the writer."""
    assert seconds <= seconds_told(written(seconds)) + 1e-6
    assert seconds_told(written(seconds)) == pytest.approx(seconds, abs=0.0011)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1d"])
def test_invalid_duration_is_read_as_none(text: str) -> None:
    """Another server's text stops nothing."""
    assert seconds_told(text) == 0.0


def test_headers_tell_the_limit() -> None:
    """If there is one."""
    headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "9"}
    assert told_of(headers | {"x-ratelimit-reset-requests": "1m0s", "retry-after-ms": "950"}) == ToldLimit(
        60, 9, 60.0, 0.95
    )
    assert told_of(headers) == ToldLimit(60, 9, 0.0, None)
    assert told_of({}) is None
    assert told_of(headers | {"x-ratelimit-limit-requests": "many"}) is None


def test_a_bucket_is_full_when_it_owes_one_request() -> None:
    """The request that asked."""
    assert is_full(ToldLimit(60, 9, 1.0))
    assert not is_full(ToldLimit(60, 7, 3.0))


def test_a_limit_too_large_for_a_check_is_said_with_what_to_do() -> None:
    """The message suggests a key with a lower limit."""
    assert offers_needed(60, 10, 5.0) == 25
    with pytest.raises(CheckFailed, match="aiaas keys create check --rpm 60 --burst 10"):
        offers_needed(60_000, 1000, 2.0)
