"""Charts of one run: latencies and answers over time, distributions, failures, keys, gateway overhead. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element

from aiaas.loadtest.compare import Overhead
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
    time_axis,
    time_rows_axis,
    verdict_words,
)
from aiaas.loadtest.html.series import (
    FEW,
    Bin,
    Distribution,
    bins_over_time,
    distribution,
    faults_over_time,
    latency_counts,
    rates_over_time,
)
from aiaas.loadtest.html.svg import Axis
from aiaas.loadtest.report import LATENCY_TITLES, overhead_table
from aiaas.loadtest.sample import Sample
from aiaas.loadtest.stats import Interval, Spread
from aiaas.loadtest.summary import fairness
from aiaas.loadtest.sweep import knee, still_grows
from aiaas.loadtest.table import ReportTable, number, seconds, share

LABELS: Final = {name: label for name, label, _ in LATENCY_TITLES}
MOST_ERROR_KINDS: Final = 8
MOST_KEYS: Final = 24


def time_figures(name: str, told: ToldRun) -> list[Figure]:
    """Chart TTFT and E2E by when a request was due, and answers by when they ended."""
    found = [_latency_over_time(f"{name}-{latency}-time", told, latency) for latency in ("ttft", "e2e")]
    found.append(_answers_over_time(f"{name}-answers", told))
    return [figure for figure in found if figure is not None]


def _latency_over_time(name: str, told: ToldRun, latency: str) -> Figure | None:
    whole = [sample for sample in told.gateway if sample.ok]
    points = [(sample.due, value) for sample in whole if (value := getattr(sample, latency)) is not None]
    if not points:
        return None
    label = LABELS[latency]
    bins = bins_over_time(points, told.last)
    x, unit = time_axis(told.last)
    each = sorted(value for _, value in points)
    log = each[-1] > MUCH_SPREAD * max(each[len(each) // 2], 1e-9)
    y = duration_axis([*each[:1], each[-1], *_limits(told, latency, each[-1])], log=log)
    full = [each for each in bins if each.p50 is not None]
    marks = [_warmup(told, x, y, unit), *_levels(told, x, y, unit), bound_line(told, latency, x, y)]
    marks += _bin_marks(bins, x, y, unit)
    keys = [ChartKey(1, "median"), ChartKey(2, "p99", dashed=True)] if full else []
    if len(points) <= FEW:
        marks.append(svg.dots(x, y, [(at * unit, v, f"{seconds(v)} at {at:.1f} s") for at, v in points], 3, small=True))
        keys.append(ChartKey(3, "each request", line=False, dot=True))
    what = f"Each request is shown at the time it was due, {_scale(log)}."
    if full:
        usual = round(len(points) / len(bins))
        few = "; with fewer than 100 requests, p99 is the slowest" if usual < 100 else ""
        what += f" All {len(points)} requests are folded into {len(bins)} spans of about {usual} requests{few}."
    return Figure(
        f"{label} {_headline(told, latency, each)}",
        what,
        svg.chart(name, f"{label} over time", _describe_bins(label, full, told), x, y, *marks),
        tuple(keys),
        (_bin_table(label, full),) if full else (),
    )


def _headline(told: ToldRun, latency: str, each: list[float]) -> str:
    if told.shown.summary.levels:
        return f"over time, level after level: {seconds(each[0])} to {seconds(each[-1])}"
    figures: Spread | None = getattr(told.shown.summary.total, latency)
    if figures is None:
        return f"over time: {seconds(each[0])} to {seconds(each[-1])}, all in the warm-up"
    percent = next((bound.percent for bound in told.bounds if bound.name == latency), 99)
    at = seconds(getattr(figures, f"p{percent}"))
    return f"p{percent} {at}, median {seconds(figures.p50)}{verdict_words(told, latency)}"


def _limits(told: ToldRun, latency: str, slowest: float) -> list[float]:
    """Return the SLO's bounds to include in the chart, without those that would flatten everything else."""
    return [bound.limit for bound in told.bounds if bound.name == latency and bound.limit <= 4 * slowest]


