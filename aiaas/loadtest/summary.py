"""Samples folded into the numbers that people read. Pure.

Rules
- Latencies are those of whole answers to requests that were due after the warm-up, counted from when they were due.
- Rates belong to the window (see `Window`), and count what happened in it, whoever had sent it when: whole answers that
  ended in it, and output tokens that came in it. A stream's tokens are spread evenly between its first event and its
  end. Otherwise a short run would lose what was under way at either end.
- 429 is counted apart from errors, since it tells of the key's limit and not of the server; the error rate holds both.
- Requests that were left on purpose are in neither; their tokens count.
- ITL pools the gaps of all requests, so long answers weigh more; TPOT has one value for each request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from aiaas.httpclient.answer import RATE_LIMITED
from aiaas.loadtest.sample import GatewayUse, Generator, Recorded, RunEnd, Sample, Window
from aiaas.loadtest.slo import Bound, SloVerdict, judge, meets
from aiaas.loadtest.stats import Spread, spread, spread_of_counts

LATE_SEND: Final = 0.01  # seconds; below it lies what a timer of 1 ms and a turn of the loop cost
BUSY_SHARE: Final = 0.8  # of one core; beyond it events wait in the socket before their time is taken
MUCH_LAG: Final = 0.02  # seconds, p99; it is added to every latency
MANY_LATE: Final = 0.01  # share of the requests

# A share of the requests that is all of them, but for what was under way at either end of a window.
ALONE: Final = (0.8, 1.25)


class RunFault(msgspec.Struct, frozen=True):
    """One kind of failure: how often, and what the first of them said."""

    error: str
    code: str
    count: int
    example: str


class GatewayCpu(msgspec.Struct, frozen=True):
    """CPU of the gateway's process.

    cores        that it used
    per_request  seconds of CPU for each request that it counted; None where that was none
    per_token    and for each output token of this test
    share        of this test's requests that it counted: 1 for the only gateway, a third for one of three
    """

    cores: float
    per_request: float | None
    per_token: float | None
    share: float | None


class Summary(msgspec.Struct, frozen=True):
    """The folded numbers. Latencies in seconds, rates per second.

    requests     measured ones that came to an end, but for those left on purpose
    ok, rate_limited, errors   whole answers; 429s; all other failures. They add up to `requests`
    error_rate   (errors + rate_limited) / requests
    goodput      whole answers per second that met the SLO's durations; None without an SLO
    cpu          what the gateway used, None where nobody looked (`--metrics`)
    """

    seconds: float
    level: float
    requests: int
    ok: int
    rate_limited: int
    errors: int
    aborted: int
    error_rate: float
    requests_per_second: float
    output_tokens_per_second: float
    input_tokens_per_second: float
    goodput: float | None
    prompt_tokens: float
    output_tokens: float
    ttft: Spread | None
    itl: Spread | None
    tpot: Spread | None
    e2e: Spread | None
    faults: tuple[RunFault, ...] = ()
    verdicts: tuple[SloVerdict, ...] = ()
    cpu: GatewayCpu | None = None

    @property
    def held(self) -> bool:
        """Whether every bound of the SLO holds; true without one."""
        return all(verdict.held for verdict in self.verdicts)


class RunSummary(msgspec.Struct, frozen=True):
    """A run in numbers: as a whole, and by level (of a sweep), key and way (gateway, direct) where there are any."""

    total: Summary
    levels: tuple[Summary, ...] = ()
    keys: tuple[Summary, ...] = ()
    ways: dict[str, Summary] = {}


class Fold:
    """Takes samples one by one; keeps a few numbers of each, and gaps only as counts."""

    def __init__(self, bounds: tuple[Bound, ...] = ()) -> None:
        self._bounds = bounds
        self._gaps: Counter[float] = Counter()
        self._latencies: dict[str, list[float]] = {"ttft": [], "tpot": [], "e2e": []}
        self._faults: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}
        self._spans: list[tuple[float, float, int, int, bool, bool]] = []  # from, end, tokens in, out, whole, good
        self._aborted = self._requests = self._ok = 0
        self._first = float("inf")
        self._last = 0.0

    def add(self, sample: Sample) -> None:
        """Take one in."""
        good = meets(sample, self._bounds)
        begun = sample.end if sample.first is None else sample.first
        span = (begun, sample.end, sample.prompt_tokens, sample.output_tokens, sample.ok, good)
        self._spans.append(span)
        if sample.warmup:
            return
        self._first = min(self._first, sample.due)
        self._last = max(self._last, sample.end)
        if sample.aborted:
            self._aborted += 1
            return
        self._requests += 1
        if sample.error:
            self._faults[sample.error, sample.code] += 1
            self._examples.setdefault((sample.error, sample.code), sample.detail)
            return
        self._ok += 1
        self._gaps.update(sample.gaps)
        for name, values in self._latencies.items():
            value: float | None = getattr(sample, name)
            if value is not None:
                values.append(value)

    def summary(self, window: Window | None = None) -> Summary:
        """The numbers so far. Without a window it reaches from the first measured request to the end of the last."""
        window = window or Window(min(self._first, self._last), self._last)
        seconds = max(window.stop - window.start, 1e-9)
        inside = [span for span in self._spans if window.start <= span[1] <= window.stop]
        limited = sum(count for (error, _), count in self._faults.items() if error == RATE_LIMITED)
        failed = self._faults.total()
        latencies: dict[str, Spread | None] = {name: spread(values) for name, values in self._latencies.items()}
        latencies["itl"] = _in_seconds(spread_of_counts(self._gaps))
        error_rate = failed / self._requests if self._requests else 0.0
        goodput = sum(span[5] for span in inside) / seconds if self._bounds else None
        whole = [span for span in self._spans if span[4]]
        output = sum(_tokens_in(span, window) for span in self._spans) / seconds
        return Summary(
            seconds=seconds,
            level=window.level,
            requests=self._requests,
            ok=self._ok,
            rate_limited=limited,
            errors=failed - limited,
            aborted=self._aborted,
            error_rate=error_rate,
            requests_per_second=sum(span[4] for span in inside) / seconds,
            output_tokens_per_second=output,
            input_tokens_per_second=sum(span[2] for span in inside) / seconds,
            goodput=goodput,
            prompt_tokens=_mean([span[2] for span in whole]),
            output_tokens=_mean([span[3] for span in whole]),
            ttft=latencies["ttft"],
            itl=latencies["itl"],
            tpot=latencies["tpot"],
            e2e=latencies["e2e"],
            faults=tuple(
                RunFault(error, code, count, self._examples[error, code])
                for (error, code), count in self._faults.most_common()
            ),
            verdicts=judge(self._bounds, latencies, error_rate, goodput),
            cpu=_cpu(window.gateway, len(inside) / seconds, output),
        )


def _cpu(use: GatewayUse | None, requests: float, tokens: float) -> GatewayCpu | None:
    """`requests` and `tokens` are this test's own, per second. Whoever carried a share of the requests is taken to have
    carried that share of the tokens; near 1 it is all of them."""
    if use is None:
        return None
    share = use.requests / requests if requests else None
    carried = tokens * (1.0 if share is None or ALONE[0] <= share <= ALONE[1] else share)
    return GatewayCpu(
        cores=use.cores,
        per_request=use.cores / use.requests if use.requests else None,
        per_token=use.cores / carried if carried else None,
        share=share,
    )


def _tokens_in(span: tuple[float, float, int, int, bool, bool], window: Window) -> float:
    """How many of a request's output tokens came in the window."""
    begun, end, _, tokens, _, _ = span
    if end <= begun:
        return tokens if window.start <= end <= window.stop else 0.0
    return tokens * max(min(end, window.stop) - max(begun, window.start), 0.0) / (end - begun)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _in_seconds(gaps: Spread | None) -> Spread | None:
    """Gaps are counted in microseconds."""
    if gaps is None:
        return None
    figures = {name: getattr(gaps, name) / 1e6 for name in gaps.__struct_fields__ if name != "count"}
    return Spread(count=gaps.count, **figures)


