"""Does a gateway protect a light key from a heavy one? Compute the figures of both keys and judge them. Pure.

The light key is measured alone, then with the same load beside the flood of the heavy key. The gateway is fair if

    TTFT p95 beside <= max(MOST_TTFT, MOST_GROWTH x TTFT p95 alone)
    no request of the light key was refused (503) or failed

Rules
- A part of the light key (open loop) has the requests that were due in its window. A part of the heavy keys (closed
  loop, whose requests may be longer than a part) has those that ended in it. The tokens are those that arrived in it.
- A request that was cut off before its first token counts with its wait until then, as the least that its TTFT can be.
  Otherwise a key that is never served would look as if it never waited.
- A 429 comes from a limit of the key itself, not from the other key. It is counted and reported, but not judged.
- A key that asks for nearly as much as an equal share is not light, and a fair gateway may let it wait: a remark
  says so. Load is counted as in the gateway's queue: input tokens + OUTPUT_WEIGHT x output tokens.
- Parts with fewer than FEWEST_REQUESTS measured requests of the light key are not judged: their p95 is a single value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from aiaas.loadtest.sample import Sample, Window
from aiaas.loadtest.stats import Spread, spread
from aiaas.loadtest.summary import Fold, RunFault
from aiaas.loadtest.table import seconds

MOST_TTFT: Final = 1.5  # seconds
MOST_GROWTH: Final = 5.0  # times the p95 alone
FEWEST_REQUESTS: Final = 10
OUTPUT_WEIGHT: Final = 4.0
MOST_OF_SHARE: Final = 0.75  # of an equal share, that a light key asks for
OVERLOADED: Final = "http_503"


class KeyFigures(msgspec.Struct, frozen=True):
    """The light or the heavy keys in one part of the test. Latencies in seconds, rates per second.

    requests     answered + limited + overloaded + errors + unfinished
    limited      429: refused by a limit of the key
    overloaded   503: refused since the gateway or the engine is full
    errors       all other failures
    unfinished   cut off at the end of the test
    load_per_second  input tokens + OUTPUT_WEIGHT x output tokens
    ttft         of the answered and the unfinished requests; None without one, and for the heavy keys alone
    """

    seconds: float
    requests: int
    answered: int
    limited: int
    overloaded: int
    errors: int
    unfinished: int
    tokens_per_second: float
    ttft: Spread | None
    faults: tuple[RunFault, ...] = ()
    load_per_second: float = 0.0

    @property
    def measured(self) -> int:
        """How many requests have a TTFT."""
        return 0 if self.ttft is None else self.ttft.count

    @property
    def fault(self) -> str:
        """The most frequent failure in a few words, or ""."""
        if not self.faults:
            return ""
        first = self.faults[0]
        return f"{first.error} {first.code}".strip() + (f": {first.example}" if first.example else "")


class FairnessCheck(msgspec.Struct, frozen=True):
    """One condition of the verdict, with the expected and the observed result."""

    name: str
    expected: str
    seen: str
    held: bool


class KeyRefusals(msgspec.Struct, frozen=True):
    """How many requests of one key were refused in the whole test."""

    key: str
    limited: int
    overloaded: int


class FairnessReport(msgspec.Struct, frozen=True):
    """The result of one test. A part is None if the test ended before it.

    load      the load of both keys in words
    refusals  keys with a 429 or a 503; no other keys
    fair      None without a verdict; `no_verdict` then has the reason
    remarks   what a reader has to know before trusting the figures
    """

    url: str
    model: str
    load: str
    light_alone: KeyFigures | None
    light_beside: KeyFigures | None
    heavy_alone: KeyFigures | None
    heavy_beside: KeyFigures | None
    refusals: tuple[KeyRefusals, ...] = ()
    checks: tuple[FairnessCheck, ...] = ()
    fair: bool | None = None
    no_verdict: str = ""
    interrupted: bool = False
    remarks: tuple[str, ...] = ()


def key_figures(samples: Iterable[Sample], window: Window, *, ended_by: float | None = None) -> KeyFigures:
    """Compute the figures of one part. A sample that is marked as aborted was cut off at the end of the test.

    ended_by   count the requests that ended from the window's start to this time, not those that were due in the window
    """
    fold = Fold()
    waits = []
    for sample in samples:
        was_due = window.start <= sample.due < window.stop
        inside = was_due if ended_by is None else window.start < sample.end <= ended_by
        fold.add(msgspec.structs.replace(sample, warmup=not inside))
        if inside and not sample.error:
            waits.append(sample.e2e if sample.ttft is None else sample.ttft)
    summary = fold.summary(window)
    overloaded = sum(fault.count for fault in summary.faults if fault.error == OVERLOADED)
    return KeyFigures(
        seconds=summary.seconds,
        requests=summary.requests + summary.aborted,
        answered=summary.ok,
        limited=summary.rate_limited,
        overloaded=overloaded,
        errors=summary.errors - overloaded,
        unfinished=summary.aborted,
        tokens_per_second=summary.output_tokens_per_second,
        ttft=spread(waits),
        faults=summary.faults,
        load_per_second=summary.input_tokens_per_second + OUTPUT_WEIGHT * summary.output_tokens_per_second,
    )


def count_refusals(labels: Sequence[str], samples: Iterable[Sample]) -> tuple[KeyRefusals, ...]:
    """Count the 429s and 503s of each key; keys without one are left out. `labels` are in the order of `Sample.key`."""
    counts = Counter((sample.key, sample.status) for sample in samples if sample.error)
    found = [KeyRefusals(label, counts[key, 429], counts[key, 503]) for key, label in enumerate(labels)]
    return tuple(one for one in found if one.limited or one.overloaded)


def longest_fair_ttft(alone: Spread) -> float:
    """Return the longest TTFT p95 beside a heavy key that still counts as fair."""
    return max(MOST_TTFT, MOST_GROWTH * alone.p95)


def judge_fairness(alone: KeyFigures, beside: KeyFigures) -> tuple[FairnessCheck, ...]:
    """Judge the light key's two parts, which `why_no_verdict` has accepted."""
    if alone.ttft is None:
        raise ValueError("without a measured request alone nothing can be judged")
    longest = longest_fair_ttft(alone.ttft)
    p95 = None if beside.ttft is None else beside.ttft.p95
    failed = beside.overloaded + beside.errors
    rule = f"the larger of {seconds(MOST_TTFT)} and {MOST_GROWTH:g} x {seconds(alone.ttft.p95)}"
    return (
        FairnessCheck(
            "light TTFT p95 beside",
            f"at most {seconds(longest)} ({rule})",
            "no answer" if p95 is None else seconds(p95),
            p95 is not None and p95 <= longest,
        ),
        FairnessCheck("light requests refused or failed", f"0 of {beside.requests}", f"{failed}", not failed),
    )