def _bin_marks(bins: Sequence[Bin], x: Axis, y: Axis, unit: float) -> list[Element | None]:
    edges = [(each.middle * unit, each.p50, each.p99) for each in bins if each.p50 is not None and each.p99 is not None]
    return [
        svg.band(x, y, edges, 1),
        svg.line(x, y, [(each.middle * unit, each.p99) for each in bins], 2, dashed=True),
        svg.line(x, y, [(each.middle * unit, each.p50) for each in bins], 1),
    ]


def _describe_bins(label: str, full: Sequence[Bin], told: ToldRun) -> str:
    if not full:
        return f"{label} of each request, over {told.last:.1f} seconds."
    medians = [each.p50 for each in full if each.p50 is not None]
    slowest = max(each.slowest for each in full if each.slowest is not None)
    return (
        f"{label} over {told.last:.1f} seconds: the median of a span lies between {seconds(min(medians))} and "
        f"{seconds(max(medians))}, the slowest request took {seconds(slowest)}."
    )


def _bin_table(label: str, full: Sequence[Bin]) -> ReportTable:
    rows = tuple(
        (
            f"{each.start:.1f} to {each.stop:.1f} s",
            str(each.count),
            *(_maybe(v) for v in (each.p50, each.p99, each.slowest)),
        )
        for each in full
    )
    return ReportTable(f"{label} over time", ("due", "requests", "median", "p99", "slowest"), rows)


def _maybe(value: float | None) -> str:
    return "-" if value is None else seconds(value)


def _warmup(told: ToldRun, x: Axis, y: Axis, unit: float) -> Element | None:
    """Shade the time before the first window, which is not measured."""
    end = told.shown.end
    if end is None or not end.windows or end.windows[0].start <= 0:
        return None
    return svg.span(x, y, 0.0, end.windows[0].start * unit, "ramp and warm-up: not measured")


def _levels(told: ToldRun, x: Axis, y: Axis, unit: float) -> list[Element]:
    """Mark where a sweep's levels began; leave out names that would overlap."""
    windows = told.shown.end.windows if told.shown.end is not None and told.shown.summary.levels else ()
    last = -1e9
    marks = []
    for window in windows:
        at = x.at(window.start * unit)
        marks.append(svg.moment(x, y, window.start * unit, f"{window.level:g}" if at - last > 30 else ""))
        last = at if at - last > 30 else last
    return marks


def _answers_over_time(name: str, told: ToldRun) -> Figure | None:
    rates = rates_over_time(told.gateway, told.bounds, told.last)
    if not rates:
        return None
    total = told.shown.summary.total
    x, unit = time_axis(told.last)
    y = svg.upward("answers a second", [each.answers for each in rates], tick_number)
    marks = [_warmup(told, x, y, unit), *_levels(told, x, y, unit)]
    marks.append(svg.line(x, y, [(each.middle * unit, each.answers) for each in rates], 1))
    keys = [ChartKey(1, "whole answers")]
    headline = f"{number(total.requests_per_second)} answers a second"
    if told.shown.summary.levels:
        headline = f"Answers a second, level after level: up to {number(max(each.answers for each in rates))}"
    if total.goodput is not None:
        marks.append(svg.line(x, y, [(each.middle * unit, each.good) for each in rates], 3, dashed=True))
        keys.append(ChartKey(3, "within the SLO", dashed=True))
        if not told.shown.summary.levels:
            headline += f", {number(total.goodput)} of them within the SLO"
    rows = tuple((f"{each.start:.1f} to {each.stop:.1f} s", number(each.answers), number(each.good)) for each in rates)
    described = (
        f"Whole answers a second over {told.last:.1f} seconds, "
        f"between {number(min(each.answers for each in rates))} and {number(max(each.answers for each in rates))}."
    )
    return Figure(
        headline,
        "An answer counts when it is complete, so the rate starts late if answers take long.",
        svg.chart(name, "Answers over time", described, x, y, *marks),
        tuple(keys),
        (ReportTable("Answers a second", ("ended", "answers", "within the SLO"), rows),),
    )


