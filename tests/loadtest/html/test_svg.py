"""Charts: values stand where the axis says, ticks are round, and each drawing describes itself."""

from __future__ import annotations

from itertools import pairwise
from xml.etree.ElementTree import fromstring, tostring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.loadtest.html import svg
from tests.loadtest.html.runs import values, words

LINEAR = svg.upward("y", [0.0, 100.0], str)
LOG = svg.across("x", [1.0, 100.0], str, log=True)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, (0, 2, 4, 6, 8, 10)),
        (0, 0.412, (0, 0.1, 0.2, 0.3, 0.4, 0.5)),
        (-3, 9, (-5, 0, 5, 10)),
        (0, 0, (0, 0.2)),
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    ],
    ids=["up to ten", "milliseconds", "below zero", "nothing but zero", "one"],
)
def test_linear_ticks_are_round(low: float, high: float, ticks: tuple[float, ...]) -> None:
    """1, 2 or 5 times a power of ten apart."""
    assert svg.linear_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.05, 0.8, (0.05, 0.1, 0.2, 0.5, 1)),
        (0.0501, 0.0509, (0.05, 0.1)),
        (0.001, 5, (0.001, 0.01, 0.1, 1, 10)),
        (1, 1, (1, 2)),
    ],
    ids=["a decade", "hardly apart", "many decades", "a single value"],
)
def test_logarithmic_ticks_are_round(low: float, high: float, ticks: tuple[float, ...]) -> None:
    """1, 2 and 5 times powers of ten, fewer where there are many."""
    assert svg.log_ticks(low, high) == pytest.approx(ticks)


@given(one=st.floats(1e-30, 1e30), other=st.floats(1e-30, 1e30))
def test_linear_ticks_reach_around_the_values_and_are_few(one: float, other: float) -> None:
    """Ascending, for values of any size."""
    low, high = min(one, other), max(one, other)
    for first, ticks in ((0.0, svg.linear_ticks(0.0, high)), (-low, svg.linear_ticks(-low, high))):
        reach(ticks, first, high)


@given(one=st.floats(1e-9, 1e5), other=st.floats(1e-9, 1e5))
def test_logarithmic_ticks_reach_around_the_values_and_are_few(one: float, other: float) -> None:
    """Ascending, from a nanosecond to a day."""
    low, high = min(one, other), max(one, other)
    reach(svg.log_ticks(low, high), low, high)


def reach(ticks: tuple[float, ...], low: float, high: float) -> None:
    """Check the properties of both kinds of ticks."""
    assert 2 <= len(ticks) <= svg.MOST_TICKS + 2  # one more at each end, where values begin between two
    assert all(first < second for first, second in pairwise(ticks))
    assert ticks[0] <= low + (high - low) * 1e-6 + abs(low) * 1e-6
    assert ticks[-1] >= high * (1 - 1e-6)


def test_a_value_stands_where_the_axis_says() -> None:
    """Half of a linear axis is half of the way, a tenth of two decades, too; beyond an end is at that end."""
    assert LINEAR.at(50) == pytest.approx((LINEAR.start + LINEAR.stop) / 2)
    assert LOG.at(10) == pytest.approx((LOG.start + LOG.stop) / 2)
    assert (LOG.at(0.0), LINEAR.at(1000)) == (LOG.start, LINEAR.stop)


def test_an_axis_of_time_ends_with_the_run() -> None:
    """Rather than at the next round number."""
    axis = svg.ending(svg.across("", [0.0, 22.0], str), 22.0)
    assert (axis.high, axis.ticks) == (22.0, (0.0, 5.0, 10.0, 15.0, 20.0))


def test_levels_are_their_own_ticks() -> None:
    """All of few; of many, the highest is among those that are shown."""
    assert svg.stepping("", [1, 2, 4], str, log=True).ticks == (1, 2, 4)
    many = svg.stepping("", list(range(1, 33)), str, log=False).ticks
    assert len(many) <= svg.MOST_STEPS
    assert many[-1] == 32
    assert svg.stepping("", [7], str, log=True).at(7) == pytest.approx((svg.LEFT + svg.WIDTH - svg.RIGHT) / 2)


