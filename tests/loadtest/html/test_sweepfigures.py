"""The charts of a sweep: each level's figures are those of its summary, and the knee is that of the table."""

from __future__ import annotations

from aiaas.loadtest.html.sweepfigures import sweep_figures
from aiaas.loadtest.sample import Window
from tests.loadtest.html.runs import steady, sweep, told, values, words
from tests.loadtest.samples import sample


def test_a_sweep_is_charted_level_by_level() -> None:
    """Output, TTFT, E2E and goodput, in words and in figures."""
    run = sweep()
    levels = run.shown.summary.levels
    output, ttft, e2e, goodput = sweep_figures("a", run)
    assert output.headline == "The knee is at 2 users: 190 output tokens/s"
    assert values(output.drawing) == [each.output_tokens_per_second for each in levels]
    assert ttft.headline == "TTFT p99 stays within 500 ms up to 2 users"
    assert values(ttft.drawing)[1:] == [each.ttft.p50 for each in levels if each.ttft] + [
        each.ttft.p99 for each in levels if each.ttft
    ]
    assert e2e.headline == "E2E p99 900 ms at 1 user, 900 ms at 4"
    assert goodput.headline == "Goodput is highest at 1 user: 1.00 answers/s within the SLO"
    assert values(goodput.drawing) == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_the_knee_is_marked_in_each_chart() -> None:
    """At the level that the table names."""
    for figure in sweep_figures("a", sweep()):
        marked = [mark for mark in figure.drawing.iter("g") if words(mark) == "knee"]
        assert [mark.attrib["data-x"] for mark in marked] == ["2.0"]


def test_an_slo_that_no_level_holds_is_said() -> None:
    """Without a knee, none is drawn."""
    output, ttft, *_ = sweep_figures("a", sweep("ttft=10ms"))
    assert output.headline == "There is no knee: the first of 3 levels failed or missed the SLO"
    assert ttft.headline == "TTFT p99 is above the SLO of 10 ms at every level"
    assert "knee" not in words(output.drawing)


def test_output_that_still_grows_has_no_knee() -> None:
    """None is drawn, since it lies beyond the last level."""
    kept = [sample(float(at), e2e=0.9, output_tokens=100 * level, level=level) for at, level in enumerate((1, 2))]
    output, *_ = sweep_figures("a", told(kept, windows=(Window(0.0, 1.0, 1), Window(1.0, 2.0, 2))))
    assert output.headline == "No knee up to 2 users: 200 output tokens/s, and still growing"
    assert "knee" not in words(output.drawing)


def test_goodput_needs_an_slo() -> None:
    """Without one every answer is good."""
    assert len(sweep_figures("a", sweep(""))) == 3


def test_a_run_without_levels_has_no_such_charts() -> None:
    """Its load did not vary."""
    assert sweep_figures("a", told(steady(5))) == []
