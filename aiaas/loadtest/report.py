"""Show runs as tables: the same rows for a terminal, for Markdown and for a page. Pure.

The tables of a run have its latencies (percentiles of measured values, see `stats`), its rates, its errors by kind, the
verdict on its SLO, and whether the load generator itself kept up. Several runs are shown side by side, compared with
the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from aiaas.httpclient.answer import RATE_LIMITED
from aiaas.loadtest.compare import FEWEST, Overhead
from aiaas.loadtest.killed import Killed
from aiaas.loadtest.killed_report import kill_remarks, killed_as_json, killed_tables
from aiaas.loadtest.limit_check import LimitCheck
from aiaas.loadtest.sample import Generator, Run, RunEnd
from aiaas.loadtest.slo import Bound, SloVerdict
from aiaas.loadtest.stats import Spread
from aiaas.loadtest.summary import GatewayCpu, RunSummary, Summary, bottleneck, fairness
from aiaas.loadtest.sweep import knee, still_grows
from aiaas.loadtest.table import ReportTable, number, seconds, share

LATENCY_TITLES: Final = (
    ("ttft", "TTFT", "time to first output event"),
    ("itl", "ITL", "gap between two output events"),
    ("tpot", "TPOT", "(E2E - TTFT) / (output tokens - 1)"),
    ("e2e", "E2E", "time to the complete answer"),
)


class Shown(msgspec.Struct, frozen=True):
    """A run with its name and its figures."""

    name: str
    run: Run
    summary: RunSummary
    end: RunEnd | None = None
    overhead: Overhead | None = None
    killed: Killed | None = None


def passed(shown: Shown) -> bool:
    """Whether the SLO holds, and no stream was lost with a killed replica."""
    return holds(shown.summary) and (shown.killed is None or shown.killed.held)


def tables(shown: Shown) -> list[ReportTable]:
    """Return the tables of one run."""
    summary = shown.summary
    if summary.levels:  # figures over all levels together would be meaningless
        found = [level_table(shown.run, summary.levels)]
    else:
        found = [latency_table(summary.total), rate_table(summary.total)]
    if shown.overhead is not None:
        found.append(overhead_table(shown.overhead))
    if shown.killed is not None:
        found += killed_tables(shown.killed)
    if summary.keys:
        found.append(key_table(shown.run, summary.keys))
    if summary.total.faults:
        found.append(fault_table(summary.total))
    if summary.total.verdicts and not summary.levels:
        found.append(verdict_table(summary.total.verdicts))
    return found


def latency_table(summary: Summary) -> ReportTable:
    """Show latencies by percentile."""
    rows = []
    for name, label, _ in LATENCY_TITLES:
        figures: Spread | None = getattr(summary, name)
        if figures is not None:
            values = (figures.mean, figures.p50, figures.p90, figures.p95, figures.p99, figures.maximum)
            rows.append((label, *map(seconds, values), str(figures.count)))
    return ReportTable("Latency", ("", "mean", "p50", "p90", "p95", "p99", "max", "values"), tuple(rows))


def rate_table(summary: Summary) -> ReportTable:
    """Show request counts and rates per second."""
    rows = [
        ("requests", f"{summary.requests}"),
        ("answered", f"{summary.ok}"),
        ("refused by the limit (429)", f"{summary.rate_limited}"),
        ("errors", f"{summary.errors}"),
        ("error rate, 429s included", share(summary.error_rate)),
        ("answers per second", number(summary.requests_per_second)),
        ("output tokens per second", number(summary.output_tokens_per_second)),
        ("input tokens per second", number(summary.input_tokens_per_second)),
        ("tokens per request, in and out", f"{summary.prompt_tokens:.0f} and {summary.output_tokens:.0f}"),
        ("measured for", seconds(summary.seconds)),
    ]
    if summary.aborted:
        rows.insert(4, ("aborted on purpose", f"{summary.aborted}"))
    if summary.goodput is not None:
        rows.insert(-4, ("goodput, answers within the SLO per second", number(summary.goodput)))
    if summary.cpu is not None:
        labels = ("gateway: cores in use", "gateway: CPU per request", "gateway: CPU per output token")
        rows += zip(labels, _cpu_cells(summary.cpu), strict=True)
    return ReportTable("Throughput", ("", ""), tuple(rows))


def level_table(run: Run, levels: Sequence[Summary]) -> ReportTable:
    """Show a sweep level by level, with its knee, and with the gateway's CPU if `--metrics` measured it."""
    best = knee(levels)
    looked = any(summary.cpu is not None for summary in levels)
    rows = []
    for summary in levels:
        used = () if not looked else ("-", "-", "-") if summary.cpu is None else _cpu_cells(summary.cpu)
        mark = "" if summary.held else "SLO missed"
        if summary is best:
            mark = "still grows" if still_grows(levels) else "knee"
        rows.append(
            (
                f"{summary.level:g}",
                number(summary.output_tokens_per_second),
                number(summary.requests_per_second),
                _at(summary.ttft, "p50"),
                _at(summary.ttft, "p99"),
                _at(summary.tpot, "p50"),
                _at(summary.e2e, "p99"),
                *used,
                share(summary.error_rate),
                mark,
            )
        )
    what = "users" if run.loop == "closed" else "requests/s"
    cpu = ("gateway cores", "CPU/request", "CPU/token") if looked else ()
    headers = (what, "tokens/s", "answers/s", "TTFT p50", "TTFT p99", "TPOT p50", "E2E p99", *cpu, "errors", "")
    return ReportTable("Levels", headers, tuple(rows))


