"""Samples folded: which count for what, and what belongs to the window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.loadtest.sample import GatewayUse, Generator, Recorded, Run, RunEnd, Window
from aiaas.loadtest.slo import parse_slo
from aiaas.loadtest.stats import percentile
from aiaas.loadtest.summary import bottleneck, fairness, summarize, summarize_recorded
from tests.loadtest.samples import failed, sample

TEN = RunEnd(windows=(Window(10.0, 20.0),))


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=60))
def test_latencies_are_those_of_the_samples(latencies: list[float]) -> None:
    """Percentiles over all whole answers."""
    total = summarize([sample(0.0, ttft=each, e2e=2 * each) for each in latencies]).total
    assert total.ttft is not None
    assert total.e2e is not None
    assert total.ttft.p99 == percentile(sorted(latencies), 99)
    assert total.e2e.maximum == 2 * max(latencies)


def test_gaps_are_pooled_and_in_seconds() -> None:
    """Long answers weigh more in ITL, and not in TPOT."""
    total = summarize([sample(gaps=(10_000,) * 99), sample(gaps=(50_000,))]).total
    assert total.itl is not None
    assert (total.itl.count, total.itl.p50, total.itl.p99, total.itl.maximum) == (100, 0.01, 0.01, 0.05)


def test_the_warm_up_is_in_no_latency_and_no_count() -> None:
    """However slow it was."""
    total = summarize([sample(0.0, e2e=9.0, warmup=True), failed(0.0, warmup=True), sample(10.0)]).total
    assert total.e2e is not None
    assert (total.requests, total.errors, total.e2e.count, total.e2e.maximum) == (1, 0, 1, 1.0)


def test_errors_and_429s_are_counted_apart_and_together() -> None:
    """By kind and code, with an example; the rate holds both."""
    total = summarize(
        [
            sample(),
            failed(error="http_429", status=429, code="rate_limit_exceeded", detail="The limit is 10."),
            failed(error="cut", detail="first"),
            failed(error="cut", detail="second"),
            sample(aborted=True),
        ]
    ).total
    assert (total.requests, total.ok, total.rate_limited, total.errors, total.aborted) == (4, 1, 1, 2, 1)
    assert total.error_rate == 0.75
    assert [(fault.error, fault.code, fault.count, fault.example) for fault in total.faults] == [
        ("cut", "", 2, "first"),
        ("http_429", "rate_limit_exceeded", 1, "The limit is 10."),
    ]


def test_rates_count_what_happened_in_the_window() -> None:
    """Answers that ended in it, sent at any time; tokens by the part of a stream that lies in it."""
    before = sample(8.0, ttft=1.0, e2e=3.0, warmup=True, output_tokens=40)  # streams from 9 to 11
    inside = sample(12.0, output_tokens=10)
    across = sample(18.0, ttft=1.0, e2e=5.0, output_tokens=80)  # streams from 19 to 23
    total = summarize([before, inside, across], TEN).total
    assert total.requests_per_second == pytest.approx(2 / 10)
    assert total.output_tokens_per_second == pytest.approx((20 + 10 + 20) / 10)
    assert total.requests == 2


def test_unstreamed_answer_gives_its_tokens_when_it_ends() -> None:
    """All of them, or none."""
    total = summarize([sample(12.0, ttft=None, output_tokens=30), sample(19.5, ttft=None, output_tokens=30)], TEN).total
    assert total.output_tokens_per_second == pytest.approx(3.0)


def test_without_an_end_the_window_is_that_of_the_samples() -> None:
    """A crashed run still has rates: 2 answers between 5 and 9."""
    total = summarize([sample(0.0, warmup=True), sample(5.0), sample(8.0)]).total
    assert total.seconds == pytest.approx(4.0)
    assert total.requests_per_second == pytest.approx(0.5)


def test_goodput_counts_answers_within_the_slo() -> None:
    """Per second of the window; without an SLO there is none."""
    found = [sample(10.0, ttft=0.1), sample(11.0, ttft=0.9), failed(12.0)]
    assert summarize(found, TEN, parse_slo("ttft=500ms")).total.goodput == pytest.approx(0.1)
    assert summarize(found, TEN).total.goodput is None


def test_a_missed_bound_is_a_run_that_does_not_hold() -> None:
    """One missed bound is enough."""
    found = [sample(10.0, ttft=0.1), failed(12.0)]
    assert summarize(found, TEN, parse_slo("ttft=500ms")).total.held
    assert not summarize(found, TEN, parse_slo("ttft=500ms,error_rate=1%")).total.held


def test_levels_keys_and_ways_are_told_apart() -> None:
    """Where there are several; what went direct is in no other figure. A run with one of each has the total only."""
    end = RunEnd(windows=(Window(0.0, 10.0, 1), Window(10.0, 20.0, 2)))
    found = [
        sample(0.0, level=1, key=0, via="direct", e2e=9.0),
        sample(0.0, level=1, key=0),
        sample(12.0, level=2, key=0),
        sample(13.0, level=2, key=1),
    ]
    summary = summarize(found, end)
    assert [(level.level, level.requests) for level in summary.levels] == [(1, 1), (2, 2)]
    assert [key.requests for key in summary.keys] == [2, 1]
    assert {name: way.requests for name, way in summary.ways.items()} == {"direct": 1, "gateway": 3}
    assert (summary.total.requests, summary.total.e2e and summary.total.e2e.maximum) == (3, 1.0)
    alone = summarize([sample()])
    assert (alone.levels, alone.keys, alone.ways) == ((), (), {})


def test_nothing_at_all_is_a_summary_too() -> None:
    """Of a run that was interrupted before its first answer."""
    total = summarize([]).total
    assert (total.requests, total.error_rate, total.ttft, total.requests_per_second) == (0, 0.0, None, 0.0)


def test_a_run_from_a_file_is_folded_with_its_end() -> None:
    """The same as while it ran."""
    run = Run(1, "0", "u", "m", "t", "closed")
    assert summarize_recorded(Recorded(run, (sample(12.0),), TEN)) == summarize([sample(12.0)], TEN)


@pytest.mark.parametrize(
    ("shares", "index"),
    [([5.0, 5.0, 5.0], 1.0), ([9.0, 0.0, 0.0], 1 / 3), ([0.0, 0.0], 1.0)],
    ids=["even", "one has all", "nobody has anything"],
)
def test_fairness_is_jains_index(shares: list[float], index: float) -> None:
    """1 is even, 1/n is one for all."""
    assert fairness(shares) == pytest.approx(index)


@pytest.mark.parametrize(
    ("generator", "words"),
    [
        pytest.param(Generator(0.5, 0.005, 0.1, 1), "", id="kept up"),
        pytest.param(Generator(0.95), "95% of the one core", id="no CPU left"),
        pytest.param(Generator(0.1, 0.08), "80 ms late", id="a late loop"),
        pytest.param(Generator(0.1, 0.0, 0.0, 20), "20 of 200 requests began", id="late sends"),
    ],
)
def test_a_generator_that_did_not_keep_up_says_so(generator: Generator, words: str) -> None:
    """By CPU, by its loop's lag, by late sends."""
    found = bottleneck(generator, 200)
    assert (words in found) if words else not found


