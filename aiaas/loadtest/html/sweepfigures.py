"""Charts of a sweep by level: output with the knee, latencies, goodput. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from xml.etree.ElementTree import Element

from aiaas.loadtest.html import svg
from aiaas.loadtest.html.figure import (
    MUCH_SPREAD,
    ChartKey,
    Figure,
    ToldRun,
    bound_line,
    duration_axis,
    tick_number,
    tick_seconds,
)
from aiaas.loadtest.html.svg import Axis
from aiaas.loadtest.report import level_table
from aiaas.loadtest.stats import Spread
from aiaas.loadtest.summary import Summary
from aiaas.loadtest.sweep import knee, still_grows
from aiaas.loadtest.table import number, seconds

WIDE: Final = 8.0  # the highest level divided by the lowest; from here on the axis is logarithmic


def sweep_figures(name: str, told: ToldRun) -> list[Figure]:
    """Chart output, TTFT, E2E and goodput against load; an empty list without levels."""
    levels = told.shown.summary.levels
    if not levels:
        return []
    found = [
        _output(f"{name}-output", told, levels),
        _latency(f"{name}-ttft-load", told, levels, "ttft", "TTFT"),
        _latency(f"{name}-e2e-load", told, levels, "e2e", "E2E"),
        _goodput(f"{name}-goodput", told, levels),
    ]
    return [figure for figure in found if figure is not None]


def _x(told: ToldRun, levels: Sequence[Summary]) -> Axis:
    values = [summary.level for summary in levels]
    log = min(values) > 0 and max(values) / min(values) >= WIDE
    return svg.stepping(f"{told.load}, log" if log else told.load, values, tick_number, log=log)


def _output(name: str, told: ToldRun, levels: Sequence[Summary]) -> Figure:
    tokens = any(summary.output_tokens_per_second for summary in levels)
    words = "output tokens/s" if tokens else "answers/s"

    def read(summary: Summary) -> float:
        return summary.output_tokens_per_second if tokens else summary.requests_per_second

    x = _x(told, levels)
    y = svg.upward(words, map(read, levels), tick_number)
    best = knee(levels)
    headline = f"There is no knee: the first of {len(levels)} levels failed or missed the SLO"
    if still_grows(levels):
        last = levels[-1]
        headline = f"No knee up to {told.at(last.level)}: {number(read(last))} {words}, and still growing"
    elif best is not None:
        headline = f"The knee is at {told.at(best.level)}: {number(read(best))} {words}"
    marks = [*_knee(levels, x, y), *_series(x, y, levels, read, words, told, 1)]
    return Figure(
        headline,
        "Up to the knee, output grows at least half as much as load, and the SLO holds; beyond it, requests wait.",
        svg.chart(name, "Output against load", _describe(levels, read, number, told, words), x, y, *marks),
        (ChartKey(1, words, dot=True),),
        (level_table(told.shown.run, levels),),
    )


def _latency(name: str, told: ToldRun, levels: Sequence[Summary], latency: str, label: str) -> Figure | None:
    known: list[tuple[Summary, Spread]] = [
        (summary, figures) for summary in levels if (figures := getattr(summary, latency)) is not None
    ]
    if not known:
        return None
    x = _x(told, levels)
    limits = [bound.limit for bound in told.bounds if bound.name == latency]
    top, bottom = max(each.p99 for _, each in known), min(each.p50 for _, each in known)
    y = duration_axis([bottom, top, *(each for each in limits if each <= 4 * top)], log=top > MUCH_SPREAD * bottom)
    marks: list[Element | None] = [*_knee(levels, x, y), bound_line(told, latency, x, y)]
    keys = []
    for series, percent in ((1, "p50"), (2, "p99")):
        points = [(summary.level, getattr(each, percent)) for summary, each in known]
        named = [(at, value, f"{percent} at {told.at(at)}: {seconds(value)}") for at, value in points]
        marks += [svg.line(x, y, points, series, dashed=series > 1), svg.dots(x, y, named, series)]
        keys.append(ChartKey(series, percent, dashed=series > 1, dot=True))
    described = "; ".join(
        f"{told.at(summary.level)}: p50 {seconds(each.p50)}, p99 {seconds(each.p99)}" for summary, each in known
    )
    return Figure(
        _latency_headline(told, known, limits, label, latency),
        f"{label} by level, {'on a logarithmic scale' if y.log else 'on a scale from 0'}.",
        svg.chart(name, f"{label} against load", f"{described}.", x, y, *marks),
        tuple(keys),
    )


def _latency_headline(
    told: ToldRun, known: Sequence[tuple[Summary, Spread]], limits: Sequence[float], label: str, latency: str
) -> str:
    if not limits:
        (low, first), (high, last) = known[0], known[-1]
        return f"{label} p99 {seconds(first.p99)} at {told.at(low.level)}, {seconds(last.p99)} at {high.level:g}"
    percent = next(bound.percent for bound in told.bounds if bound.name == latency)
    held = None
    for summary, each in known:
        if getattr(each, f"p{percent}") > limits[0]:
            break
        held = summary.level
    if held is None:
        return f"{label} p{percent} is above the SLO of {tick_seconds(limits[0])} at every level"
    return f"{label} p{percent} stays within {tick_seconds(limits[0])} up to {told.at(held)}"


def _goodput(name: str, told: ToldRun, levels: Sequence[Summary]) -> Figure | None:
    if not told.bounds:
        return None

    def good(summary: Summary) -> float:
        return summary.goodput or 0.0

    def answers(summary: Summary) -> float:
        return summary.requests_per_second

    x = _x(told, levels)
    y = svg.upward("answers/s", map(answers, levels), tick_number)
    most = max(levels, key=good)
    marks = [
        *_knee(levels, x, y),
        *_series(x, y, levels, answers, "answers/s", told, 1),
        *_series(x, y, levels, good, "answers/s within the SLO", told, 3, dashed=True),
    ]
    headline = "No answer met the SLO at any level"
    if good(most):
        headline = f"Goodput is highest at {told.at(most.level)}: {number(good(most))} answers/s within the SLO"
    return Figure(
        headline,
        "Where the lines diverge, answers come too late to meet the SLO.",
        svg.chart(name, "Goodput against load", _describe(levels, good, number, told, "within the SLO"), x, y, *marks),
        (ChartKey(1, "whole answers", dot=True), ChartKey(3, "within the SLO", dashed=True, dot=True)),
    )


def _series(
    x: Axis,
    y: Axis,
    levels: Sequence[Summary],
    read: Callable[[Summary], float],
    words: str,
    told: ToldRun,
    series: int,
    *,
    dashed: bool = False,
) -> list[Element]:
    points = [(summary.level, read(summary)) for summary in levels]
    named = [(at, value, f"{number(value)} {words} at {told.at(at)}") for at, value in points]
    return [svg.line(x, y, points, series, dashed=dashed), svg.dots(x, y, named, series)]


def _knee(levels: Sequence[Summary], x: Axis, y: Axis) -> list[Element]:
    best = knee(levels)
    return [] if best is None or still_grows(levels) else [svg.moment(x, y, best.level, "knee")]


def _describe(
    levels: Sequence[Summary],
    read: Callable[[Summary], float],
    write: Callable[[float], str],
    told: ToldRun,
    words: str,
) -> str:
    return "; ".join(f"{told.at(summary.level)}: {write(read(summary))} {words}" for summary in levels) + "."