def test_a_chart_is_xml_with_a_title_and_a_description() -> None:
    """Both are named by the drawing, for screen readers."""
    marks = [svg.line(LOG, LINEAR, [(1, 0.0), (10, 50.0)], 1), svg.dots(LOG, LINEAR, [(10.0, 50.0, "<b>")], 2)]
    drawing = fromstring(tostring(svg.chart("a", "Title & more", "Seconds <it> took", LOG, LINEAR, *marks)))
    assert drawing.attrib["role"] == "img"
    named = {element.attrib["id"]: element.text for element in drawing.iter() if "id" in element.attrib}
    assert named == {"a-title": "Title & more", "a-what": "Seconds <it> took"}
    assert drawing.attrib["aria-labelledby"].split() == list(named)
    assert values(drawing) == [50.0]


def test_words_beside_a_point_stay_inside_the_chart() -> None:
    """To its left where there is room, else to its right."""
    right, left = (svg.label(LOG, LINEAR, at, 50.0, "p50 12.3 ms").attrib for at in (90.0, 1.1))
    assert (right["text-anchor"], left["text-anchor"]) == ("end", "start")
    assert float(right["x"]) < LOG.at(90.0)
    assert float(left["x"]) > LOG.at(1.1)


def test_a_line_has_a_gap_where_nothing_was_measured() -> None:
    """Rather than a line through missing values."""
    path = svg.line(LOG, LINEAR, [(1, 1.0), (2, None), (3, 1.0), (4, 2.0)], 1).attrib["d"]
    assert (path.count("M"), path.count("L")) == (2, 1)


def test_a_band_goes_up_one_side_and_down_the_other() -> None:
    """And is empty without edges."""
    path = svg.band(LOG, LINEAR, [(1, 0, 100), (100, 0, 100)], 1).attrib["d"]
    assert path == f"M66 {svg.TOP:g}L464 {svg.TOP:g}L464 224L66 224Z"
    assert svg.band(LOG, LINEAR, [], 1).attrib["d"] == ""


def test_an_interval_without_an_end_is_an_arrow() -> None:
    """And its data say so."""
    x = svg.rows_across("x", [0.0, 10.0], str)
    assert len(svg.interval(x, 1, 2, 3, 1).findall("g/path")) == 4
    open_ended = svg.interval(x, 1, 2, float("inf"), 1)
    assert open_ended.attrib["data-high"] == "inf"
    assert any("l6 4.5" in path.attrib["d"] for path in open_ended.findall("g/path"))


def test_rows_shorten_a_long_label_and_keep_it_in_the_tooltip() -> None:
    """The figure beside it stays readable."""
    x = svg.rows_across("x", [0.0, 10.0], str)
    drawing = svg.rows("a", "t", "w", x, [("k" * 99, "12 tokens/s", svg.bar(x, 5.0, 1))])
    shown = [text.text or "" for text in drawing.iter("text")]
    assert any(text.endswith("…") and len(text) < 50 for text in shown)
    assert "12 tokens/s" in shown
    assert f"{'k' * 99}: 12 tokens/s" in words(drawing)


def test_the_tallest_column_has_its_full_height() -> None:
    """The others by their share; no column where the value is 0."""
    x = svg.rows_across("x", [0.0, 10.0], str)
    found = svg.columns(x, [(0, 1, 10), (1, 2, 5), (2, 3, 0)], 10, 1)
    assert [rect.attrib["height"] for rect in found] == ["18", "9"]


def test_series_differ_by_shape() -> None:
    """For readers who see no colours."""
    shapes = [svg.dots(LOG, LINEAR, [(1.0, 1.0, "")], n)[0].attrib["d"] for n in range(1, svg.SERIES + 1)]
    assert len(set(shapes)) == svg.SERIES
    assert svg.key(1, dashed=True).find("path[@class='line s1 dashed']") is not None
