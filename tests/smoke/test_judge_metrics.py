"""The verdicts with a second source: metrics, and the engine's own answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.loadtest.limit_check import LimitCheck
from aiaas.openai.usage import TokenUsage
from aiaas.smoke.judge_metrics import (
    ABORT_TOKENS,
    Counts,
    first_difference,
    join,
    judge_direct,
    judge_engine_abort,
    judge_gateway_abort,
    judge_limit,
    judge_metrics,
    judge_usage,
    total,
)
from aiaas.smoke.result import Seen, Verdict, judged, skipped

TEXT = """# TYPE inference_requests counter
inference_requests_total{model="m",status="success"} 2.0
inference_requests_total{model="n",status="success"} 3.0
# TYPE inference_latency_seconds histogram
inference_latency_seconds_bucket{le="+Inf"} 5.0
inference_latency_seconds_sum 1.0
inference_latency_seconds_count 5.0
# TYPE tokens_processed counter
tokens_processed_total{model="m",type="input"} 7.0
"""
ONE = TokenUsage(3, 2)


def whole(**fields: object) -> Seen:
    """An answer of JSON."""
    return Seen(200, {}, json.dumps({"id": "a", "choices": [{"text": "x"}], **fields}).encode())


def metrics(text: str, status: int = 200) -> Seen:
    """A scrape."""
    return Seen(status, {}, text.encode())


def test_samples_are_summed_by_name_and_labels() -> None:
    """None if no sample matches."""
    assert total(TEXT, "inference_requests_total") == 5
    assert total(TEXT, "inference_requests_total", {"model": "n"}) == 3
    assert total(TEXT, "inference_requests_total", {"model": "o"}) is None


@pytest.mark.parametrize(
    "verdict",
    [
        pytest.param(judge_metrics(metrics(TEXT)), id="metrics"),
        pytest.param(judge_usage(ONE, ONE, None, reads_metrics=False), id="usage"),
        pytest.param(judge_usage(ONE, ONE, TokenUsage(6, 4), reads_metrics=True), id="counted usage"),
        pytest.param(judge_engine_abort(Counts(0, 100), Counts(0, 104), 0.1), id="engine stops"),
        pytest.param(judge_gateway_abort(1, 2), id="gateway counts"),
        pytest.param(judge_direct(whole(), whole(id="b", created=2, system_fingerprint="z")), id="direct"),
        pytest.param(judge_limit((LimitCheck("a", "1", "1", held=True),)), id="limit"),
    ],
)
def test_agreeing_sources_pass(verdict: Verdict) -> None:
    """And without a hint."""
    assert (verdict.held, verdict.hint) == (True, "")


@pytest.mark.parametrize(
    ("verdict", "seen", "hint"),
    [
        pytest.param(judge_metrics(metrics("x", 404)), "404", "`monitoring.metrics_port`", id="no metrics"),
        pytest.param(
            judge_metrics(Seen(502, {"content-type": "text/html"})), "502", "an HTML page", id="an ingress's page"
        ),
        pytest.param(judge_metrics(Seen(error="connect", detail="refused")), "refused", "metrics_port", id="nobody"),
        pytest.param(
            judge_metrics(metrics("<html>")),
            "something other than metrics",
            "`monitoring.metrics_port`",
            id="a web page",
        ),
        pytest.param(judge_metrics(metrics("a 1\n")), "without inference_requests", "metrics_port", id="another's"),
        pytest.param(judge_usage(None, ONE, None, False), "no usage in the whole", "`completion`", id="no usage"),
        pytest.param(
            judge_usage(ONE, TokenUsage(3, 1), None, False), "3+1 tokens streamed", "in another way", id="differs"
        ),
        pytest.param(
            judge_usage(ONE, ONE, TokenUsage(3, 2), True), "counted 3+2", "another replica", id="counted once"
        ),
        pytest.param(
            judge_usage(ONE, ONE, TokenUsage(9, 3), True), "counted 9+3", "another replica", id="output missing"
        ),
        pytest.param(
            judge_usage(ONE, ONE, TokenUsage(12, 8), True), "counted 12+8", "counted twice", id="counted twice"
        ),
        pytest.param(
            judge_engine_abort(Counts(0, 0), Counts(1, 300), 5.0), "1 running", "keeps the request open", id="runs on"
        ),
        pytest.param(
            judge_engine_abort(Counts(0, 0), Counts(0, ABORT_TOKENS), 2.0), "1000 tokens", "keeps the", id="ran out"
        ),
        pytest.param(judge_gateway_abort(1, 1), "0 counted", "another replica", id="nobody noticed"),
        pytest.param(judge_direct(whole(), Seen(401, {})), "direct: 401", "refused", id="direct refused"),
        pytest.param(judge_direct(Seen(200, {}, b"{"), whole()), "not JSON", "something other", id="not JSON"),
        pytest.param(
            judge_limit((LimitCheck("a", "1", "1", held=True), LimitCheck("b", "2", "3", held=False))),
            "b: 3",
            "each count alone",
            id="limit",
        ),
    ],
)
def test_disagreeing_sources_fail_with_the_usual_cause(verdict: Verdict, seen: str, hint: str) -> None:
    """Numbers first."""
    assert verdict.held is False
    assert seen in verdict.seen
    assert hint in verdict.hint


def test_a_limit_that_failed_tells_only_what_failed() -> None:
    """And a limit that held tells everything."""
    good, bad = LimitCheck("a", "1", "1", held=True), LimitCheck("b", "2", "3", held=False)
    assert (judge_limit((good, bad)).expected, judge_limit((good, bad)).seen) == ("b: 2", "b: 3")
    assert judge_limit((good, good)).seen == "a: 1; a: 1"


def test_equal_answers_are_reported_equal() -> None:
    """And if they differ, the place."""
    assert judge_direct(whole(), whole()).seen == "the same"
    assert judge_direct(whole(), whole(n=1)).seen == "they differ at n"


def test_an_engine_that_did_nothing_was_not_the_one() -> None:
    """Behind a Service there are several, and --engine-metrics names one."""
    assert judge_engine_abort(Counts(0, 5), Counts(0, 5), 5.0).held is None


@pytest.mark.parametrize(
    ("there", "place"),
    [
        ({"a": [{"b": 1}]}, None),
        ({"a": [{"b": 2}]}, "a[0].b"),
        ({"a": [{"b": 1}, {}]}, "a"),
        ({"a": [{"b": True}]}, "a[0].b"),
        ({"a": [{"b": 1}], "c": None}, "c"),
        ({"a": [{"b": 1, "id": 7}]}, None),
        ([], "the top"),
    ],
    ids=["same", "value", "length", "type", "more", "id", "top"],
)
def test_the_first_difference_has_a_place(there: Any, place: str | None) -> None:
    """In the notation of a path."""
    assert first_difference({"a": [{"b": 1}]}, there) == place


def test_verdicts_join_to_the_worst() -> None:
    """Failed before passed, passed before skipped."""
    good, bad = judged(True, "a", "b", ""), judged(False, "c", "d", "e")
    assert join((good, bad)) == Verdict(False, "a; c", "b; d", "e")
    assert join((good, skipped("why"))) == Verdict(True, "a", "b; why", "")
    assert join((skipped("why"),)) == skipped("why")