def part_of_share(alone: KeyFigures, beside: KeyFigures, flood: KeyFigures, keys: int) -> float:
    """The load of the light key alone, in equal shares of the load that all `keys` together had beside."""
    share = (beside.load_per_second + flood.load_per_second) / keys
    return alone.load_per_second / share if share else 0.0


def why_no_verdict(alone: KeyFigures | None, beside: KeyFigures | None, flood: KeyFigures | None) -> str:
    """Say why these figures do not support a verdict, or "" if they do."""
    if alone is None or not alone.requests:
        return "the test ended before the light key was measured"
    if not alone.answered:
        return f"the light key got no answer even alone ({alone.fault or 'no first token in time'})"
    if beside is None and alone.unfinished:
        return f"even alone, {alone.unfinished} of the light key's requests were unfinished after the drain"
    if beside is None or flood is None:
        return "the test ended before the light key was measured beside the heavy one"
    if not flood.tokens_per_second:
        return f"the heavy key got no answer ({flood.fault or 'no first token in time'}), so there was no flood"
    if beside.overloaded + beside.errors:
        return ""  # unfair, however few requests there are
    if min(alone.measured, beside.measured) < FEWEST_REQUESTS:
        few = f"only {alone.measured} requests of the light key were measured alone and {beside.measured} beside"
        return f"{few}, and a verdict takes {FEWEST_REQUESTS} of each; use a longer --duration or a higher --rate"
    return ""
