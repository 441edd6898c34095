"""Run the command of `--kill-replica` in the middle of a load test, and note when it began and how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from aiaas.loadtest.sample import Kill

_STDERR: Final = 2  # the command's output goes there: stdout is for the report


@dataclass(frozen=True, slots=True)
class KillOrder:
    """A command for the shell, and when to run it: seconds after the load begins."""

    command: str
    after: float


class KillRun:
    """One run of the command. `record` is None until it begins.

    now  seconds since the run's start
    """

    def __init__(self, order: KillOrder, now: Callable[[], float], ended: Callable[[Kill], None]) -> None:
        self._order = order
        self._now = now
        self._ended = ended
        self.record: Kill | None = None

    async def run(self) -> None:
        """Wait for the moment, and run the command to its end. If cancelled, kill it with all of its children."""
        await asyncio.sleep(self._order.after)
        self.record = Kill(self._order.command, round(self._now(), 6))
        process = await asyncio.create_subprocess_shell(
            self._order.command, stdin=asyncio.subprocess.DEVNULL, stdout=_STDERR, start_new_session=True
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        self.record = msgspec.structs.replace(self.record, ended=round(self._now(), 6), code=code)
        self._ended(self.record)
