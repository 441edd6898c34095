"""Log and count events outside of a request: refused heads, dropped clients, internal errors."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Final

from aiaas.errors import ApiError
from aiaas.proxy.client.cors import Cors
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics

# Seconds between two log lines about refused connections: a flood brings thousands a second.
TURNED_AWAY_INTERVAL: Final = 60.0


class Incidents:
    """Logs and counts them. `new_id` makes a request id; `cors` is that of the Plan in force."""

    def __init__(
        self, log: JsonLog, metrics: Metrics, new_id: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cors: Cors | None = None
        self._clock = clock
        self._turned_away: Counter[str] = Counter()
        self._told_at: dict[str, float] = {}
        self._log = log
        self._metrics = metrics
        self._new_id = new_id

    def internal_error(self, error: BaseException | None) -> None:
        """An unexpected exception reached aiohttp: log it with its traceback, once."""
        shown = "".join(traceback.format_exception(error))
        self._log.event("error", "internal_error", error=repr(error), traceback=shown)

    def refused_head(self, peer: str, error: ApiError, origin: str | None) -> bytes:
        """Count and log a refused head. Returns header lines for the answer: the id in the log, and CORS."""
        request_id = self._new_id()
        self._metrics.responded(error.status, error.code)
        self._log.event(
            "info",
            "request_refused",
            request_id=request_id,
            status=error.status,
            error_code=error.code,
            reason=error.message,
            client_address=peer,
        )
        cors = b"" if self.cors is None else self.cors.lines(origin)
        return b"x-request-id: %b\r\n%b" % (request_id.encode(), cors)

    def dropped(self, peer: str, reason: str) -> None:
        """A connection was closed without an answer."""
        self._log.event("info", "connection_dropped", reason=reason, client_address=peer)

    def turned_away(self, reason: str) -> None:
        """A connection was refused, or closed to make room: `evicted`, `address`, `full` or `descriptors`.

        Log at most one line a minute for each event, with the counts since the last line.
        """
        self._metrics.turned_away(reason)
        self._turned_away[reason] += 1
        if reason == "descriptors":
            if self._is_due("descriptors_exhausted"):
                self._log.event("warning", "descriptors_exhausted", times=self._turned_away.pop(reason))
        elif self._is_due("connections_turned_away"):
            without = self._turned_away.pop("descriptors", 0)
            self._log.event("warning", "connections_turned_away", **self._turned_away)
            self._turned_away = Counter(descriptors=without) if without else Counter()

    def _is_due(self, event: str) -> bool:
        now = self._clock()
        if now - self._told_at.get(event, -TURNED_AWAY_INTERVAL) < TURNED_AWAY_INTERVAL:
            return False
        self._told_at[event] = now
        return True
