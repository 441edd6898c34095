"""How the last reading of each file ended: the config, the key file, the certificate."""

from __future__ import annotations

from collections.abc import Callable

from aiaas.proxy.admin.model import ReloadView


class Reloads:
    """The last reading of each kind of file. `wall` gives POSIX seconds."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._last: dict[str, ReloadView] = {}

    def note(self, what: str, error: str | None = None) -> None:
        """`what` was read, and is in force unless there was an `error`."""
        now, before = self._wall(), self._last.get(what)
        success = now if error is None else None if before is None else before.last_success
        self._last[what] = ReloadView(what, error is None, now, success, error)

    @property
    def views(self) -> list[ReloadView]:
        """One for each kind that was read."""
        return list(self._last.values())
