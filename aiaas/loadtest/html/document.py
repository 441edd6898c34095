"""Write one or more runs as a self-contained HTML page: the order of its parts, and the notes on methods. Pure.

The page has no script and loads nothing from the network (its own Content-Security-Policy forbids both). The same runs
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element

from aiaas import __version__
from aiaas.loadtest.html.figure import Figure, ToldRun, table_element, to_element
from aiaas.loadtest.html.markup import tag, to_html
from aiaas.loadtest.html.runfigures import (
    distribution_figures,
    fault_figure,
    key_figure,
    overhead_figure,
    time_figures,
)
from aiaas.loadtest.html.runsfigures import runs_figures
from aiaas.loadtest.html.style import STYLE
from aiaas.loadtest.html.sweepfigures import sweep_figures
from aiaas.loadtest.report import Shown, compare_table, holds, remarks, tables
from aiaas.loadtest.summary import Summary
from aiaas.loadtest.sweep import knee, still_grows
from aiaas.loadtest.table import ReportTable, number, seconds, share

CONTENT_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
HOW: Final = (
    "Times are measured when the socket delivers the bytes, before anything is parsed, and count from when a request "
    "was due, so a stalled server cannot hide.",
    "TTFT is the time to the first output event, ITL each gap between two output events, E2E the time to the complete "
    "answer, TPOT (E2E - TTFT) / (output tokens - 1). Latencies are those of complete answers that were due after the "
    "warm-up.",
    "Percentiles are by nearest rank: always measured values, never interpolated. With fewer than 100 values p99 is "
    "the slowest value.",
    "Rates count answers that ended and tokens that arrived in the measured window. 429s are counted separately from "
    "errors; the error rate includes both.",
    "Charts include every request: many requests are folded into spans of time or into percentiles, a few are drawn "
    "one by one.",
)


def page(runs: Sequence[ToldRun]) -> str:
    """Return the HTML of one or more runs."""
    title = "Load test" if len(runs) == 1 else "Load tests side by side"
    names = ", ".join(told.shown.name for told in runs)
    body = [
        tag("header", tag("h1", f"{title}: {names}"), tag("p", _verdict(runs), class_="verdict"), _links(runs)),
        tag("main", _compared(runs), *(_run(place, told, alone=len(runs) == 1) for place, told in enumerate(runs))),
        tag(
            "footer",
            tag("h2", "How it was measured"),
            tag("ul", *(tag("li", words) for words in HOW)),
            tag("p", f"Written by aiaas {__version__} from the samples of the runs."),
        ),
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=CONTENT_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title}: {names}"),
        tag("style", STYLE),
    )
    return to_html(tag("html", head, tag("body", *body), lang="en"))


def _verdict(runs: Sequence[ToldRun]) -> str:
    bounded = [told for told in runs if told.bounds]
    if not bounded:
        return "No SLO was set."
    missed = [told.shown.name for told in bounded if not holds(told.shown.summary)]
    levels = runs[0].shown.summary.levels
    if len(runs) == 1 and levels:
        best = knee(levels)
        if best is None:
            return "Every level missed the SLO."
        where = "up to the highest level" if still_grows(levels) else "at the knee"
        return f"The SLO holds {where}, {runs[0].at(best.level)}."
    if not missed:
        return "The run met its SLO." if len(runs) == 1 else "Every run with an SLO met it."
    return "The run missed its SLO." if len(runs) == 1 else f"The SLO was missed by {', '.join(missed)}."


def _links(runs: Sequence[ToldRun]) -> Element | None:
    """Return links to each run, if the page has several."""
    if len(runs) == 1:
        return None
    links = [tag("li", tag("a", told.shown.name, href=f"#run{place}")) for place, told in enumerate(runs)]
    return tag("nav", tag("ul", *links, class_="keys"), aria_label="Runs")


def _compared(runs: Sequence[ToldRun]) -> Element | None:
    figures = runs_figures(runs)
    if not figures:
        return None
    table = table_element(compare_table([told.shown for told in runs]))
    return tag("section", tag("h2", "Side by side"), table, _grid(figures))


def _run(place: int, told: ToldRun, *, alone: bool) -> Element:
    name, shown = f"run{place}", told.shown
    figures = [*sweep_figures(name, told), *time_figures(name, told), *distribution_figures(name, told)]
    figures += [
        figure
        for figure in (fault_figure(f"{name}-failed", told), key_figure(f"{name}-keys", told))
        if figure is not None
    ]
    if shown.overhead is not None:
        figures.insert(0, overhead_figure(f"{name}-overhead", shown.overhead))
    notes = [tag("li", words) for words in remarks(shown)]
    return tag(
        "section",
        tag("h2", "The run" if alone else shown.name),
        tag("p", _one_line(shown), class_="about"),
        tag("p", _where(told)) if shown.summary.levels else None,
        _tiles(shown),
        tag("ul", *notes, class_="notes", role="note", aria_label="Notes") if notes else None,
        _grid(figures) if figures else tag("p", "The run has no data for a chart."),
        tag("h3", "Tables"),
        tag("div", *map(table_element, [*tables(shown), _about(shown)]), class_="tables"),
        id=name,
    )


def _grid(figures: Sequence[Figure]) -> Element:
    return tag("div", *map(to_element, figures), class_="figures")


def _one_line(shown: Shown) -> str:
    run = shown.run
    direct = f", compared with {run.direct}" if run.direct else ""
    return f"{run.model} at {run.url}{direct}, {run.loop} loop, {run.started}"


def _tiles(shown: Shown) -> Element:
    """Return the main figures; for a sweep those of its knee, or of its first level without a knee."""
    levels = shown.summary.levels
    best = knee(levels)
    summary = shown.summary.total if not levels else best or levels[0]
    tiles = [tag("div", tag("dt", label), tag("dd", figure)) for label, figure in _tile_figures(summary)]
    return tag("dl", *tiles, class_="tiles")


def _where(told: ToldRun) -> str:
    levels = told.shown.summary.levels
    best = knee(levels)
    if best is None:
        return f"There is no knee; at the first level, {told.at(levels[0].level)}:"
    if still_grows(levels):
        return f"At the highest level, {told.at(best.level)}; there is no knee up to there:"
    return f"At the knee, {told.at(best.level)}:"


def _tile_figures(summary: Summary) -> list[tuple[str, str]]:
    found = []
    for label, figures in (("TTFT", summary.ttft), ("E2E", summary.e2e)):
        if figures is not None:
            found += [(f"{label} p50", seconds(figures.p50)), (f"{label} p99", seconds(figures.p99))]
    found += [
        ("answers/s", number(summary.requests_per_second)),
        ("output tokens/s", number(summary.output_tokens_per_second)),
    ]
    if summary.goodput is not None:
        found.append(("goodput/s", number(summary.goodput)))
    return [*found, ("not answered", share(summary.error_rate))]


def _about(shown: Shown) -> ReportTable:
    """Return the run's settings, enough to repeat it."""
    run = shown.run
    rows = [
        ("started", run.started),
        ("URL", run.url),
        ("direct URL", run.direct),
        ("model", run.model),
        ("loop", run.loop),
        ("keys", ", ".join(run.keys)),
        ("SLO", run.slo),
        *((f"--{name.replace('_', '-')}", value) for name, value in run.options.items()),
        *((f"load generator: {name}", value) for name, value in run.machine.items()),
        ("aiaas", run.version),
    ]
    if shown.end is not None:
        generator = shown.end.generator
        rows.append(("load generator: share of one core", share(generator.cpu_share)))
        rows.append(("load generator: event loop lateness (p99)", seconds(generator.lag_p99)))
    return ReportTable("The run", ("", ""), tuple((name, value) for name, value in rows if value))
