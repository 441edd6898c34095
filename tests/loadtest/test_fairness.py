"""The figures and the verdict of the fairness test, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from aiaas.loadtest.fairness import (
    FEWEST_REQUESTS,
    MOST_TTFT,
    KeyFigures,
    KeyRefusals,
    count_refusals,
    judge_fairness,
    key_figures,
    part_of_share,
    why_no_verdict,
)
from aiaas.loadtest.sample import Window
from aiaas.loadtest.stats import spread
from aiaas.loadtest.summary import RunFault
from tests.loadtest.samples import failed, sample

LIMIT = RunFault("http_429", "rate_limit_exceeded", 4, "10 a minute")


def figures(ttft: float | None = 0.1, **more: Any) -> KeyFigures:
    """20 answered requests with this TTFT; `more` goes to KeyFigures."""
    count = 0 if ttft is None else more.get("answered", 20)
    settings: dict[str, Any] = {
        "seconds": 15.0,
        "requests": 20,
        "answered": count,
        "limited": 0,
        "overloaded": 0,
        "errors": 0,
        "unfinished": 0,
        "tokens_per_second": 50.0,
        "ttft": None if ttft is None else spread([ttft] * count),
    }
    return KeyFigures(**(settings | more))


def test_a_part_has_the_requests_that_were_due_in_its_window() -> None:
    """Those due before or after it only add the tokens that arrived in it."""
    before = sample(9.0, ttft=0.5, e2e=1.5)  # ends at 10.5: half of its 11 tokens arrive in the window
    inside = [sample(11.0, ttft=0.3), sample(12.0, ttft=0.1)]
    found = key_figures([before, *inside, sample(20.0, ttft=9.0, e2e=10.0)], Window(10.0, 20.0))
    assert (found.requests, found.answered, found.seconds) == (2, 2, 10.0)
    assert found.ttft is not None
    assert (found.ttft.count, round(found.ttft.maximum, 6)) == (2, 0.3)
    assert found.tokens_per_second == pytest.approx((5.5 + 11 + 11) / 10)


def test_closed_loop_part_has_the_requests_that_ended_in_it() -> None:
    """Those that were due long before it and cut off after it, too; not those that ended before."""
    ended = sample(2.0, ttft=9.0, e2e=10.0)
    cut = sample(3.0, ttft=None, e2e=18.5, output_tokens=0, events=0, aborted=True)
    found = key_figures([sample(1.0), ended, cut, sample(11.0, e2e=30.0)], Window(10.0, 20.0), ended_by=22.0)
    assert (found.requests, found.answered, found.unfinished) == (2, 1, 1)
    assert found.ttft is not None
    assert (found.ttft.minimum, found.ttft.maximum) == (9.0, 18.5)


def test_load_is_input_and_four_times_output() -> None:
    """As the gateway's queue counts it; a light key's is compared with what all keys have beside, in equal parts."""
    found = key_figures([sample(1.0, prompt_tokens=40), sample(3.0, prompt_tokens=60)], Window(0.0, 10.0))
    assert found.load_per_second == pytest.approx((100 + 4 * 22) / 10)
    alone, beside, flood = (figures(load_per_second=load) for load in (30.0, 20.0, 160.0))
    assert part_of_share(alone, beside, flood, 3) == pytest.approx(0.5)
    assert part_of_share(alone, figures(), figures(), 3) == 0


def test_failures_are_counted_by_their_cause() -> None:
    """The key's own limit, a full gateway, the rest; none of them has a TTFT."""
    faults = ["http_429", "http_429", "http_503", "reset", "http_500"]
    found = key_figures([sample(1.0), *(failed(1.0, error) for error in faults)], Window(0.0, 10.0))
    assert (found.requests, found.answered, found.unfinished) == (6, 1, 0)
    assert (found.limited, found.overloaded, found.errors) == (2, 1, 2)
    assert found.measured == 1


