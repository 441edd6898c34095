"""Show a fairness test: its tables and its caveats. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas.loadtest.fairness import MOST_OF_SHARE, FairnessReport, KeyFigures, part_of_share
from aiaas.loadtest.sample import Generator
from aiaas.loadtest.summary import bottleneck
from aiaas.loadtest.table import ReportTable, number, seconds, share

MANY_LIMITED: Final = 0.1  # share of the flood's requests
ROOM: Final = 2.0  # times the light key's TTFT alone; a flood with a longer TTFT had to wait

_HEADERS: Final = (
    *("", "TTFT p50", "p95", "p99", "max"),
    *("requests", "answered", "429", "503", "errors", "unfinished", "tokens/s"),
)


def fairness_tables(report: FairnessReport) -> list[ReportTable]:
    """Return the tables of one test: the figures, the refusals by key, the verdict."""
    parts = (
        ("light, alone", report.light_alone),
        ("light, beside", report.light_beside),
        ("heavy, alone", report.heavy_alone),
        ("heavy, beside", report.heavy_beside),
    )
    rows = [_row(name, figures) for name, figures in parts if figures is not None]
    if report.light_beside is not None and report.heavy_beside is not None:
        total = report.light_beside.tokens_per_second + report.heavy_beside.tokens_per_second
        rows.append(("both, beside", *("" for _ in _HEADERS[2:]), number(total)))
    found = [ReportTable(f"Fairness: {report.load}", _HEADERS, tuple(rows))]
    if report.refusals:
        refused = tuple((one.key, str(one.limited), str(one.overloaded)) for one in report.refusals)
        found.append(ReportTable("Refused in the whole test", ("key", "429", "503"), refused))
    if report.checks:
        checks = tuple(
            (check.name, check.expected, check.seen, "held" if check.held else "missed") for check in report.checks
        )
        title = f"Verdict: {'fair' if report.fair else 'not fair'}"
        found.append(ReportTable(title, ("", "expected", "seen", ""), checks))
    return found


def _row(name: str, figures: KeyFigures) -> tuple[str, ...]:
    ttft = figures.ttft
    times = ("-",) * 4 if ttft is None else (seconds(at) for at in (ttft.p50, ttft.p95, ttft.p99, ttft.maximum))
    counts = (
        *(figures.requests, figures.answered, figures.limited, figures.overloaded),
        *(figures.errors, figures.unfinished),
    )
    return (name, *times, *map(str, counts), number(figures.tokens_per_second))


def fairness_remarks(report: FairnessReport, keys: int, generator: Generator) -> tuple[str, ...]:
    """Return the caveats that a reader has to know before trusting the figures of so many keys."""
    found = []
    alone, beside, flood = report.light_alone, report.light_beside, report.heavy_beside
    limited = sum(part.limited for part in (alone, beside) if part is not None)
    if limited:
        found.append(
            f"{limited} of the light key's requests were refused by its own limits, which is not unfair and does not "
            "count; use a lower --rate or a key with higher limits"
        )
    if beside is not None and beside.unfinished:
        found.append(
            f"{beside.unfinished} of the light key's requests were unfinished when the test ended; those without a "
            "first token count with their wait until then, so their TTFT is longer than shown"
        )
    if flood is not None and flood.requests and flood.limited > MANY_LIMITED * flood.requests:
        found.append(
            f"{share(flood.limited / flood.requests)} of the heavy key's requests were refused by its own limits, so "
            "the flood was weak; `aiaas keys create heavy --rpm 60000 --burst 1000` creates a key with higher limits"
        )
    if alone is not None and flood is not None and alone.ttft is not None and flood.ttft is not None:
        calm = flood.ttft.p50 <= ROOM * alone.ttft.p50
        if calm:
            found.append(
                f"the heavy key itself did not wait (TTFT p50 {seconds(flood.ttft.p50)}), so the engine had room and "
                "there was little to share; use more --users"
            )
    if alone is not None and beside is not None and flood is not None:
        part = part_of_share(alone, beside, flood, keys)
        if part > MOST_OF_SHARE:
            found.append(
                f"the light key asked for {part:.1f} of an equal share of the tokens, so it is not light and may have "
                "to wait; use a lower --rate"
            )
    # A send that was late by LATE_SEND does not matter beside MOST_TTFT; an overloaded generator does.
    why = bottleneck(msgspec.structs.replace(generator, late_sends=0), 0)
    if why:
        found.append(
            f"the load generator itself was the bottleneck: {why}; the figures describe the load generator rather than "
            "the gateway. Give it its own core or fewer users"
        )
    return tuple(found)
