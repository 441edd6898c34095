"""The results as rows, as a table for the terminal, as JSON and as a page of the docs."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import process, wire
from tests.bench.measure import Cost, Results, Settings, Target

# Above this share, what feeds the proxy was the limit and not the proxy.
FULL = 0.95
# Below this share it is the kernel's own work on that core.
DISTURBED = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: values in `unit` of each repetition; `note` is what else a reader has to know."""

    what: str
    unit: str
    aiaas: tuple[float, ...]
    nginx: tuple[float, ...] | None
    note: str = ""

    def ratio(self) -> float | None:
        """Median to median; None where there is nothing to compare with."""
        if not self.nginx or median(self.nginx) <= 0:
            return None
        return median(self.aiaas) / median(self.nginx)


def rows(results: Results) -> list[Row]:
    """Every measure of a run, in the order of the table."""
    aiaas, nginx, settings = results.aiaas, results.nginx, results.settings
    found = [
        _cost_row(f"short request, {settings.connections} connections, closed loop", aiaas, nginx, "short"),
        _cost_row(f"short request, {settings.connections} connections, paced", aiaas, nginx, "paced"),
        _cost_row(
            f"stream event, {settings.streams} streams of {settings.events_per_second:g}/s", aiaas, nginx, "event"
        ),
    ]
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        found.append(
            Row(
                f"added latency {label}, one request at a time",
                "us",
                _added(aiaas, results.direct, share),
                None if nginx is None else _added(nginx, results.direct, share),
                f"direct: {median(percentile(run, share) for run in results.direct) * 1e6:.0f} us",
            )
        )
    mib = 1024 * 1024
    for what, attribute in (
        ("memory after the first answer", "idle_bytes"),
        ("memory after all loads", "loaded_bytes"),
    ):
        found.append(
            Row(
                what,
                "MiB",
                (getattr(aiaas, attribute) / mib,),
                None if nginx is None else (getattr(nginx, attribute) / mib,),
            )
        )
    for what, attribute in (("", "start_seconds"), (", CPU", "start_cpu_seconds")):
        found.append(
            Row(
                f"start to first answered request{what}",
                "ms",
                tuple(seconds * 1e3 for seconds in getattr(aiaas, attribute)),
                None if nginx is None else tuple(seconds * 1e3 for seconds in getattr(nginx, attribute)),
            )
        )
    return found


def _cost_row(what: str, aiaas: Target, nginx: Target | None, attribute: str) -> Row:
    costs: Sequence[Cost] = getattr(aiaas, attribute)
    base: Sequence[Cost] | None = None if nginx is None else getattr(nginx, attribute)
    parts = [_busy("aiaas", costs)] if base is None else [_busy("nginx", base), _busy("aiaas", costs)]
    return Row(
        what,
        "us CPU",
        tuple(cost.micros for cost in costs),
        None if base is None else tuple(cost.micros for cost in base),
        "; ".join(parts),
    )


def _busy(name: str, costs: Sequence[Cost]) -> str:
    rate = median(cost.rate for cost in costs)
    tested = median(cost.tested_busy for cost in costs)
    others = median(cost.generator_busy for cost in costs)
    disturbed = max(cost.disturbed for cost in costs)
    full = ", which was the limit" if others > FULL else ""
    shared = f", at worst {disturbed:.0%} of its core taken by others" if disturbed > DISTURBED else ""
    return f"{name} at {rate:,.0f}/s: its core {tested:.0%} busy, generator and backend {others:.0%}{full}{shared}"