class Folds:
    """A run's samples, folded as a whole and by level, key and way."""

    def __init__(self, bounds: tuple[Bound, ...] = ()) -> None:
        self._bounds = bounds
        self._total = Fold(bounds)
        self._by: dict[tuple[str, float | int | str], Fold] = {}

    def add(self, sample: Sample) -> None:
        """Take one in."""
        if sample.via == "gateway":
            self._total.add(sample)
        for group in self._groups(sample):
            fold = self._by.get(group)
            if fold is None:
                fold = self._by[group] = Fold(self._bounds)
            fold.add(sample)

    def _groups(self, sample: Sample) -> tuple[tuple[str, float | int | str], ...]:
        """Direct requests are there to be compared with; every other figure is the gateway's."""
        if sample.via != "gateway":
            return (("way", sample.via),)
        return (("level", sample.level), ("key", sample.key), ("way", sample.via))

    def level(self, window: Window) -> Summary:
        """The numbers of one level."""
        return self._by.setdefault(("level", window.level), Fold(self._bounds)).summary(window)

    def summary(self, windows: Sequence[Window] = ()) -> RunSummary:
        """All of it; windows as far as they are known."""
        whole = windows[0] if len(windows) == 1 else Window(windows[0].start, windows[-1].stop) if windows else None
        bare = None if whole is None else Window(whole.start, whole.stop, whole.level)  # CPU is not known by key
        keys = [fold.summary(bare) for _, fold in self._of("key")]
        ways = {str(name): fold.summary(bare) for name, fold in self._of("way")}
        levels = tuple(self.level(window) for window in windows)
        return RunSummary(
            self._total.summary(whole),
            levels=levels if len(levels) > 1 else (),
            keys=tuple(keys) if len(keys) > 1 else (),
            ways=ways if len(ways) > 1 else {},
        )

    def _of(self, kind: str) -> list[tuple[float | int | str, Fold]]:
        return sorted(((group[1], fold) for group, fold in self._by.items() if group[0] == kind), key=lambda it: it[0])


def summarize(samples: Iterable[Sample], end: RunEnd | None = None, bounds: tuple[Bound, ...] = ()) -> RunSummary:
    """The numbers of a run's samples."""
    folds = Folds(bounds)
    for sample in samples:
        folds.add(sample)
    return folds.summary(end.windows if end is not None else ())


def summarize_recorded(recorded: Recorded, bounds: tuple[Bound, ...] = ()) -> RunSummary:
    """The numbers of a run in a file."""
    return summarize(recorded.samples, recorded.end, bounds)


def fairness(shares: Sequence[float]) -> float:
    """Jain's index: 1 where all got the same, 1/n where one got everything (Jain, Chiu and Hawe, 1984)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def bottleneck(generator: Generator, requests: int) -> str:
    """Why the figures tell of the load generator rather than of the server; "" where they do not."""
    reasons = []
    if generator.cpu_share > BUSY_SHARE:
        reasons.append(f"it used {generator.cpu_share:.0%} of the one core that it can use")
    if generator.lag_p99 > MUCH_LAG:
        reasons.append(f"its event loop came {generator.lag_p99 * 1000:.0f} ms late (p99)")
    if requests and generator.late_sends > MANY_LATE * requests:
        reasons.append(f"{generator.late_sends} of {requests} requests began more than {LATE_SEND * 1000:.0f} ms late")
    return " and ".join(reasons)
