"""The expected report of a load test of the simulator: its script, and the figures that follow from it. Pure.

A request's first token is due `ttft` after it, each further one `itl` after the one before, each of these times varied
by up to the share `jitter` (evenly, as `aiaas simulate --jitter` does). Users of a closed loop send when their last
answer is whole; an open loop sends at a constant rate. Nothing takes time but the script: no network, no client.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

RUNS: Final = 50  # that many runs are played through where chance has a part: the mean rates then stand within 0.3 %

Figures = dict[str, float]
KEYS: Final = ("ttft_p50", "ttft_p99", "itl_mean", "itl_p50", "itl_p99", "tpot_p50", "tpot_p99", "e2e_p50", "e2e_p99",
               "tokens_per_second", "requests_per_second")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Script:
    """One scenario: what is sent, and how it is answered. Seconds.

    users, rate   one of them: that many at once, or that many a second
    """

    title: str
    users: int | None
    rate: float | None
    requests: int
    tokens: int
    ttft: float
    itl: float
    jitter: float = 0.0


def truth(script: Script) -> Figures:
    """The figures of the script, by `KEYS`: durations in seconds, rates per second over the whole run."""
    draw = random.Random(0)
    runs = [_play(script, draw) for _ in range(RUNS if script.jitter else 1)]
    answers = [answer for run in runs for answer in run[0]]
    seconds = sum(run[1] for run in runs) / len(runs)
    gaps = [gap for answer in answers for gap in answer[1:]]
    firsts, whole = [answer[0] for answer in answers], [sum(answer) for answer in answers]
    paces = [sum(answer[1:]) / (script.tokens - 1) for answer in answers]
    figures = {"itl_mean": sum(gaps) / len(gaps)}
    for name, values in (("ttft", firsts), ("itl", gaps), ("tpot", paces), ("e2e", whole)):
        values.sort()
        figures |= {f"{name}_p{percent}": at(values, percent) for percent in (50, 99)}
    figures["requests_per_second"] = script.requests / seconds
    figures["tokens_per_second"] = script.requests * script.tokens / seconds
    return figures


def at(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile."""
    return ordered[max(-(-len(ordered) * percent // 100), 1) - 1]


def _play(script: Script, draw: random.Random) -> tuple[list[list[float]], float]:
    """The answers, each as its times between tokens, and the seconds until the last of them is whole."""
    low, high = 1 - script.jitter, 1 + script.jitter
    free = [0.0] * (script.users or 0)
    answers, last = [], 0.0
    for number in range(script.requests):
        due = number / script.rate if script.rate else free.pop(free.index(min(free)))
        times = (script.ttft, *[script.itl] * (script.tokens - 1))
        answers.append([time * draw.uniform(low, high) for time in times])
        end = due + sum(answers[-1])
        free.append(end)
        last = max(last, end)
    return answers, last
