"""Notice that a file has changed, by polling.

Calling `stat` every WATCH_INTERVAL sees all the ways in which a config or key file changes: written in place, replaced
by a rename, or swapped by the symlink of a mounted ConfigMap or Secret (`..data`), where inotify on the file would see
nothing.

A file that is being written is not read until two looks in a row see the same state. A file that keeps being replaced
by renames is complete at every look, so it is read even if its state differs each time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

WATCH_INTERVAL = 0.5

# Real path, inode, size and time of change; None if the file does not exist.
Signature = tuple[str, int, int, int] | None


def signature(path: Path) -> Signature:
    """Return a value that changes when the file changes. Never raises."""
    try:
        status = path.stat()
        return (os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:
        return None


class FileLooks:
    """Decides, look by look, when a file has changed. `taken` is the file's state when it was last read."""

    def __init__(self, taken: Signature) -> None:
        self.taken = self._last = taken

    def has_changed(self, seen: Signature) -> bool:
        """Return whether to read the file now; `seen` is its state at this look."""
        last, self._last = self._last, seen
        if seen == self.taken:
            return False
        # The file was replaced since the last look, which had already seen a change.
        is_replaced = last != self.taken and seen is not None and last is not None and seen[:2] != last[:2]
        if seen != last and not is_replaced:
            return False
        self.taken = seen
        return True


class FileWatch:
    """Watches files that are read together.

    changed   called after each change, one call at a time
    crashed   called with an exception that `changed` raised; the watching goes on
    interval  seconds between two looks
    """

    def __init__(
        self,
        paths: Iterable[Path],
        changed: Callable[[], Awaitable[None]],
        crashed: Callable[[BaseException], None],
        interval: float = WATCH_INTERVAL,
    ) -> None:
        self._interval = interval
        self._changed = changed
        self._crashed = crashed
        self._woken = asyncio.Event()
        self.follow(paths)

    def wake(self) -> None:
        """Treat the file as changed at once: a user who sends SIGHUP has finished writing it."""
        self._woken.set()

    def follow(self, paths: Iterable[Path]) -> None:
        """Watch these files from now on, and report only their later changes."""
        self._looks = {path: FileLooks(signature(path)) for path in paths}

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._woken.wait()
            except TimeoutError:
                # Look at every file: `has_changed` remembers what it saw.
                changed = {path for path, looks in self._looks.items() if looks.has_changed(signature(path))}
                if not changed:
                    continue
            else:
                self._woken.clear()
                self.follow(tuple(self._looks))
            (error,) = await asyncio.gather(self._changed(), return_exceptions=True)
            if error is not None:
                self._crashed(error)
