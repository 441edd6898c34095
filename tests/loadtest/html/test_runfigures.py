"""The charts of one run: their figures are those of its summary, and each has a sentence."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from aiaas.loadtest.compare import Overhead
from aiaas.loadtest.html.figure import Figure, ToldRun
from aiaas.loadtest.html.runfigures import (
    distribution_figures,
    fault_figure,
    key_figure,
    overhead_figure,
    time_figures,
)
from aiaas.loadtest.sample import Window
from aiaas.loadtest.stats import Interval
from aiaas.loadtest.table import seconds
from tests.loadtest.html.runs import RUN, steady, sweep, told, values, words
from tests.loadtest.samples import failed, sample


def headlines(figures: list[Figure]) -> list[str]:
    """The text of the charts."""
    return [figure.headline for figure in figures]


def test_latency_over_time_says_what_the_summary_does() -> None:
    """With the percentile that the SLO names, and its verdict."""
    run = told(steady(), slo="ttft=150ms,e2e:p95=1s")
    total = run.shown.summary.total
    assert total.ttft is not None
    assert total.e2e is not None
    assert headlines(time_figures("a", run))[:2] == [
        f"TTFT p99 {seconds(total.ttft.p99)}, median {seconds(total.ttft.p50)}, SLO 150 ms missed",
        f"E2E p95 {seconds(total.e2e.p95)}, median {seconds(total.e2e.p50)}, SLO 1 s held",
    ]


def test_few_requests_are_drawn_one_by_one() -> None:
    """Each with its values, beside the spans that all are folded into."""
    run = told(steady(200))
    (ttft, *_) = time_figures("a", run)
    drawn = [float(each.attrib["data-y"]) for each in ttft.drawing.findall(".//g[@class='dots s3']/path")]
    assert drawn == [each.ttft for each in run.samples]
    assert sum(int(row[1]) for row in ttft.tables[0].rows) == 200
    assert "All 200 requests are folded into 10 spans of about 20" in ttft.what


def test_many_requests_are_folded_and_all_are_counted() -> None:
    """Without a dot for each, and without leaving any out."""
    (ttft, *_) = time_figures("a", told(steady(5000)))
    assert ttft.drawing.find(".//g[@class='dots s3']") is None
    assert sum(int(row[1]) for row in ttft.tables[0].rows) == 5000


def test_one_sample_is_a_chart_of_one_dot() -> None:
    """Without a line, folding, or a claim about spans."""
    (ttft, e2e) = time_figures("a", told([sample(ttft=0.2)]))
    assert values(ttft.drawing) == [0.2]
    assert (ttft.keys[0].words, ttft.tables, e2e.headline) == ("each request", (), "E2E p99 1.00 s, median 1.00 s")


def test_outlier_makes_the_scale_logarithmic_with_a_note() -> None:
    """Otherwise the usual values would be a line on the floor."""
    (ttft, *_) = time_figures("a", told([*(sample(ttft=0.01) for _ in range(9)), sample(ttft=9.0)]))
    assert "logarithmic" in ttft.what
    (even, *_) = time_figures("a", told([sample(ttft=0.01), sample(ttft=0.1)]))
    assert "on a scale from 0" in even.what


def test_the_warm_up_is_shaded() -> None:
    """The warm-up is drawn, and labelled as outside the figures."""
    run = told([sample(0.0, warmup=True), sample(5.0)], windows=(Window(2.0, 10.0),))
    (ttft, *_) = time_figures("a", run)
    assert len(values(ttft.drawing)) == 2
    assert "ramp and warm-up: not measured" in words(ttft.drawing)
    assert "all in the warm-up" in time_figures("a", told([sample(warmup=True)]))[0].headline


def test_answers_and_goodput_are_those_of_the_summary() -> None:
    """A second, within the window."""
    run = told(steady(400), slo="ttft=150ms")
    answers = time_figures("a", run)[-1]
    total = run.shown.summary.total
    assert (
        answers.headline
        == f"{total.requests_per_second:.1f} answers a second, {total.goodput:.1f} of them within the SLO"
    )
    assert [key.words for key in answers.keys] == ["whole answers", "within the SLO"]


@pytest.mark.parametrize(("place", "name"), [(0, "ttft"), (1, "itl"), (2, "e2e")], ids=["TTFT", "ITL", "E2E"])
def test_a_distribution_marks_the_percentiles_of_the_summary(place: int, name: str) -> None:
    """Median, p90 and p99, exactly."""
    run = told(steady())
    figure = distribution_figures("a", run)[place]
    spread = getattr(run.shown.summary.total, name)
    marks = dict(zip(values(figure.drawing), values(figure.drawing, "data-x"), strict=True))
    assert marks == {50.0: spread.p50, 90.0: spread.p90, 99.0: spread.p99}
    assert seconds(spread.p99) in figure.headline


def test_sweep_shows_distributions_of_its_ends_and_its_knee() -> None:
    """All levels together would say nothing."""
    assert [key.words for key in distribution_figures("a", sweep())[0].keys] == [
        "at 1 user",
        "at 2 users (the knee)",
        "at 4 users",
    ]


def test_direct_and_gateway_are_drawn_apart() -> None:
    """In one chart."""
    kept = [sample(ttft=0.3), sample(ttft=0.2, via="direct")]
    run = told(kept, run=replace(RUN, direct="http://d"))
    figure = distribution_figures("a", run)[0]
    assert figure.headline == "TTFT: median 300 ms through the gateway, 200 ms direct"


def test_gaps_of_nothing_are_told() -> None:
    """A logarithmic axis has no 0."""
    figures = distribution_figures("a", told([sample(gaps=(0, 10_000))]))
    assert "50 % are 0" in figures[1].what


def test_failures_are_counted_by_kind() -> None:
    """As in the summary; without failures there is no chart."""
    figure = fault_figure("a", told([sample(), failed(), failed(error="cut"), failed(error="cut")]))
    assert figure is not None
    assert figure.headline == "3 of 4 requests were not answered (75.0 %): 2 cut, 1 http_500"
    assert figure.tables[0].rows == (("cut", "2"), ("http_500", "1"))
    assert fault_figure("a", told([sample()])) is None


def test_many_failure_kinds_are_cut_in_the_chart_only() -> None:
    """And the chart says so."""
    figure = fault_figure("a", told([failed(error=f"http_{n}") for n in range(500, 512)]))
    assert figure is not None
    assert "and 9 more kinds" in figure.headline
    assert "Only the 8 most frequent kinds" in figure.what
    assert len(figure.tables[0].rows) == 12


def test_keys_have_the_tokens_of_the_summary() -> None:
    """With Jain's index; a single key has no chart."""
    run = told([sample(key=0), sample(key=0), sample(key=0), sample(key=1)])
    figure = key_figure("a", run)
    assert figure is not None
    assert figure.headline == "2 keys, fairness 0.800 (1 is even)"
    assert values(figure.drawing, "data-x") == [each.output_tokens_per_second for each in run.shown.summary.keys]
    assert key_figure("a", told([sample()])) is None


def test_the_gateways_part_is_on_its_interval() -> None:
    """And if the interval holds 0, the chart says that none was found."""
    seen = overhead_figure(
        "a", Overhead(50, Interval(0.0005, 0.0004, 0.0006), None, Interval(0.02, 0.01, 0.03), 0.2, None, 1.5)
    )
    assert seen.headline == "The gateway adds 500 us to TTFT (400 us to 600 us)"
    assert values(seen.drawing, "data-low") == [0.0004, 0.01]
    unseen = overhead_figure("a", Overhead(50, None, None, Interval(0.0001, -0.0002, 0.0003), None, None, 1.5))
    assert unseen.headline == "Gateway overhead in E2E is not measurable: the interval, -200 us to +300 us, contains 0"
    odd = overhead_figure("a", Overhead(50, None, None, Interval(-0.02, -0.03, -0.01), None, None, 1.5))
    assert odd.headline == "E2E was shorter through the gateway (-30.0 ms to -10.0 ms): look for another difference"


def test_only_failures_have_no_latencies() -> None:
    """And no chart that shows any."""
    run: ToldRun = told([failed(), failed()])
    assert (time_figures("a", run), distribution_figures("a", run)) == ([], [])
