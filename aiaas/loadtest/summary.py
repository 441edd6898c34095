"""Fold samples into the figures of a report. Pure.

Rules
- Latencies are those of complete answers to requests that were due after the warm-up, counted from when they were due.
- Rates belong to the window (see `Window`): complete answers that ended and output tokens that arrived in it, even
  if the request was sent before the window. A stream's tokens are spread evenly between its first event and its end.
  Otherwise a short run would lose the requests in flight at either end of the window.
- 429s are counted separately from errors, since they are due to the key's limit and not the server; the error rate
  includes both.
- Requests that were aborted on purpose count neither as answered nor as errors; their tokens count.
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

LATE_SEND: Final = 0.01  # seconds; more than a timer of 1 ms and a turn of the event loop cost
BUSY_SHARE: Final = 0.8  # of one core; beyond it events wait in the socket before their time is measured
MUCH_LAG: Final = 0.02  # seconds, p99; the lag is added to every latency
MANY_LATE: Final = 0.01  # share of the requests

# A gateway with a share of the requests in this range served all of them; the requests in flight at either end of a
# window explain the difference to 1.
ALONE: Final = (0.8, 1.25)


class RunFault(msgspec.Struct, frozen=True):
    """One kind of failure: its count, and the message of the first one as an example."""

    error: str
    code: str
    count: int
    example: str


class GatewayCpu(msgspec.Struct, frozen=True):
    """CPU use of the gateway's process.

    cores        cores in use
    per_request  CPU seconds for each request that the gateway counted; None if it counted 0
    per_token    CPU seconds for each output token of this test
    share        share of this test's requests that the gateway counted: 1 for a single gateway, 1/3 for one of three
    """

    cores: float
    per_request: float | None
    per_token: float | None
    share: float | None


class Summary(msgspec.Struct, frozen=True):
    """The figures of a report. Latencies in seconds, rates per second.

    requests     measured requests that ended, without those aborted on purpose
    ok, rate_limited, errors   complete answers; 429s; all other failures. They add up to `requests`
    error_rate   (errors + rate_limited) / requests
    goodput      complete answers per second that met the SLO's durations; None without an SLO
    cpu          the gateway's CPU use, None without `--metrics`
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
        """Whether every bound of the SLO holds; true without an SLO."""
        return all(verdict.held for verdict in self.verdicts)


class RunSummary(msgspec.Struct, frozen=True):
    """A run's figures: in total, and by level (of a sweep), key and way (gateway, direct) if the run has several."""

    total: Summary
    levels: tuple[Summary, ...] = ()
    keys: tuple[Summary, ...] = ()
    ways: dict[str, Summary] = {}


class Fold:
    """Folds samples one by one; keeps a few numbers of each, and gaps only as counts."""

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
        """Add a sample."""
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
        """Return the figures so far. The default window spans the first measured request to the end of the last one."""
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
    """Compute the CPU figures. `requests` and `tokens` are this test's own, per second. Assume that a gateway which
    served a share of the requests also served that share of the tokens; a share near 1 counts as all of them."""
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
    """Return how many of a request's output tokens arrived in the window."""
    begun, end, _, tokens, _, _ = span
    if end <= begun:
        return tokens if window.start <= end <= window.stop else 0.0
    return tokens * max(min(end, window.stop) - max(begun, window.start), 0.0) / (end - begun)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _in_seconds(gaps: Spread | None) -> Spread | None:
    """Convert gaps, which are counted in microseconds, to seconds."""
    if gaps is None:
        return None
    figures = {name: getattr(gaps, name) / 1e6 for name in gaps.__struct_fields__ if name != "count"}
    return Spread(count=gaps.count, **figures)


class Folds:
    """Folds a run's samples in total and by level, key and way."""

    def __init__(self, bounds: tuple[Bound, ...] = ()) -> None:
        self._bounds = bounds
        self._total = Fold(bounds)
        self._by: dict[tuple[str, float | int | str], Fold] = {}

    def add(self, sample: Sample) -> None:
        """Add a sample."""
        if sample.via == "gateway":
            self._total.add(sample)
        for group in self._groups(sample):
            fold = self._by.get(group)
            if fold is None:
                fold = self._by[group] = Fold(self._bounds)
            fold.add(sample)

    def _groups(self, sample: Sample) -> tuple[tuple[str, float | int | str], ...]:
        """Return the sample's groups. Direct requests only serve as a comparison; other figures are the gateway's."""
        if sample.via != "gateway":
            return (("way", sample.via),)
        return (("level", sample.level), ("key", sample.key), ("way", sample.via))

    def level(self, window: Window) -> Summary:
        """Return the figures of one level."""
        return self._by.setdefault(("level", window.level), Fold(self._bounds)).summary(window)

    def summary(self, windows: Sequence[Window] = ()) -> RunSummary:
        """Return all figures; `windows` may be incomplete for a run that crashed."""
        whole = windows[0] if len(windows) == 1 else Window(windows[0].start, windows[-1].stop) if windows else None
        bare = None if whole is None else Window(whole.start, whole.stop, whole.level)  # CPU by key is unknown
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
    """Return the figures of a run's samples."""
    folds = Folds(bounds)
    for sample in samples:
        folds.add(sample)
    return folds.summary(end.windows if end is not None else ())


def summarize_recorded(recorded: Recorded, bounds: tuple[Bound, ...] = ()) -> RunSummary:
    """Return the figures of a run read from a file."""
    return summarize(recorded.samples, recorded.end, bounds)


def fairness(shares: Sequence[float]) -> float:
    """Jain's index: 1 if all n shares are equal, 1/n if one share is everything (Jain, Chiu and Hawe, 1984)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def bottleneck(generator: Generator, requests: int) -> str:
    """Say why the load generator was the bottleneck and not the server, or "" if it kept up."""
    reasons = []
    if generator.cpu_share > BUSY_SHARE:
        reasons.append(f"it used {generator.cpu_share:.0%} of the one core that it can use")
    if generator.lag_p99 > MUCH_LAG:
        reasons.append(f"its event loop ran {generator.lag_p99 * 1000:.0f} ms late (p99)")
    if requests and generator.late_sends > MANY_LATE * requests:
        reasons.append(f"{generator.late_sends} of {requests} requests began more than {LATE_SEND * 1000:.0f} ms late")
    return " and ".join(reasons)
