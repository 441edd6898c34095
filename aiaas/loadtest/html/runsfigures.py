"""Charts that compare several runs with the first. Pure.

Only TTFT, TPOT and E2E have intervals, since they have one value per request. The gaps within a stream depend on each
other, so an interval of pooled gaps would be far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiaas.loadtest.html import svg
from aiaas.loadtest.html.figure import Figure, ToldRun, tick_number, tick_seconds
from aiaas.loadtest.html.runfigures import LABELS, distribution_figure
from aiaas.loadtest.html.series import distribution, latency_counts
from aiaas.loadtest.stats import Interval, percentile_interval
from aiaas.loadtest.table import ReportTable, number, seconds

MOST_RUNS: Final = svg.SERIES  # runs that a reader can distinguish in one chart
Named = tuple[str, Interval]


def runs_figures(runs: Sequence[ToldRun]) -> list[Figure]:
    """Return charts of latencies with intervals, of rates, and of distributions; an empty list for a single run."""
    if len(runs) < 2:
        return []
    found = [
        _intervals(f"runs-{latency}-p{percent}", runs, latency, percent)
        for latency in ("ttft", "tpot", "e2e")
        for percent in (50, 99)
    ]
    found.append(_rates("runs-rates", runs))
    for latency in ("ttft", "itl", "e2e"):
        known = [
            (f"in {told.shown.name}", distribution(latency_counts(told.gateway, latency))) for told in runs[:MOST_RUNS]
        ]
        drawn = [(name, each) for name, each in known if each is not None]
        found.append(distribution_figure(f"runs-{latency}-share", latency, drawn))
    return [figure for figure in found if figure is not None]


def _intervals(name: str, runs: Sequence[ToldRun], latency: str, percent: int) -> Figure | None:
    known: list[Named] = []
    for told in runs:
        ordered = sorted(latency_counts(told.gateway, latency).elements())
        if ordered:
            known.append((told.shown.name, percentile_interval(ordered, percent)))
    if not known:
        return None
    what = f"{LABELS[latency]} p{percent}"
    ends = [end for _, each in known for end in (each.estimate, each.low, each.high) if end < float("inf")]
    x = svg.rows_across(what, [*ends, max(ends) * 1.02], tick_seconds)
    each = [
        (run, _words(found), svg.interval(x, found.low, found.estimate, found.high, 1 + place % svg.SERIES))
        for place, (run, found) in enumerate(known)
    ]
    open_end = any(it.high == float("inf") for _, it in known)
    rows = tuple(
        (run, seconds(it.estimate), seconds(it.low), "?" if it.high == float("inf") else seconds(it.high))
        for run, it in known
    )
    return Figure(
        _compared(known, what),
        "With 95 % intervals from the order of the values, assuming that requests are independent of each other"
        + ("; an arrow means that there are too few values for an upper end." if open_end else "."),
        svg.rows(name, f"{what} of each run", "; ".join(f"{row[0]}: {row[1]}" for row in each) + ".", x, each),
        tables=(ReportTable(what, ("run", what, "from", "to"), rows),),
    )


def _compared(known: Sequence[Named], what: str) -> str:
    """Compare the last run with the first, in words."""
    (first_name, first), (last_name, last) = known[0], known[-1]
    if len(known) < 2:
        return f"{what}: only {first_name} has values"
    change = f"{seconds(first.estimate)} in {first_name}, {seconds(last.estimate)} in {last_name}"
    if last.low <= first.high and first.low <= last.high:
        return f"{what}: {change}; the intervals overlap, so no difference is shown"
    share = (last.estimate / first.estimate - 1) * 100 if first.estimate else 0.0
    return f"{what}: {change} ({share:+.0f} %)"


def _words(found: Interval) -> str:
    if found.high == float("inf"):
        return f"{seconds(found.estimate)} ({seconds(found.low)} or more)"
    return f"{seconds(found.estimate)} ({seconds(found.low)} to {seconds(found.high)})"


def _rates(name: str, runs: Sequence[ToldRun]) -> Figure:
    found = [(told.shown.name, told.shown.summary.total.output_tokens_per_second) for told in runs]
    x = svg.rows_across("output tokens a second", [value for _, value in found], tick_number)
    each = [
        (run, f"{number(value)} tokens/s", svg.bar(x, value, 1 + place % svg.SERIES))
        for place, (run, value) in enumerate(found)
    ]
    (first_name, first), (last_name, last) = found[0], found[-1]
    return Figure(
        f"Output: {number(first)} tokens/s in {first_name}, {number(last)} in {last_name}",
        "Output tokens a second in the measured window.",
        svg.rows(name, "Output of each run", "; ".join(f"{row[0]}: {row[1]}" for row in each) + ".", x, each),
    )
