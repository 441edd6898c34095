"""Count the fates of requests when a replica was killed: of those in flight then, and of later ones. Pure.

Rules
- A request was in flight if it was sent before the command began and ended after it; it had begun if it had an output
  event by then.
- A stream is whole if it ended without an error, each of its parts came once, its finish_reason is not one of GAVE_UP,
  and it has as many tokens as the request fixed (`ignore_eos`). If it ended without an error and lacks one of these, it
  is spoiled: to a client it looks whole.
- A stream in flight that is not whole was lost.
- Requests that were aborted on purpose do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import Final, Literal

import msgspec

from aiaas.httpclient.answer import HTTP_ERROR
from aiaas.loadtest.sample import Kill, Sample
from aiaas.loadtest.stats import Spread, spread

Fate = Literal["whole", "spoiled", "error_event", "cut", "refused"]

GAVE_UP: Final = frozenset({"abort", "error"})  # vLLM's finish reasons for an answer that it did not complete
_REFUSED: Final = frozenset({"connect", "tls", "generator"})


class Fates(msgspec.Struct, frozen=True):
    """Requests by their fate; the others add up to `requests`.

    spoiled       ended like a whole stream, but is not one
    error_events  ended by an error event
    cut           the connection was closed or reset, or the answer was not complete in time
    refused       a status of 400 or more, or no connection
    """

    requests: int = 0
    whole: int = 0
    spoiled: int = 0
    error_events: int = 0
    cut: int = 0
    refused: int = 0

    @property
    def lost(self) -> int:
        """Those that are not whole."""
        return self.requests - self.whole


class Killed(msgspec.Struct, frozen=True):
    """The figures.

    begun     requests in flight that had an output event when the command began
    gaps      of each of them, the longest gap between two output events that ended after that, seconds; None without
    refusals  `refused` of both groups by error (`http_503`, `connect`)
    spoiled_by  spoiled streams in flight by what is wrong (`faults_of`); one stream may count several times
    """

    kill: Kill
    in_flight: Fates
    begun: int
    later: Fates
    gaps: Spread | None
    refusals: dict[str, int]
    spoiled_by: dict[str, int]

    @property
    def held(self) -> bool:
        """Whether the command succeeded while streams were in flight, and none of them was lost."""
        return self.kill.code == 0 and self.in_flight.requests > 0 and not self.in_flight.lost


def killed(samples: Iterable[Sample], kill: Kill) -> Killed:
    """Return the figures of a run; `samples` may lack those that ended before the command began."""
    flying: Counter[Fate] = Counter()
    later: Counter[Fate] = Counter()
    refusals: Counter[str] = Counter()
    spoiled_by: Counter[str] = Counter()
    gaps: list[float] = []
    begun = 0
    for sample in samples:
        if sample.aborted or sample.end < kill.at:
            continue
        fate = fate_of(sample)
        if fate == "refused":
            refusals[sample.error] += 1
        if _sent(sample) > kill.at:
            later[fate] += 1
            continue
        flying[fate] += 1
        spoiled_by.update(faults_of(sample) if fate == "spoiled" else ())
        if sample.first is not None and sample.first <= kill.at:
            begun += 1
            gaps += _longest_gap(sample, kill.at)
    return Killed(
        kill, _fates(flying), begun, _fates(later), spread(gaps), dict(refusals.most_common()), dict(spoiled_by)
    )


def fate_of(sample: Sample) -> Fate:
    """Return the fate of a request that ended."""
    if sample.error == "in_stream":
        return "error_event"
    if sample.error.startswith(HTTP_ERROR) or sample.error in _REFUSED:
        return "refused"
    if sample.error:
        return "cut"
    return "spoiled" if faults_of(sample) else "whole"


def faults_of(sample: Sample) -> list[str]:
    """Return the parts that a stream has not once, and `completion_tokens` if their number is wrong."""
    parts = sample.parts
    if parts is None:
        return []
    counts = {
        "id": parts.ids,
        "role": parts.roles,
        "finish_reason": 0 if parts.finish in GAVE_UP else parts.finishes,
        "usage": parts.usages,
        "[DONE]": parts.dones,
    }
    found = [name for name, count in counts.items() if count != 1]
    if parts.asked and sample.output_tokens != parts.asked:
        found.append("completion_tokens")
    return found


def _sent(sample: Sample) -> float:
    return sample.began if sample.sent is None else sample.sent


def _longest_gap(sample: Sample, at: float) -> list[float]:
    """The longest gap, seconds, among those that ended after `at`; empty without one."""
    first = sample.first or 0.0
    ends = accumulate(sample.gaps)
    gaps = [gap for gap, end in zip(sample.gaps, ends, strict=True) if first + end / 1e6 > at]
    return [max(gaps) / 1e6] if gaps else []


def _fates(counts: Counter[Fate]) -> Fates:
    return Fates(
        requests=counts.total(),
        whole=counts["whole"],
        spoiled=counts["spoiled"],
        error_events=counts["error_event"],
        cut=counts["cut"],
        refused=counts["refused"],
    )
