"""The life cycle of a managed engine: decide the next step and describe each event. Pure.

    (its port: another aiaas still has it) -> starting -> healthy -> dead -> (wait) -> starting -> ...
                                                  \\---------------> dead -> (wait) ...
    healthy <-> not answering -> dead                              stop() from anywhere -> stopped

Rules (`now` is seconds on any monotonic clock; nothing here reads a clock):

1. Wait 1, 2, 4, ... at most LONGEST_WAIT seconds after the n-th death in a row: long enough for a crash loop not to use
   up a core, short next to the minutes that a model takes to load.
2. An engine that stays healthy for HEALTHY_FOR_RESET starts a new row: its next death counts as the first.
3. Give up an engine that was never healthy after DEATHS_BEFORE_GIVING_UP: waiting does not fix a wrong model name or a
   small GPU. Restart an engine that was healthy once for ever, since its settings are known to work.
4. An engine that is not healthy within `start_timeout` counts as dead; so does a frozen engine (`looks`).
5. Changed settings also start a new row, and restart an engine that was given up. A healthy engine keeps its settings.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

FIRST_WAIT = 1.0  # seconds
LONGEST_WAIT = 60.0  # seconds
HEALTHY_FOR_RESET = 60.0  # seconds
DEATHS_BEFORE_GIVING_UP = 5  # in a row, of an engine that was never healthy; the waits between them add up to 15 s


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another aiaas has claimed the port: it is draining, and so is its engine."""

    port: int


@dataclass(frozen=True, slots=True)
class Starting:
    """The engine's process is about to start; `attempt` counts from 1."""

    attempt: int
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StillLoading:
    """Not healthy yet, `seconds` after its start; `last_line` is the engine's last output line, perhaps empty."""

    seconds: float
    last_line: str


@dataclass(frozen=True, slots=True)
class Healthy:
    """/health answered 200, `seconds` after the engine's start."""

    seconds: float


@dataclass(frozen=True, slots=True)
class NotAnswering:
    """A healthy engine has not answered /health with 200 for `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AnswersAgain:
    """An engine that had stopped answering /health answers again, without a restart."""


@dataclass(frozen=True, slots=True)
class Died:
    """The process ended, or we ended it since it was not healthy in time or was frozen (`exit_code` is then None).

    exit_code   as a shell shows it: 128 + N after signal N
    cause       the engine's own error message, or our reason to end it; perhaps empty
    last_lines  the engine's last output lines, oldest first
    seconds     since its start
    """

    exit_code: int | None
    cause: str
    last_lines: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Changed:
    """The settings changed while the engine was not healthy; it starts with the new settings now."""


@dataclass(frozen=True, slots=True)
class Restarting:
    """The engine starts again in `in_seconds`."""

    in_seconds: float


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The engine is not started again: it died `deaths` times in a row and was never healthy."""

    deaths: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """Stopped on request, after `seconds`; `killed` if it had not exited by itself within the grace."""

    seconds: float
    killed: bool


_Sign = StillLoading | Healthy | NotAnswering | AnswersAgain
Event = Waiting | Starting | _Sign | Died | Changed | Restarting | GaveUp | Stopped


@dataclass(frozen=True, slots=True)
class Life:
    """The state of an engine. Times are seconds of one monotonic clock.

    attempt     number of starts so far
    deaths      number of deaths in a row
    started_at  when the present process started
    healthy_at  when the present process became healthy, or None while it loads
    """

    attempt: int = 0
    deaths: int = 0
    ever_healthy: bool = False
    started_at: float = 0.0
    healthy_at: float | None = None

    def start(self, now: float, argv: tuple[str, ...]) -> tuple[Life, Starting]:
        """Record the start of a process."""
        life = replace(self, attempt=self.attempt + 1, started_at=now, healthy_at=None)
        return life, Starting(life.attempt, argv)

    def become_healthy(self, now: float) -> tuple[Life, Healthy]:
        """Record that /health answered 200."""
        return replace(self, ever_healthy=True, healthy_at=now), Healthy(now - self.started_at)

    def die(self, now: float) -> tuple[Life, Restarting | GaveUp]:
        """Record that the process died, and decide: restart it after a wait, or give up."""
        calm = self.healthy_at is not None and now - self.healthy_at >= HEALTHY_FOR_RESET
        life = replace(self, deaths=1 if calm else self.deaths + 1, healthy_at=None)
        if not life.ever_healthy and life.deaths >= DEATHS_BEFORE_GIVING_UP:
            return life, GaveUp(life.deaths)
        return life, Restarting(backoff(life.deaths))


def backoff(deaths: int) -> float:
    """Seconds to wait after the `deaths`-th death in a row; `deaths` counts from 1."""
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(deaths - 1, 16)))


def describe(event: Event) -> str:
    """One line for a log or a terminal, without the engine's name."""
    match event:
        case Waiting(port=port):
            return f"another aiaas still runs an engine on port {port}, perhaps to finish streams; waiting for its end"
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
            return "settings changed, starting again with them"
        case Restarting(in_seconds=seconds):
            return f"restarting in {seconds:.0f} s"
        case GaveUp(deaths=deaths):
            return f"gave up after {deaths} failed starts: its models answer 503 until a reload changes its settings"
        case Stopped(seconds=seconds, killed=killed):
            return f"stopped after {seconds:.1f} s" + (" (killed: it did not exit by itself)" if killed else "")


def describe_exit(code: int) -> str:
    """Describe an exit code. 137 is SIGKILL; if nobody sent that, the kernel did, for lack of memory."""
    if code > 128 and code - 128 in {int(known) for known in signal.Signals}:
        name = signal.Signals(code - 128).name
        return f"{name}, perhaps from the kernel's out-of-memory killer" if name == "SIGKILL" else name
    return f"exit code {code}"
