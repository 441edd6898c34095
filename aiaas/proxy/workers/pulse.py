"""Does a worker hang, or did its supervisor not listen? Decided purely: a worker is killed for it, with its streams.

A worker says every BEAT_INTERVAL, from its event loop, that it is there. One that was silent for HANG_PATIENCE hangs:
it was stopped, or something holds its loop. Silence counts only while the supervisor listened. It looks every
PULSE_INTERVAL; where a look comes late, the supervisor itself was stopped, the machine was suspended, or it is so busy
that the workers wait for a CPU, too. Then all counting starts again.

`now` is seconds on any monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BEAT_INTERVAL: Final = 1.0
PULSE_INTERVAL: Final = 1.0
# Seconds that a look may come late. Below that, what workers sent meanwhile is read in the same turn of the loop.
PULSE_LATE: Final = 1.0
# A worker that is only slow is not killed: its loop may be held for half of this.
HANG_PATIENCE: Final = 10.0
# Before its first word: Python has to load the program, on a machine that may be busy.
START_PATIENCE: Final = 60.0
# Silence, in seconds, after which a worker no longer counts among those that answer.
ANSWERS_WITHIN: Final = 3.0


@dataclass(frozen=True, slots=True)
class Listening:
    """When the supervisor looked last, and since when it has listened without a break."""

    looked: float
    since: float

    def look(self, now: float) -> Listening:
        """Return the state after another look."""
        is_late = now - self.looked > PULSE_INTERVAL + PULSE_LATE
        return Listening(now, now if is_late else self.since)

    def silence(self, heard: float, now: float) -> float:
        """Seconds of silence while the supervisor listened; `heard` is when the worker last spoke, or was started."""
        return max(0.0, now - max(heard, self.since))

    def hangs(self, heard: float, has_spoken: bool, now: float) -> bool:
        """Whether it is to be killed and replaced."""
        return self.silence(heard, now) >= (HANG_PATIENCE if has_spoken else START_PATIENCE)

    def answers(self, heard: float, now: float) -> bool:
        """Whether it counts among those that serve."""
        return self.silence(heard, now) < ANSWERS_WITHIN
