"""A chart on the page: a headline in plain words, the drawing, a legend, and the same figures as a table. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

from aiaas.loadtest.html import svg
from aiaas.loadtest.html.markup import tag
from aiaas.loadtest.html.svg import Axis
from aiaas.loadtest.report import Shown
from aiaas.loadtest.sample import Sample
from aiaas.loadtest.slo import Bound
from aiaas.loadtest.table import ReportTable

MINUTES_FROM: Final = 300.0  # seconds; a longer run is shown in minutes
LONG: Final = 28  # characters of a cell; longer cells are sentences, not figures
MUCH_SPREAD: Final = 20.0  # the slowest divided by the median; beyond it a linear axis would flatten usual values


@dataclass(frozen=True, slots=True)
class ToldRun:
    """A run for the page: the data of its tables, and every sample."""

    shown: Shown
    samples: tuple[Sample, ...]

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """The bounds of the run's SLO."""
        return tuple(verdict.bound for verdict in self.shown.summary.total.verdicts)

    @property
    def gateway(self) -> tuple[Sample, ...]:
        """The samples through the gateway, without those of the direct comparison."""
        return tuple(sample for sample in self.samples if sample.via == "gateway")

    @property
    def last(self) -> float:
        """When the last sample ended, in seconds since the run's start."""
        return max((sample.end for sample in self.samples), default=0.0)

    @property
    def load(self) -> str:
        """The unit of a level."""
        return "users" if self.shown.run.loop == "closed" else "requests/s"

    def at(self, level: float) -> str:
        """Write a level in words: `1 user`."""
        return "1 user" if level == 1 and self.load == "users" else f"{level:g} {self.load}"


@dataclass(frozen=True, slots=True)
class ChartKey:
    """A series in a chart's legend."""

    series: int
    words: str
    dashed: bool = False
    line: bool = True
    dot: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """headline: the chart's result; what: how to read the chart; tables: the same figures as text."""

    headline: str
    what: str
    drawing: Element
    keys: tuple[ChartKey, ...] = ()
    tables: tuple[ReportTable, ...] = ()


def to_element(figure: Figure) -> Element:
    """Return the figure as HTML."""
    keys = [
        tag("li", svg.key(key.series, dashed=key.dashed, line_too=key.line, dot_too=key.dot), f" {key.words}")
        for key in figure.keys
    ]
    return tag(
        "figure",
        tag("figcaption", tag("h3", figure.headline), tag("p", figure.what)),
        tag("ul", *keys, class_="keys") if keys else None,
        figure.drawing,
        tag("details", tag("summary", "The figures"), *map(table_element, figure.tables)) if figure.tables else None,
    )


def table_element(table: ReportTable) -> Element:
    """Return a table in its own box, which scrolls if a phone is too narrow for the table."""
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in table.headers)))
    body = [tag("tr", tag("th", cells[0], scope="row"), *map(_cell, cells[1:])) for cells in table.rows]
    made = tag("table", tag("caption", table.title), head if any(table.headers) else None, tag("tbody", *body))
    return tag("div", made, class_="table", tabindex="0", role="region", aria_label=table.title)


def _cell(words: str) -> Element:
    """Return a cell; figures stay on one line, sentences may wrap."""
    return tag("td", words, class_="long" if len(words) > LONG else None)


def time_axis(end: float) -> tuple[Axis, float]:
    """Return the axis of a run's time, and the length of a second in its unit."""
    unit, words = _time_unit(end)
    axis = svg.across(words, [0.0, end * unit], lambda value: f"{value:g}")
    return (svg.ending(axis, end * unit) if end > 0 else axis), unit


def time_rows_axis(end: float) -> tuple[Axis, float]:
    """Return the time axis of a chart in rows, and the length of a second in its unit."""
    unit, words = _time_unit(end)
    axis = svg.rows_across(words, [0.0, end * unit], lambda value: f"{value:g}")
    return (svg.ending(axis, end * unit) if end > 0 else axis), unit


def _time_unit(end: float) -> tuple[float, str]:
    unit, name = (1 / 60, "minutes") if end > MINUTES_FROM else (1.0, "seconds")
    return unit, f"{name} since the start"


def duration_axis(values: Iterable[float], *, log: bool) -> Axis:
    """Return a y axis of durations."""
    return svg.upward("log" if log else "", values, tick_seconds, log=log)


def tick_seconds(value: float) -> str:
    """Write a round duration at a tick: `50 ms`, `2 s`."""
    if value == 0:
        return "0"
    if abs(value) < 0.0009999:
        return f"{value * 1e6:.6g} us"
    return f"{value * 1000:.6g} ms" if abs(value) < 0.9999 else f"{value:.6g} s"


def tick_number(value: float) -> str:
    """Write a round number at a tick."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def verdict_words(told: ToldRun, name: str) -> str:
    """Return `, SLO 1 s held` if the SLO bounds this latency, otherwise ""."""
    for verdict in told.shown.summary.total.verdicts:
        if verdict.bound.name == name:
            return f", SLO {tick_seconds(verdict.bound.limit)} {'held' if verdict.held else 'missed'}"
    return ""


def bound_line(told: ToldRun, name: str, x: Axis, y: Axis) -> Element | None:
    """Draw the SLO's bound on this latency, if the SLO has one and it lies within the y axis."""
    for bound in told.bounds:
        if bound.name == name and y.low <= bound.limit <= y.high:
            return svg.level(x, y, bound.limit, f"SLO {tick_seconds(bound.limit)}")
    return None