def _cpu_cells(cpu: GatewayCpu) -> tuple[str, str, str]:
    """Format cores in use, CPU per request and CPU per output token."""
    each = [None if value is None else seconds(value) for value in (cpu.per_request, cpu.per_token)]
    return f"{cpu.cores:.2f}", each[0] or "-", each[1] or "-"


def overhead_table(found: Overhead) -> ReportTable:
    """Show the latency that the gateway adds, with its interval."""
    rows = []
    for label, interval, direct in (
        ("TTFT", found.ttft, found.direct_ttft),
        ("each event", found.event, found.direct_event),
        ("E2E", found.e2e, found.direct_e2e),
    ):
        if interval is not None and direct is not None:
            figures = (interval.estimate, interval.low, interval.high)
            rows.append((label, seconds(direct), *(f"{value * 1e6:+.0f} us" for value in figures)))
    title = f"Gateway overhead (median of {found.pairs} pairs, 95 % interval)"
    return ReportTable(title, ("", "direct p50", "gateway adds", "from", "to"), tuple(rows))


def check_table(checks: Iterable[LimitCheck]) -> ReportTable:
    """Show the limit check: expected and observed results."""
    rows = tuple((check.name, check.expected, check.seen, "held" if check.held else "missed") for check in checks)
    return ReportTable("The limiter", ("", "expected", "seen", ""), rows)


def key_table(run: Run, keys: Sequence[Summary]) -> ReportTable:
    """Show the figures of each key."""
    rows = tuple(
        (
            label,
            str(summary.requests),
            str(summary.ok),
            str(summary.rate_limited),
            number(summary.output_tokens_per_second),
            _at(summary.ttft, "p50"),
            _at(summary.e2e, "p50"),
            _at(summary.e2e, "p99"),
        )
        for label, summary in zip(run.keys, keys, strict=False)
    )
    title = f"Keys (fairness {fairness([summary.output_tokens_per_second for summary in keys]):.3f}; 1 is even)"
    return ReportTable(
        title, ("key", "requests", "answered", "429", "tokens/s", "TTFT p50", "E2E p50", "E2E p99"), rows
    )


def fault_table(summary: Summary) -> ReportTable:
    """Show errors by kind, each with the message of the first one."""
    rows = tuple((f"{fault.error} {fault.code}".strip(), str(fault.count), fault.example) for fault in summary.faults)
    return ReportTable("Errors", ("kind", "count", "for example"), rows)


def verdict_table(verdicts: Iterable[SloVerdict]) -> ReportTable:
    """Show the verdict on each bound of the SLO."""
    rows = tuple(
        (bound_text(verdict.bound), _seen(verdict), "held" if verdict.held else "missed") for verdict in verdicts
    )
    return ReportTable("SLO", ("bound", "seen", ""), rows)


def compare_table(runs: Sequence[Shown]) -> ReportTable:
    """Show runs side by side, each figure of a later run with its change from the first run."""
    first = runs[0].summary.total
    rows: list[tuple[str, ...]] = []
    for label, read, write in _compared():
        base = read(first)
        cells = []
        for shown in runs:
            value = read(shown.summary.total)
            change = "" if shown is runs[0] or not base or value is None else f" ({(value / base - 1) * 100:+.0f} %)"
            cells.append("-" if value is None else write(value) + change)
        rows.append((label, *cells))
    return ReportTable("Runs", ("", *(shown.name for shown in runs)), tuple(rows))