def test_a_request_without_a_first_token_counts_with_its_wait() -> None:
    """A key that is never served has a long TTFT instead of none; one cut off in its answer has its own TTFT."""
    waiting = sample(1.0, ttft=None, e2e=8.0, output_tokens=0, events=0, aborted=True)
    halfway = sample(1.0, ttft=0.4, e2e=8.0, aborted=True)
    found = key_figures([waiting, halfway], Window(0.0, 10.0))
    assert (found.requests, found.answered, found.unfinished) == (2, 0, 2)
    assert found.ttft is not None
    assert (round(found.ttft.minimum, 6), found.ttft.maximum) == (0.4, 8.0)


def test_refusals_are_counted_by_key() -> None:
    """Keys that were never refused are left out."""
    refused = [
        failed(0.0, "http_429", key=1, status=429),
        failed(0.0, "http_503", key=1, status=503),
        failed(0.0, "http_429", key=2, status=429),
        sample(0.0, key=0),
    ]
    assert count_refusals(("a", "b", "c"), refused) == (KeyRefusals("b", 1, 1), KeyRefusals("c", 1, 0))


@pytest.mark.parametrize(
    ("alone", "beside", "held"),
    [
        pytest.param(figures(0.05), figures(0.4), (True, True), id="little longer"),
        pytest.param(figures(0.05), figures(MOST_TTFT), (True, True), id="at the bound"),
        pytest.param(figures(0.05), figures(1.6), (False, True), id="above the bound"),
        pytest.param(figures(0.8), figures(3.9), (True, True), id="slow engine, below five times"),
        pytest.param(figures(0.8), figures(4.1), (False, True), id="slow engine, above five times"),
        pytest.param(figures(0.05), figures(0.1, overloaded=1), (True, False), id="refused once"),
        pytest.param(figures(0.05), figures(0.1, errors=1), (True, False), id="failed once"),
        pytest.param(figures(0.05), figures(0.1, limited=9), (True, True), id="own limits"),
        pytest.param(figures(0.05), figures(None, overloaded=20), (False, False), id="always refused"),
    ],
)
def test_verdict_is_by_ttft_and_by_refusals(alone: KeyFigures, beside: KeyFigures, held: tuple[bool, bool]) -> None:
    """At most the larger of 1.5 s and five times the TTFT alone, and no refusal but by the key's own limits."""
    assert tuple(check.held for check in judge_fairness(alone, beside)) == held


def test_verdict_states_its_bound() -> None:
    """The reader sees both terms."""
    ttft, _ = judge_fairness(figures(0.05), figures(1.6))
    assert ttft.expected == "at most 1.50 s (the larger of 1.50 s and 5 x 50.0 ms)"
    assert ttft.seen == "1.60 s"


FEW = figures(answered=FEWEST_REQUESTS - 1)


@pytest.mark.parametrize(
    ("alone", "beside", "flood", "why"),
    [
        pytest.param(figures(), figures(), figures(), "", id="enough"),
        pytest.param(None, None, None, "ended before the light key was measured", id="nothing"),
        pytest.param(
            figures(None, faults=(LIMIT,)),
            None,
            None,
            "no answer even alone (http_429 rate_limit_exceeded: 10 a minute)",
            id="refused alone",
        ),
        pytest.param(figures(unfinished=3), None, None, "even alone, 3 of", id="slow alone"),
        pytest.param(figures(), None, None, "ended before the light key was measured beside", id="no flood"),
        pytest.param(
            figures(), figures(), figures(None, tokens_per_second=0.0, faults=(LIMIT,)), "no flood", id="heavy refused"
        ),
        pytest.param(
            figures(), FEW, figures(), "only 20 requests of the light key were measured alone and 9", id="few"
        ),
        pytest.param(figures(), figures(None, overloaded=5), figures(), "", id="few, but refused"),
        pytest.param(figures(), figures(None, limited=20), figures(), "0 beside", id="own limits only"),
    ],
)
def test_figures_too_few_for_a_verdict_have_a_reason(
    alone: KeyFigures | None, beside: KeyFigures | None, flood: KeyFigures | None, why: str
) -> None:
    """Each lack has its own reason; enough figures have none."""
    found = why_no_verdict(alone, beside, flood)
    assert (why in found) if why else not found
