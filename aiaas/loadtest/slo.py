"""Parse an SLO, written as `ttft=1s,e2e=5s,error_rate=1%`, and judge a run by it.

    ttft, itl, tpot, e2e   a duration for each request. A request meets the SLO when all of its figures do (itl: its
                           median gap); a run does when the given percentile of all requests does. The default is p99;
                           write `e2e:p95=5s` for another
    error_rate             the largest share of requests that may fail; errors and 429s count, deliberate aborts do not
    goodput                the lowest number of requests per second that meet the SLO

Goodput counts the requests that met every duration, so `--slo` reports it even without a `goodput` bound.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from aiaas.errors import UsageError
from aiaas.loadtest.sample import Sample
from aiaas.loadtest.stats import Spread, median
from aiaas.units import parse_positive_duration

LATENCIES: Final = ("ttft", "itl", "tpot", "e2e")
PERCENTILES: Final = (50, 90, 95, 99)
SLO_FORM: Final = "write it as ttft=1s,e2e:p95=5s,error_rate=1%"

_TERM = re.compile(r"([a-z0-9_]+)(?::p([0-9]+))?=(.+)")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


class Bound(msgspec.Struct, frozen=True):
    """One term: `limit` in seconds, as a share (0.01), or in requests per second."""

    name: str
    limit: float
    percent: int = 99


class SloVerdict(msgspec.Struct, frozen=True):
    """The verdict on one term for a run; `seen` is None if nothing was measured, and the term then does not hold."""

    bound: Bound
    seen: float | None
    held: bool


def parse_slo(text: str) -> tuple[Bound, ...]:
    """Parse an SLO; an empty text has no bounds. Raises UsageError."""
    bounds = tuple(_bound(term.strip()) for term in text.split(",")) if text.strip() else ()
    names = [bound.name for bound in bounds]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--slo: {name} is given twice")
    return bounds


def _bound(term: str) -> Bound:
    match = _TERM.fullmatch(term)
    if match is None:
        raise UsageError(f"--slo: {term!r} is not a bound; {SLO_FORM}")
    name, percent, value = match.groups()
    if name in LATENCIES:
        try:
            return Bound(name, parse_positive_duration(value), _percent(percent))
        except ValueError as error:
            raise UsageError(f"--slo: {name}={value}: {error}") from error
    if percent is not None:
        raise UsageError(f"--slo: {name} has no percentiles; only {', '.join(LATENCIES)} do")
    number = value.removesuffix("%")
    if _NUMBER.fullmatch(number) is None or name not in ("error_rate", "goodput"):
        raise UsageError(f"--slo: {term!r} is not a bound; {SLO_FORM}")
    share = float(number) / 100 if value.endswith("%") else float(number)
    if name == "error_rate" and share > 1:
        raise UsageError(f"--slo: error_rate={value} is more than 100%; write 1% or 0.01")
    return Bound(name, share)


def _percent(text: str | None) -> int:
    percent = 99 if text is None else int(text)
    if percent not in PERCENTILES:
        raise UsageError(f"--slo: p{percent} is not available; use p50, p90, p95 or p99")
    return percent


def meets(sample: Sample, bounds: tuple[Bound, ...]) -> bool:
    """Whether one request met every duration; a failed or aborted one never does."""
    if not sample.ok:
        return False
    for bound in bounds:
        seen = _figure(sample, bound.name)
        if seen is not None and seen > bound.limit:
            return False
    return True


def _figure(sample: Sample, name: str) -> float | None:
    if name == "itl":
        return median(sample.gaps) / 1e6 if sample.gaps else None
    return {"ttft": sample.ttft, "tpot": sample.tpot, "e2e": sample.e2e}.get(name)


def judge(
    bounds: tuple[Bound, ...], latencies: dict[str, Spread | None], error_rate: float, goodput: float | None
) -> tuple[SloVerdict, ...]:
    """Judge each bound by a run's figures."""
    return tuple(_judge(bound, latencies, error_rate, goodput) for bound in bounds)


def _judge(bound: Bound, latencies: dict[str, Spread | None], error_rate: float, goodput: float | None) -> SloVerdict:
    if bound.name == "error_rate":
        return SloVerdict(bound, error_rate, error_rate <= bound.limit)
    if bound.name == "goodput":
        return SloVerdict(bound, goodput, goodput is not None and goodput >= bound.limit)
    figures = latencies[bound.name]
    if figures is None:
        return SloVerdict(bound, None, False)
    seen: float = getattr(figures, f"p{bound.percent}")
    return SloVerdict(bound, seen, seen <= bound.limit)
