"""Notice that files have changed, by polling.

Calling `stat` every WATCH_INTERVAL sees all the ways in which a config or key file changes: written in place, replaced
by a rename, or swapped by the symlink of a mounted ConfigMap or Secret (`..data`), where inotify on the file would see
nothing.

A file that is being written is not read until two looks in a row see the same state. A file that keeps being replaced
by renames is complete at every look, so it is read even if its state differs each time.

Files that belong together, as a config and its overlays do, are read together: as soon as one has changed and none is
being written.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

WATCH_INTERVAL = 0.5

# Real path, inode, size and time of change; None if the file does not exist.
Signature = tuple[str, int, int, int] | None
Signatures = tuple[Signature, ...]  # of files that belong together


def signature(path: Path) -> Signature:
    """Return a value that changes when the file changes. Never raises."""
    try:
        status = path.stat()
        return (os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:
        return None


class FileLooks:
    """Decides, look by look, when files have changed. `taken` is their state when they were last read."""

    def __init__(self, taken: Signatures) -> None:
        self.taken = self._last = taken

    def has_changed(self, seen: Signatures) -> bool:
        """Return whether to read the files now; `seen` is their state at this look."""
        last, self._last = self._last, seen
        if seen == self.taken or not all(map(_is_complete, self.taken, last, seen)):
            return False
        self.taken = seen
        return True


def _is_complete(taken: Signature, last: Signature, seen: Signature) -> bool:
    """Return whether nobody is writing the file: it did not change since the last look, or it was replaced since, and
    the last look had already seen a change."""
    is_replaced = last != taken and seen is not None and last is not None and seen[:2] != last[:2]
    return seen == last or is_replaced


class FileWatch:
    """Watches a file, or several that belong together.

    changed   called after each change, one call at a time
    crashed   called with an exception that `changed` raised; the watching goes on
    interval  seconds between two looks
    """

    def __init__(
        self,
        paths: Sequence[Path],
        changed: Callable[[], Awaitable[None]],
        crashed: Callable[[BaseException], None],
        interval: float = WATCH_INTERVAL,
    ) -> None:
        self._paths = paths
        self._interval = interval
        self._changed = changed
        self._crashed = crashed
        self._looks = FileLooks(self._seen())
        self._woken = asyncio.Event()
        self.follow(paths)

    def wake(self) -> None:
        """Treat the files as changed at once: a user who sends SIGHUP has finished writing them."""
        self._woken.set()

    def follow(self, paths: Sequence[Path]) -> None:
        """Watch other files from now on, and report only their later changes."""
        self._paths = paths
        self._looks = FileLooks(self._seen())

    def _seen(self) -> Signatures:
        return tuple(map(signature, self._paths))

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._woken.wait()
            except TimeoutError:
                if not self._looks.has_changed(self._seen()):
                    continue
            else:
                self._woken.clear()
                self._looks = FileLooks(self._seen())
            (error,) = await asyncio.gather(self._changed(), return_exceptions=True)
            if error is not None:
                self._crashed(error)
