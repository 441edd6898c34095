"""The results as rows, as text for the terminal and as JSON. page.py makes the page of the docs from the same rows.

A ratio is that of the medians: what aiaas has, divided by what the other has. Where the ranges of their repetitions
(min to max) overlap, the two are called equal.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.bench.measure import Cost, Findings, Results
from tests.bench.subjects import FAST

OURS: Final = "aiaas"
FULL: Final = 0.95  # above this share, what feeds the proxy was the limit and not the proxy
DISTURBED: Final = 0.05  # below this share it is the kernel's own work on that core


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the tables. `load` is whose notes belong to it; `paced` where a slower pace of a subject applies."""

    key: str
    what: str
    unit: str
    scale: float
    load: str = ""
    paced: bool = False


LOADS: Final = {
    "closed loop": "short",
    "closed loop, each head another": "varied",
    "fixed rate": "paced",
    "faster rate": "brisk",
    "streams": "event",
}
_SLOWER: Final = f"{FAST.requests:g} a second"
_FASTER: Final = f"{FAST.brisk:,g} a second"

MEASURES: Final = (
    Measure("short_cpu", "CPU a short request, {connections} connections", "us", 1.0, "short"),
    Measure("varied_cpu", "CPU a short request, each with a request id of its own", "us", 1.0, "varied"),
    Measure("paced_cpu", f"CPU a short request, {_SLOWER}", "us", 1.0, "paced", paced=True),
    Measure("brisk_cpu", f"CPU a short request, {_FASTER}", "us", 1.0, "brisk", paced=True),
    Measure("event_cpu", "CPU a stream event, {streams} streams of 50 a second", "us", 1.0, "event", paced=True),
    Measure("short_rate", "short requests a second on one core", "1/s", 1.0, "short"),
    *(
        Measure(f"{load}_{key}", f"added latency {name}, {rate}", "us", 1e6, paced=True)
        for load, rate in (("paced", _SLOWER), ("brisk", _FASTER))
        for key, name in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"))
    ),
    *(
        Measure(f"arrival_{name}", f"first byte {name}, {{arrivals}} clients arrive at once", "ms", 1e3)
        for name in ("p50", "p99", "max")
    ),
    Measure("ttft_p50", "added time to first event p50, at {streams} streams", "us", 1e6, paced=True),
    Measure("ttft_p95", "added time to first event p95, at {streams} streams", "us", 1e6, paced=True),
    Measure("idle", "memory idle", "MiB", 2**-20),
    Measure("per_stream", "memory an open stream, {open_streams:,} open", "KiB", 2**-10),
    Measure("start", "start to first answered request", "ms", 1e3),
    Measure("start_cpu", "start to first answered request, CPU", "ms", 1e3),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of every subject: the values of its repetitions, in `unit`; none where it was not measured.

    slower    names of those that were measured at a slower pace than the others
    capped    names of those whose values are lower bounds: what fed them was the limit
    """

    what: str
    unit: str
    values: dict[str, tuple[float, ...]]
    slower: frozenset[str] = frozenset()
    capped: frozenset[str] = frozenset()

    def ratio(self, name: str) -> float | None:
        """Of aiaas to another, by their medians; None where there is nothing to compare."""
        ours, other = self.values.get(OURS), self.values.get(name)
        if name == OURS or not ours or not other or median(other) <= 0 or median(ours) <= 0:
            return None
        return median(ours) / median(other)

    def equal(self, name: str) -> bool:
        """Whether the difference lies within the spread. One repetition has none, and says nothing."""
        ours, other = self.values.get(OURS, ()), self.values.get(name, ())
        if min(len(ours), len(other)) < 2:
            return False
        return min(ours) <= max(other) and min(other) <= max(ours)

    def cell(self, name: str) -> str:
        """min / median / max, with what a reader has to know in a sign."""
        values = self.values.get(name)
        if not values:
            return "not measured"
        spread = (min(values), median(values), max(values)) if len(values) > 1 else values
        at_least = ">= " if name in self.capped else ""
        return at_least + " / ".join(map(number, spread)) + (" *" if name in self.slower else "")

    def compared(self, name: str) -> str:
        """The ratio in words; empty where there is none."""
        ratio = self.ratio(name)
        return "" if ratio is None else f"{ratio:.3g}" + (", equal" if self.equal(name) else "")


def rows(results: Results) -> list[Row]:
    """Every measure of a run, in the order of the tables."""
    return [_row(measure, results) for measure in MEASURES]


def _row(measure: Measure, results: Results) -> Row:
    ours = next((each.pace for each in results.findings if each.name == OURS), None)
    return Row(
        measure.what.format(**asdict(results.settings)),
        measure.unit,
        {
            each.name: tuple(value * measure.scale for value in each.values.get(measure.key, ()))
            for each in results.findings
        },
        frozenset(each.name for each in results.findings if measure.paced and ours and each.pace != ours),
        frozenset(each.name for each in results.findings if measure.key == "short_rate" and _fed_too_slowly(each)),
    )


def _fed_too_slowly(findings: Findings) -> bool:
    costs = findings.costs.get("short")
    return bool(costs) and median(cost.generator_busy for cost in costs) > FULL


def number(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def problems(results: Results) -> list[str]:
    """The subjects that were not measured and why; each a line."""
    found = [f"{each.name}: not measured: {each.missing}" for each in results.findings if each.missing]
    for each in [results.direct, *results.findings]:
        found += [f"{each.name}: {phase}: {why}" for phase, why in each.problems.items()]
    return found


def slower(results: Results) -> list[str]:
    """The footnotes of the stars; each a line."""
    starred = {name for row in rows(results) for name in row.slower}
    return [
        f"* {each.name} could not answer what the others were asked for: measured at {each.pace.requests:g} and "
        f"{each.pace.brisk:g} requests a second, and at {results.settings.streams} streams of {each.pace.events:g} "
        "events a second"
        for each in results.findings
        if each.name in starred
    ]


def busy(results: Results) -> list[str]:
    """How busy the two cores were under each load; each a line."""
    return [
        f"{load}: " + "; ".join(_busy(each.name, each.costs[key]) for each in results.findings if key in each.costs)
        for load, key in LOADS.items()
        if any(key in each.costs for each in results.findings)
    ]


def _busy(name: str, costs: Sequence[Cost]) -> str:
    rate = median(cost.rate for cost in costs)
    tested = median(cost.tested_busy for cost in costs)
    others = median(cost.generator_busy for cost in costs)
    disturbed = max(cost.disturbed for cost in costs)
    full = ", which was the limit" if others > FULL else ""
    shared = f", at worst {disturbed:.0%} of its core taken by others" if disturbed > DISTURBED else ""
    return f"{name} at {rate:,.0f}/s: its core {tested:.0%} busy, generator and backend {others:.0%}{full}{shared}"


def unproxied(results: Results) -> list[str]:
    """The first bytes without a proxy, which the rows of clients that arrive at once still contain; a line."""
    found = {name: results.direct.values.get(f"arrival_{name}") for name in ("p50", "p99", "max")}
    said = ", ".join(f"{name} {number(median(values) * 1e3)} ms" for name, values in found.items() if values)
    return [f"first byte without a proxy, {results.settings.arrivals} clients arrive at once: {said}"] if said else []


def as_text(results: Results) -> str:
    """For the terminal: a block for each measure, then the notes."""
    names = [each.name for each in results.findings]
    width = max(map(len, names), default=0)
    lines = ["min / median / max of each; right of it aiaas divided by it"]
    for row in rows(results):
        lines += ["", f"{row.what} ({row.unit})"]
        for name in names:
            compared = row.compared(name)
            lines.append(f"  {name:<{width}}  {row.cell(name):<34}{compared and 'x '}{compared}".rstrip())
    load = f"load average before: {results.load_before}; after: {results.load_after} (with this run's own load)"
    notes = [
        *slower(results),
        *problems(results),
        *busy(results),
        *unproxied(results),
        load,
        f"took {results.seconds:.0f} s",
    ]
    return "\n".join([*lines, "", *notes])


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for a machine."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(results),
        "settings": asdict(results.settings),
        "rows": [
            {
                "what": row.what,
                "unit": row.unit,
                "values": row.values,
                "ratios_of_medians": {name: row.ratio(name) for name in row.values},
                "equal": [name for name in row.values if name != OURS and row.equal(name)],
                "slower": sorted(row.slower),
                "at_least": sorted(row.capped),
            }
            for row in rows(results)
        ],
        "problems": problems(results),
        "busy": [*busy(results), *unproxied(results)],
        "load_average": {"before": results.load_before, "after": results.load_after},
        "seconds": results.seconds,
    }


def versions(results: Results) -> dict[str, str]:
    """The versions, the machine and the settings of the measurement."""
    found = {"python": results.interpreter, "kernel": platform.release(), "processor": processor()}
    found |= {each.name: each.version for each in results.findings if each.version}
    return found | {name: version(name) for name in ("aiohttp", "httptools", "uvloop", "msgspec")}


def processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return " ".join(found.group(1).split()) if found else platform.machine()
