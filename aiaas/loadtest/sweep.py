"""A sweep: raise the load level by level until the output stops growing. Pure.

Levels are users or rates: `users=1-128` doubles from 1 to 128, `rate=5,10,20` lists them. The sweep ends early when two
consecutive levels did not exceed the best output before them by more than GROWTH, or when GIVE_UP of the requests fail.

The knee is the last level whose output still grew with the load: from one level to the next, the output must grow
by at least HALF of the load's growth (load x 2: output x 1.5). Levels that miss the SLO cannot be the knee, so with an
SLO the knee is the load that can be promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec

from aiaas.errors import UsageError
from aiaas.loadtest.summary import Summary

GROWTH: Final = 0.05  # of the output; less is within the noise of a level of a few seconds
HALF: Final = 0.5
GIVE_UP: Final = 0.5  # share of requests that fail
MOST_LEVELS: Final = 64
SWEEP_FORM: Final = "write users=1-128 (doubling) or rate=5,10,20"


class Sweep(msgspec.Struct, frozen=True):
    """The quantity that varies ("users" or "rate"), and its levels in ascending order."""

    what: str
    levels: tuple[float, ...]


def parse_sweep(text: str) -> Sweep:
    """Parse a sweep. Raises UsageError."""
    what, _, values = text.partition("=")
    try:
        low, dash, high = values.partition("-")
        levels = _doubled(float(low), float(high)) if dash else tuple(float(value) for value in values.split(","))
    except ValueError as error:
        raise UsageError(f"--sweep: {text!r} is not a sweep; {SWEEP_FORM}") from error
    if what not in ("users", "rate"):
        raise UsageError(f"--sweep: {what!r} cannot be varied; {SWEEP_FORM}")
    ascending = all(low < high for low, high in pairwise(levels))
    whole = what == "rate" or all(level == int(level) for level in levels)
    if not levels or len(levels) > MOST_LEVELS or not ascending or not whole or not 0 < levels[0] <= levels[-1] <= 1e6:
        raise UsageError(
            f"--sweep: {text!r}: levels must be ascending numbers above 0, at most {MOST_LEVELS}; {SWEEP_FORM}"
        )
    return Sweep(what, levels)


def _doubled(low: float, high: float) -> tuple[float, ...]:
    if not 0 < low <= high <= 1e6:
        raise ValueError("levels must ascend")
    levels = [low]
    while levels[-1] * 2 < high:
        levels.append(levels[-1] * 2)
    return tuple(levels) if high == low else (*levels, high)


def goes_on(done: Sequence[Summary]) -> bool:
    """Whether the next level can still show anything new."""
    if done and done[-1].error_rate >= GIVE_UP:
        return False
    if len(done) < 3:
        return True
    best = max(_output(summary) for summary in done[:-2])
    return any(_output(summary) > best * (1 + GROWTH) for summary in done[-2:])


def knee(done: Sequence[Summary]) -> Summary | None:
    """Return the last level whose output grew with the load; None if even the first failed or missed the SLO."""
    found: Summary | None = None
    for summary in done:
        if not summary.ok or not summary.held or summary.error_rate >= GIVE_UP:
            break
        if found is not None:
            load = summary.level / found.level - 1
            if _output(summary) / _output(found) - 1 < HALF * load:
                break
        found = summary
    return found


def still_grows(done: Sequence[Summary]) -> bool:
    """Whether the last level's output still grew with the load: the knee then lies beyond it."""
    return bool(done) and knee(done) is done[-1]


def _output(summary: Summary) -> float:
    """Return output tokens per second, or answers per second if the server does not count tokens."""
    return summary.output_tokens_per_second or summary.requests_per_second or 1e-9