def _added(target: Target, direct: Sequence[Sequence[float]], share: float) -> tuple[float, ...]:
    return tuple(
        (percentile(through, share) - percentile(without, share)) * 1e6
        for through, without in zip(target.latencies, direct, strict=True)
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of an ordered, not empty sequence lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def as_text(results: Results) -> str:
    """A table for the terminal; the notes below it."""
    lines = [("", "unit", "nginx min/median/max", "aiaas min/median/max", "ratio")]
    notes = []
    for row in rows(results):
        ratio = row.ratio()
        lines.append(
            (row.what, row.unit, _spread(row.nginx), _spread(row.aiaas), "-" if ratio is None else f"{ratio:.2f}")
        )
        if row.note:
            notes.append(f"  {row.what}: {row.note}")
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    load = f"load average before: {results.load_before}; after: {results.load_after} (with this run's own load)"
    missing = [] if results.nginx is not None else ["nginx: not found on this machine, so there is no ratio"]
    return "\n".join([*table, *notes, *missing, load, f"took {results.seconds:.0f} s"])


def _spread(values: Sequence[float] | None) -> str:
    if not values:
        return "not measured"
    if len(values) == 1:
        return _number(values[0])
    return f"{_number(min(values))} / {_number(median(values))} / {_number(max(values))}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for a machine; latencies as percentiles only."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "settings": asdict(results.settings),
        "rows": [asdict(row) | {"ratio_of_medians": row.ratio()} for row in rows(results)],
        "load_average": {"before": results.load_before, "after": results.load_after},
        "seconds": results.seconds,
    }


def versions() -> dict[str, str]:
    """What was measured, and on what."""
    found = {"python": platform.python_version(), "kernel": platform.release(), "processor": _processor()}
    found |= {name: version(name) for name in ("aiaas", "aiohttp", "httptools", "uvloop", "msgspec")}
    executable = process.nginx_path()
    if executable is not None:
        said = subprocess.run([executable, "-v"], capture_output=True, text=True, check=False).stderr
        found["nginx"] = said.strip().rpartition("/")[2]
    return found


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return " ".join(found.group(1).split()) if found else platform.machine()


PAGE = """\
# What a request costs

Written by `python -m tests.bench --write-docs` on {date}; the figures are a record and not a promise. Absolute ones
vary by machine; what should hold elsewhere is their ratio. nginx only passes bytes; aiaas also checks a key, computes
the key's limits, rewrites an alias, keeps metrics, writes a log line for each request, and for a stream asks for the
usage and takes it out again.

| what | unit | nginx min / median / max | aiaas min / median / max | ratio of medians |
| --- | --- | --- | --- | --- |
{table}

{notes}

## How it was measured

- {versions}.
- The process under test was pinned to one core, the load generator and the scripted backend to another. Load
  average before the run: {before}; after it: {after}.
- {rounds} repetitions in turns (nginx, aiaas, nginx, aiaas, ...), each with its warm-up left out.
- CPU is user and system time of the whole process by its CPU clock, divided by the requests answered, or events
  received by the clients, between two marks.
- Short requests: a chat completion with a prompt of about 150 bytes and an answer of {answer} bytes over {connections}
  keep-alive connections, first as fast as it goes, then with a pause of {pause:g} ms after each answer.
- Streams: {streams} at once, {pace:g} events of {event} bytes a second each, measured over {stream_seconds:g} s
  in which all of them run. Every stream is read to its end, and its events are counted.
- Added latency: the percentile through the proxy less the same percentile without one, {latency_seconds:g} s each.
- Start: from starting the process to its first answered inference request with the backend up, the slow hash of the
  key included; and the CPU time of that, which other work on the machine does not change much.
- nginx: one process, `proxy_buffering off`, keep-alive on both sides, no access log. aiaas: `aiaas serve` with
  authentication, limits on requests, tokens and concurrency, metrics, and its log to a file.

Run it again with `nox -s bench`.
"""


def as_page(results: Results) -> str:
    """docs/bench.md."""
    settings: Settings = results.settings
    found = rows(results)
    table = []
    for row in found:
        ratio = row.ratio()
        cells = (row.what, row.unit, _spread(row.nginx), _spread(row.aiaas), "" if ratio is None else f"{ratio:.2f}")
        table.append(f"| {' | '.join(cells)} |")
    return PAGE.format(
        date=datetime.now(UTC).date().isoformat(),
        table="\n".join(table),
        notes="\n".join(f"- {row.what}: {row.note}." for row in found if row.note),
        versions=", ".join(f"{name} {value}" for name, value in versions().items()),
        before=results.load_before,
        after=results.load_after,
        rounds=settings.rounds,
        answer=len(wire.ANSWER.partition(b"\r\n\r\n")[2]),
        event=len(wire.TOKEN_EVENT),
        connections=settings.connections,
        pause=settings.pause * 1e3,
        streams=settings.streams,
        pace=settings.events_per_second,
        stream_seconds=settings.stream_seconds,
        latency_seconds=settings.latency_seconds,
    )