def _compared() -> Iterable[tuple[str, Any, Any]]:
    for name, label, _ in LATENCY_TITLES:
        for percent in ("p50", "p99"):
            yield f"{label} {percent}", _reader(name, percent), seconds
    yield "answers per second", lambda summary: summary.requests_per_second, number
    yield "output tokens per second", lambda summary: summary.output_tokens_per_second, number
    yield "goodput", lambda summary: summary.goodput, number
    yield "error rate", lambda summary: summary.error_rate, share


def _reader(name: str, percent: str) -> Any:
    def read(summary: Summary) -> float | None:
        figures: Spread | None = getattr(summary, name)
        return None if figures is None else getattr(figures, percent)

    return read


def holds(summary: RunSummary) -> bool:
    """Whether the SLO holds; for a sweep, which overloads the server at its end, whether the SLO holds at the knee."""
    return knee(summary.levels) is not None if summary.levels else summary.total.held


def remarks(shown: Shown) -> list[str]:
    """Return the caveats that a reader has to know before trusting the figures."""
    summary, end = shown.summary.total, shown.end
    found = []
    generator = Generator() if end is None else end.generator
    why = bottleneck(generator, summary.requests)
    if why:
        found.append(
            f"the load generator itself was the bottleneck: {why}; the figures describe the load generator rather than "
            "the server. Give it its own core or fewer users, or run it on several machines"
        )
    own = sum(fault.count for fault in summary.faults if fault.error == "generator")
    if own:
        found.append(f"{own} requests failed because this machine ran out of descriptors or ports; see `ulimit -n`")
    if shown.run.direct and shown.overhead is None:
        found.append(f"the comparison gave fewer than {FEWEST} complete pairs, too few for an interval")
    if summary.rate_limited:
        found.append(_limit_remark(summary))
    if shown.killed is not None:
        found += kill_remarks(shown.killed)
    if end is None:
        found.append("the run crashed: its file has no end line, so the figures cover only the part before the crash")
    elif end.stopped_by:
        found.append(f"the run ended early ({end.stopped_by}); {end.unfinished} requests in flight are not counted")
    levels = shown.summary.levels
    if still_grows(levels):
        load = "users" if shown.run.loop == "closed" else "requests/s"
        found.append(f"no knee up to {levels[-1].level:g} {load}: output still grew there; sweep higher")
    if not summary.ok:
        found.append("not one request was answered, so there are no latencies")
    return found


def _limit_remark(summary: Summary) -> str:
    part = summary.rate_limited / summary.requests
    codes = [fault.code for fault in summary.faults if fault.error == RATE_LIMITED and fault.code]
    return (
        f"{share(part)} of the requests were refused by the key's own limit ({', '.join(codes) or '429'}), so the run "
        "measured that limit; `aiaas keys create load --rpm 60000 --burst 1000` creates a key with higher limits"
    )


def run_as_json(shown: Shown) -> dict[str, Any]:
    """Return a run as JSON data: seconds, shares and rates as plain numbers."""
    found: dict[str, Any] = {"name": shown.name, "run": msgspec.to_builtins(shown.run)}
    found |= msgspec.to_builtins(shown.summary)
    best = knee(shown.summary.levels) if shown.summary.levels else None
    found["knee"] = None if best is None else best.level
    found["knee_reached"] = best is not None and not still_grows(shown.summary.levels)
    found["held"] = holds(shown.summary)
    found["overhead"] = None if shown.overhead is None else msgspec.to_builtins(shown.overhead)
    found["killed"] = None if shown.killed is None else killed_as_json(shown.killed)
    found["end"] = None if shown.end is None else msgspec.to_builtins(shown.end)
    found["remarks"] = remarks(shown)
    return found


def bound_text(bound: Bound) -> str:
    """Write a bound in words, with its percentile."""
    if bound.name == "error_rate":
        return f"error_rate <= {share(bound.limit)}"
    if bound.name == "goodput":
        return f"goodput >= {number(bound.limit)}/s"
    return f"{bound.name} p{bound.percent} <= {seconds(bound.limit)}"


def _seen(verdict: SloVerdict) -> str:
    if verdict.seen is None:
        return "nothing measured"
    write = {"error_rate": share, "goodput": number}.get(verdict.bound.name, seconds)
    return write(verdict.seen)


def _at(figures: Spread | None, percent: str) -> str:
    return "-" if figures is None else seconds(getattr(figures, percent))
