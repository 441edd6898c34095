"""The life of a managed engine, decided purely: what happens next, and what is said about it.

    (its port: another aiaas still has it) -> starting -> healthy -> dead -> (wait) -> starting -> ...
                                                  \\---------------> dead -> (wait) ...
    healthy <-> not answering -> dead                              stop() from anywhere -> stopped

Rules, none of which reads a clock (`now` is seconds on any monotonic clock):

1. The n-th death in a row is followed by a wait of 1, 2, 4, ... 60 s: long enough not to burn a core on a crash loop,
   short enough that a one-off death costs little against the minutes that a model takes to load.
2. A minute of health ends the row: the next death counts as the first.
3. An engine that was never healthy is given up after 5 deaths: a wrong model name or too small a GPU does not heal by
   waiting. One that was healthy once is restarted for ever: its settings are known to work.
4. One that is not healthy within `start_timeout` counts as dead; so does one that was healthy and is frozen (`looks`).
5. Changed settings end the row, too, and an engine that was given up is started with them. One that is healthy keeps
   its own.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

FIRST_WAIT = 1.0  # seconds
LONGEST_WAIT = 60.0  # seconds
HEALTHY_FOR_RESET = 60.0  # seconds
DEATHS_BEFORE_GIVING_UP = 5  # in a row, without having been healthy ever: 15 s of waiting between them


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another aiaas has claimed the port: it drains, and its engine with it."""

    port: int


@dataclass(frozen=True, slots=True)
class Starting:
    """A process is about to be started; `attempt` counts from 1."""

    attempt: int
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StillLoading:
    """Not healthy yet, `seconds` after its start; `last_line` is what it last wrote, maybe empty."""

    seconds: float
    last_line: str


@dataclass(frozen=True, slots=True)
class Healthy:
    """/health answered 200, `seconds` after its start."""

    seconds: float


@dataclass(frozen=True, slots=True)
class NotAnswering:
    """A healthy engine has not answered /health with 200 for `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AnswersAgain:
    """An engine that did not answer /health does so again, without a restart."""


@dataclass(frozen=True, slots=True)
class Died:
    """The process ended, or was ended since it did not become healthy in time or was frozen (`exit_code` is then None).

    exit_code   as a shell shows it: 128 + N after signal N
    cause       in the engine's own words, or why it was ended; maybe empty
    last_lines  what it wrote last, oldest first
    seconds     since its start
    """

    exit_code: int | None
    cause: str
    last_lines: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Changed:
    """Its settings were changed while it was not healthy; it starts with them now."""


@dataclass(frozen=True, slots=True)
class Restarting:
    """The next start is `in_seconds` away."""

    in_seconds: float


@dataclass(frozen=True, slots=True)
class GaveUp:
    """No further start: `deaths` in a row without ever having been healthy."""

    deaths: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """Stopped as asked, after `seconds`; `killed` where it had not left by itself within the grace."""

    seconds: float
    killed: bool


_Sign = StillLoading | Healthy | NotAnswering | AnswersAgain
Event = Waiting | Starting | _Sign | Died | Changed | Restarting | GaveUp | Stopped


@dataclass(frozen=True, slots=True)
class Life:
    """Where an engine stands. `now` values are seconds of one monotonic clock.

    attempt     starts so far
    deaths      in a row
    started_at  of the present process
    healthy_at  of the present process, or None while it loads
    """

    attempt: int = 0
    deaths: int = 0
    ever_healthy: bool = False
    started_at: float = 0.0
    healthy_at: float | None = None

    def start(self, now: float, argv: tuple[str, ...]) -> tuple[Life, Starting]:
        """A process is started."""
        life = replace(self, attempt=self.attempt + 1, started_at=now, healthy_at=None)
        return life, Starting(life.attempt, argv)

    def become_healthy(self, now: float) -> tuple[Life, Healthy]:
        """/health answered 200."""
        return replace(self, ever_healthy=True, healthy_at=now), Healthy(now - self.started_at)

    def die(self, now: float) -> tuple[Life, Restarting | GaveUp]:
        """The process is gone, unasked: wait how long, or give up?"""
        calm = self.healthy_at is not None and now - self.healthy_at >= HEALTHY_FOR_RESET
        life = replace(self, deaths=1 if calm else self.deaths + 1, healthy_at=None)
        if not life.ever_healthy and life.deaths >= DEATHS_BEFORE_GIVING_UP:
            return life, GaveUp(life.deaths)
        return life, Restarting(backoff(life.deaths))


def backoff(deaths: int) -> float:
    """Seconds to wait after the `deaths`-th death in a row, from 1."""
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(deaths - 1, 16)))


def describe(event: Event) -> str:
    """One plain line for a log or a terminal, without the engine's name."""
    match event:
        case Waiting(port=port):
            return f"another aiaas still has an engine on port {port}, maybe to finish its streams; waiting for its end"
        case Starting(attempt=1, argv=argv):
            return f"starting: {' '.join(argv)}"
        case Starting(attempt=attempt):
            return f"starting, attempt {attempt}"
        case StillLoading(seconds=seconds, last_line=line):
            return f"still loading after {seconds:.0f} s" + (f": {line}" if line else "")
        case Healthy(seconds=seconds):
            return f"healthy after {seconds:.1f} s"
        case NotAnswering(seconds=seconds):
            return f"no answer to /health for {seconds:.0f} s, so it gets no requests"
        case AnswersAgain():
            return "answers /health again"
        case Died(exit_code=code, cause=cause, seconds=seconds):
            how = "ended" if code is None else "died"
            parts = (f"{how} after {seconds:.1f} s", "" if code is None else describe_exit(code), cause)
            return ": ".join(filter(None, parts))
        case Changed():
            return "its settings have changed, so it starts anew"
        case Restarting(in_seconds=seconds):
            return f"restarting in {seconds:.0f} s"
        case GaveUp(deaths=deaths):
            return f"given up after {deaths} failed starts: its models answer 503 until a reload brings other settings"
        case Stopped(seconds=seconds, killed=killed):
            return f"stopped after {seconds:.1f} s" + (" (killed: it did not leave by itself)" if killed else "")


def describe_exit(code: int) -> str:
    """An exit code in words, as far as there are any: 137 is SIGKILL, which nobody but the kernel sends unasked."""
    if code > 128 and code - 128 in {int(known) for known in signal.Signals}:
        name = signal.Signals(code - 128).name
        return f"{name}, the kernel's out-of-memory killer perhaps" if name == "SIGKILL" else name
    return f"exit code {code}"