def distribution_figures(name: str, told: ToldRun) -> list[Figure]:
    """Chart TTFT, ITL and E2E: of the run; of the lowest level, the knee and the highest level; or of both ways."""
    groups = _groups(told)
    found = []
    for latency in ("ttft", "itl", "e2e"):
        known = [(words, distribution(latency_counts(samples, latency))) for words, samples in groups]
        figure = distribution_figure(f"{name}-{latency}-share", latency, [(w, d) for w, d in known if d is not None])
        if figure is not None:
            found.append(figure)
    return found


def _groups(told: ToldRun) -> list[tuple[str, Sequence[Sample]]]:
    levels = told.shown.summary.levels
    if levels:
        best = None if still_grows(levels) else knee(levels)
        wanted = {levels[0].level, levels[-1].level} | ({best.level} if best is not None else set())
        return [
            (f"at {told.at(level)}{' (the knee)' if best is not None and level == best.level else ''}", samples)
            for level in sorted(wanted)
            for samples in [[sample for sample in told.gateway if sample.level == level]]
        ]
    if told.shown.run.direct:
        direct = [sample for sample in told.samples if sample.via != "gateway"]
        return [("through the gateway", told.gateway), ("direct", direct)]
    return [("", told.gateway)]


def distribution_figure(name: str, latency: str, known: Sequence[tuple[str, Distribution]]) -> Figure | None:
    """Chart one or more distributions of a latency on a logarithmic axis; None without distributions."""
    if not known:
        return None
    label = LABELS[latency]
    low = min(min((v for v, percent in each.points if v > 0 and percent >= 1), default=1e-6) for _, each in known)
    x = svg.across(f"{label}, log", [low, *(max(each.points[-1][0], low) for _, each in known)], tick_seconds, log=True)
    y = svg.upward("% of all", [100.0], tick_number)
    marks: list[Element | None] = []
    for series, (words, each) in enumerate(known, 1):
        marks.append(svg.line(x, y, each.points, series))
        named = [(v, float(p), f"{words} p{p}: {seconds(v)}".strip()) for p, v in each.named.items()]
        marks.append(svg.dots(x, y, named, series))
        if len(known) == 1:
            marks += [svg.label(x, y, v, float(p), f"p{p} {seconds(v)}") for p, v in each.named.items()]
    first = known[0][1]
    headline = f"{label}: half within {seconds(first.named[50])}, 99 % within {seconds(first.named[99])}"
    if len(known) > 1:
        headline = f"{label}: median " + ", ".join(f"{seconds(each.named[50])} {words}" for words, each in known)
    rows = tuple(
        (words or label, str(each.count), *(seconds(value) for value in each.named.values())) for words, each in known
    )
    described = "; ".join(f"{row[0]}: median {row[2]}, p90 {row[3]}, p99 {row[4]}" for row in rows)
    zeros = max((percent for _, each in known for v, percent in each.points if v <= 0), default=0.0)
    what = "The share of values up to each duration; the marks are the median, p90 and p99."
    what += f" {zeros:.3g} % are 0 (one read returned several events) and are drawn at the left edge." if zeros else ""
    return Figure(
        headline,
        what,
        svg.chart(name, f"Distribution of {label}", described + ".", x, y, *marks),
        tuple(ChartKey(series, words, dot=True) for series, (words, _) in enumerate(known, 1) if words),
        (ReportTable(f"{label} by percentile", ("", "values", "p50", "p90", "p99"), rows),),
    )


