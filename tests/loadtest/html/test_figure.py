"""A chart on the page: its words, its axes, and its table."""

from __future__ import annotations

import pytest

from aiaas.loadtest.html import svg
from aiaas.loadtest.html.figure import (
    ChartKey,
    Figure,
    bound_line,
    duration_axis,
    table_element,
    tick_number,
    tick_seconds,
    time_axis,
    time_rows_axis,
    to_element,
    verdict_words,
)
from aiaas.loadtest.sample import Run
from aiaas.loadtest.table import ReportTable
from tests.loadtest.html.runs import RUN, steady, told, words
from tests.loadtest.samples import sample


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (5e-5, "50 us"), (0.001, "1 ms"), (0.3, "300 ms"), (1.0, "1 s"), (2.5, "2.5 s")]
)
def test_ticks_of_durations_are_short(value: float, text: str) -> None:
    """In the unit that fits."""
    assert tick_seconds(value) == text


def test_ticks_of_numbers_are_short() -> None:
    """Thousands apart."""
    assert [tick_number(value) for value in (0, 0.5, 150, 4000)] == ["0", "0.5", "150", "4,000"]


def test_a_long_run_is_shown_in_minutes() -> None:
    """So that the axis stays readable."""
    assert (time_axis(300.0)[0].label, time_axis(300.0)[1]) == ("seconds since the start", 1.0)
    axis, unit = time_axis(3600.0)
    assert (axis.label, axis.high) == ("minutes since the start", pytest.approx(60.0))
    assert axis.at(1800 * unit) == pytest.approx((axis.start + axis.stop) / 2)
    assert all(made(0.0)[0].high > 0 for made in (time_axis, time_rows_axis))
    assert (time_rows_axis(22.0)[0].high, time_rows_axis(3600.0)[1]) == (22.0, unit)


def test_an_slo_is_named_with_its_verdict() -> None:
    """If the SLO has a limit for this latency."""
    run = told([sample(ttft=0.2)], slo="ttft=1s,e2e=500ms")
    assert verdict_words(run, "ttft") == ", SLO 1 s held"
    assert verdict_words(run, "e2e") == ", SLO 500 ms missed"
    assert verdict_words(run, "tpot") == ""


def test_a_bound_is_drawn_where_the_axis_reaches_it() -> None:
    """And not at an edge where it does not belong."""
    run = told([sample(ttft=0.2)], slo="ttft=1s")
    x = svg.across("", [0, 1], str)
    found = bound_line(run, "ttft", x, duration_axis([0.2, 1.0], log=False))
    assert found is not None
    assert (words(found), found.attrib["data-y"]) == ("SLO 1 s", "1.0")
    assert bound_line(run, "ttft", x, duration_axis([0.2, 0.5], log=False)) is None


def test_a_level_is_named_in_words() -> None:
    """By what the run varied."""
    run = told(steady(2))
    assert [run.at(level) for level in (1, 8)] == ["1 user", "8 users"]
    rate = Run(**{name: getattr(RUN, name) for name in RUN.__struct_fields__} | {"loop": "open"})
    assert told(steady(2), run=rate).at(1) == "1 requests/s"


def test_a_figure_has_headline_key_drawing_and_table() -> None:
    """In this order; the key and the table are optional."""
    x, y = svg.across("", [0, 1], str), svg.upward("", [0, 1], str)
    drawing = svg.chart("a", "t", "d", x, y)
    made = to_element(Figure("H", "W", drawing, (ChartKey(1, "one"),), (ReportTable("T", ("", "a"), (("r", "1"),)),)))
    assert [child.tag for child in made] == ["figcaption", "ul", "svg", "details"]
    assert words(made[1]).strip() == "one"
    assert [child.tag for child in to_element(Figure("H", "W", drawing))] == ["figcaption", "svg"]


def test_a_table_has_headers_of_columns_and_rows() -> None:
    """And a caption; a table without headers has rows alone."""
    made = table_element(ReportTable("T", ("", "a"), (("r", "1"),)))
    assert [each.attrib["scope"] for each in made.iter("th")] == ["col", "col", "row"]
    assert words(made) == "Tar1"
    wrapping = table_element(ReportTable("T", ("", "a"), (("r", "a long sentence that may wrap"),)))
    assert wrapping.find(".//td[@class='long']") is not None
    assert table_element(ReportTable("T", ("", ""), (("r", "1"),))).find("table/thead") is None
