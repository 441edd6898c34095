"""A timer that many requests share: each request moves the due time, and the loop's timer stays as it is.

A loop's timer costs a request 3 us to make and to cancel, and nearly every request ends long before it is due. So the
previous request's timer is kept while it is early enough; when it fires, the alarm arms it again if the due time has
moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """One for each client connection. Times are the loop's."""

    __slots__ = ("_armed_for", "_call", "_due", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._call: Callable[[], None] | None = None
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = 0.0

    def set(self, due: float, call: Callable[[], None]) -> None:
        """Call `call` at `due`, instead of what was set before."""
        self._call = call
        self._due = due
        if self._handle is None or due < self._armed_for:
            self._arm()

    def clear(self) -> None:
        """Call nothing."""
        self._call = None

    def close(self) -> None:
        """Cancel the loop's timer."""
        self._call = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = self._due
        self._handle = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        self._handle = None
        if self._call is None:
            return
        if self._due > self._armed_for:
            self._arm()
            return
        call, self._call = self._call, None
        call()