@pytest.mark.parametrize(
    ("use", "answers", "cpu"),
    [
        pytest.param(GatewayUse(0.22, 2.0), 2, (0.11, 0.01, 1.0), id="the only gateway"),
        pytest.param(GatewayUse(0.22, 1.8), 2, (0.22 / 1.8, 0.01, 0.9), id="some were under way at its end"),
        pytest.param(GatewayUse(0.11, 1.0), 2, (0.11, 0.01, 0.5), id="one of two"),
        pytest.param(GatewayUse(0.11, 0.0), 2, (None, None, 0.0), id="another one than the load's"),
        pytest.param(GatewayUse(0.11, 0.0), 0, (None, None, None), id="nothing came"),
    ],
)
def test_a_gateways_cpu_is_that_of_what_it_carried(
    use: GatewayUse, answers: int, cpu: tuple[float | None, float | None, float | None]
) -> None:
    """A second with a number of answers of 11 tokens; CPU by request, by token, and the gateway's share."""
    found = summarize([sample(0.0, e2e=0.9)] * answers, RunEnd(windows=(Window(0.0, 1.0, 0, use),))).total.cpu
    assert found is not None
    assert found.cores == use.cores
    assert (found.per_request, found.per_token, found.share) == pytest.approx(cpu)


def test_a_gateways_cpu_is_of_the_whole_and_of_no_key() -> None:
    """Nobody knows which key took how much of it."""
    windows = (Window(0.0, 1.0, 0, GatewayUse(0.22, 2.0)),)
    found = summarize([sample(0.0, e2e=0.9, key=0), sample(0.0, e2e=0.9, key=1)], RunEnd(windows=windows))
    assert found.total.cpu is not None
    assert [key.cpu for key in found.keys] == [None, None]
