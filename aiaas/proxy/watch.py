"""Notice that a file has changed, without help from the file system.

A poll of `stat` every POLL_INTERVAL sees all the ways in which a config or key file changes: written in place, renamed
over, or swapped by the symlink of a mounted ConfigMap or Secret (`..data`), where inotify on the file sees nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

POLL_INTERVAL = 0.5

# Real path, inode, size and time of change; None where there is no such file.
Signature = tuple[str, int, int, int] | None


def signature(path: Path) -> Signature:
    """What tells one state of a file from another. Never raises."""
    try:
        status = path.stat()
        return (os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:
        return None


class FileWatch:
    """One file.

    changed  called after each change, one call at a time
    crashed  called with an exception that escaped `changed`, which must not end the watching
    """

    def __init__(
        self, path: Path, changed: Callable[[], Awaitable[None]], crashed: Callable[[BaseException], None]
    ) -> None:
        self._path = path
        self._changed = changed
        self._crashed = crashed
        self._seen = signature(path)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look now, and take it as changed (SIGHUP)."""
        self._woken.set()

    def follow(self, path: Path) -> None:
        """Watch another file from now on; its present state counts as known."""
        self._path = path
        self._seen = signature(path)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                async with asyncio.timeout(POLL_INTERVAL):
                    await self._woken.wait()
            except TimeoutError:
                if signature(self._path) == self._seen:
                    continue
            self._woken.clear()
            self._seen = signature(self._path)
            (error,) = await asyncio.gather(self._changed(), return_exceptions=True)
            if error is not None:
                self._crashed(error)
