"""Several runs side by side: intervals, and a difference only where there is one."""

from __future__ import annotations

from aiaas.loadtest.html.runsfigures import MOST_RUNS, runs_figures
from tests.loadtest.html.runs import steady, told, values
from tests.loadtest.samples import failed, sample


def test_runs_that_differ_are_said_to() -> None:
    """Each run's percentile is that of its summary, on its interval."""
    slower = [sample(n / 20, ttft=0.3 + n / 4000, e2e=1.0) for n in range(200)]
    runs = [told(steady(), name="a"), told(slower, name="b")]
    figure = runs_figures(runs)[0]
    assert figure.headline == "TTFT p50: 149 ms in a, 325 ms in b (+117 %)"
    medians = [run.shown.summary.total.ttft.p50 for run in runs if run.shown.summary.total.ttft]
    assert values(figure.drawing, "data-x") == medians
    ends = zip(values(figure.drawing, "data-low"), medians, values(figure.drawing, "data-high"), strict=True)
    assert all(low < middle < high for low, middle, high in ends)


def test_runs_that_overlap_show_no_difference() -> None:
    """Whatever their medians are."""
    runs = [told(steady(40), name="a"), told(steady(44), name="b")]
    assert "the intervals overlap, so no difference is shown" in runs_figures(runs)[0].headline


def test_an_interval_that_has_no_end_says_so() -> None:
    """200 values are too few to bound a p99 from above."""
    p99 = runs_figures([told(steady(), name="a"), told(steady(), name="b")])[1]
    assert "or more" in (p99.drawing.find("desc").text or "")  # type: ignore[union-attr]
    assert values(p99.drawing, "data-high") == [float("inf")] * 2
    assert "an arrow means that there are too few values" in p99.what
    assert p99.tables[0].rows[0][-1] == "?"


def test_output_is_compared_too() -> None:
    """In tokens a second."""
    (rates,) = [
        figure for figure in runs_figures([told(steady(), name="a"), told([], name="b")]) if "Output" in figure.headline
    ]
    assert rates.headline == "Output: 212 tokens/s in a, 0.00 in b"


def test_a_run_without_answers_is_left_out_of_the_latencies() -> None:
    """And the other run stands alone."""
    found = runs_figures([told(steady(), name="a"), told([failed()], name="b")])
    assert found[0].headline == "TTFT p50: only a has values"


def test_many_runs_all_have_rows_and_the_first_have_curves() -> None:
    """Rows have room for any number."""
    found = runs_figures([told(steady(), name=f"r{n}") for n in range(MOST_RUNS + 2)])
    assert len(values(found[0].drawing, "data-x")) == MOST_RUNS + 2
    assert [len(figure.keys) for figure in found if figure.keys] == [MOST_RUNS] * 3


def test_one_run_is_compared_with_nothing() -> None:
    """Without a chart."""
    assert runs_figures([told(steady())]) == []
