"""Decide, purely, whether a worker hangs or its supervisor did not listen: a hung worker is killed with its streams.

A worker sends a beat from its event loop every BEAT_INTERVAL. A worker that was silent for HANG_PATIENCE hangs: its
process was stopped, or something blocks its loop. Silence counts only while the supervisor listened. The supervisor
looks every PULSE_INTERVAL; if a look is late, the supervisor itself was stopped, the machine was suspended, or the
machine is so busy that the workers wait for a CPU, too. Then all silence is counted from zero again.

`now` is seconds on any monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BEAT_INTERVAL: Final = 1.0
PULSE_INTERVAL: Final = 1.0
# Seconds by which a look may be late. With less delay, the loop reads the beats sent in the meantime in the same turn.
PULSE_LATE: Final = 1.0
# Seconds of silence after which a worker hangs. A slow worker is not killed: its loop may block for half of this.
HANG_PATIENCE: Final = 10.0
# Seconds before a worker's first beat: Python has to load the program, on a machine that may be busy.
START_PATIENCE: Final = 60.0
# Seconds of silence after which a worker no longer counts as answering.
ANSWERS_WITHIN: Final = 3.0


@dataclass(frozen=True, slots=True)
class Listening:
    """When the supervisor looked last (`looked`), and since when it has listened without a break (`since`)."""

    looked: float
    since: float

    def look(self, now: float) -> Listening:
        """Return the state after another look."""
        is_late = now - self.looked > PULSE_INTERVAL + PULSE_LATE
        return Listening(now, now if is_late else self.since)

    def silence(self, heard: float, now: float) -> float:
        """Return the seconds of silence while the supervisor listened; `heard` is the time of the worker's last message
        or of its start."""
        return max(0.0, now - max(heard, self.since))

    def hangs(self, heard: float, has_spoken: bool, now: float) -> bool:
        """Return whether to kill and replace the worker."""
        return self.silence(heard, now) >= (HANG_PATIENCE if has_spoken else START_PATIENCE)

    def answers(self, heard: float, now: float) -> bool:
        """Return whether the worker counts as answering."""
        return self.silence(heard, now) < ANSWERS_WITHIN