def fault_figure(name: str, told: ToldRun) -> Figure | None:
    """Chart failures over time, a row for each kind."""
    total = told.shown.summary.total
    faults = faults_over_time(told.gateway, told.last)
    if not faults:
        return None
    x, unit = time_rows_axis(told.last)
    kinds = list(faults.items())
    tallest = max(count for _, spans in kinds for _, _, count in spans)
    each = []
    for kind, spans in kinds[:MOST_ERROR_KINDS]:
        drawn = [(start * unit, stop * unit, count) for start, stop, count in spans]
        each.append((kind, str(sum(count for *_, count in spans)), svg.columns(x, drawn, tallest, 2)))
    failed = total.errors + total.rate_limited
    named = ", ".join(f"{sum(count for *_, count in spans)} {kind}" for kind, spans in kinds[:3])
    more = f", and {len(kinds) - 3} more kinds" if len(kinds) > 3 else ""
    what = f"A column's height is the number of failures in its hundredth of the run; the tallest column is {tallest}."
    if len(kinds) > MOST_ERROR_KINDS:
        what += f" Only the {MOST_ERROR_KINDS} most frequent kinds are drawn; the table of errors lists all kinds."
    rows = tuple((kind, str(sum(count for *_, count in spans))) for kind, spans in kinds)
    return Figure(
        f"{failed} of {total.requests} requests were not answered ({share(total.error_rate)}): {named}{more}",
        what,
        svg.rows(name, "Failures over time, by kind", f"{named}{more}.", x, each),
        tables=(ReportTable("Failures by kind", ("kind", "count"), rows),),
    )


def key_figure(name: str, told: ToldRun) -> Figure | None:
    """Chart the output of each key."""
    keys = told.shown.summary.keys
    if not keys:
        return None
    shares = [summary.output_tokens_per_second for summary in keys]
    x = svg.rows_across("output tokens a second", shares, tick_number)
    labels = told.shown.run.keys
    each = [
        (labels[place] if place < len(labels) else str(place), f"{number(value)} tokens/s", svg.bar(x, value, 1))
        for place, value in enumerate(shares)
    ]
    index = fairness(shares)
    what = "Jain's index is 1 if all keys got the same output, and 1/n if one of n keys got everything."
    if len(each) > MOST_KEYS:
        what += f" Only the first {MOST_KEYS} of {len(each)} keys are drawn; the table lists all keys."
    described = "; ".join(f"{label}: {figure}" for label, figure, _ in each[:MOST_KEYS])
    return Figure(
        f"{len(keys)} keys, fairness {index:.3f} (1 is even)",
        what,
        svg.rows(name, "Output by key", f"{described}.", x, each[:MOST_KEYS]),
    )


def overhead_figure(name: str, found: Overhead) -> Figure:
    """Chart the latency that the gateway adds, with its interval."""
    known: list[tuple[str, Interval]] = [
        (label, each)
        for label, each in (("TTFT", found.ttft), ("each event", found.event), ("E2E", found.e2e))
        if each is not None
    ]
    ends = [end for _, each in known for end in (each.low, each.high)]
    x = svg.rows_across("gateway minus direct", ends, tick_seconds)
    rows = [
        (label, f"{_signed(each.estimate)} ({_signed(each.low)} to {_signed(each.high)})", _on_zero(x, each))
        for label, each in known
    ]
    label, first = known[0]
    within = f"{_signed(first.low)} to {_signed(first.high)}"
    headline = f"Gateway overhead in {label} is not measurable: the interval, {within}, contains 0"
    if first.low > 0:
        headline = (
            f"The gateway adds {seconds(first.estimate)} to {label} ({seconds(first.low)} to {seconds(first.high)})"
        )
    elif first.high < 0:
        headline = f"{label} was shorter through the gateway ({within}): look for another difference"
    return Figure(
        headline,
        f"Median difference of {found.pairs} pairs, each with one request per way, with its 95 % interval.",
        svg.rows(name, "Gateway overhead", "; ".join(f"{row[0]}: {row[1]}" for row in rows) + ".", x, rows),
        tables=(overhead_table(found),),
    )


def _signed(value: float) -> str:
    return f"{value * 1e6:+.0f} us" if abs(value) < 0.01 else f"{value * 1000:+.1f} ms"


def _on_zero(x: Axis, each: Interval) -> Element:
    return svg.interval(x, each.low, each.estimate, each.high, 1)


def _scale(log: bool) -> str:
    return "on a logarithmic scale, because the slowest is far from the median" if log else "on a scale from 0"
