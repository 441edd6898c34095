"""What happens outside of a request, in the log and in the metrics: refused heads, dropped clients, faults of ours."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from aiaas.errors import ApiError
from aiaas.proxy.log import JsonLog
from aiaas.proxy.metrics import Metrics


class Incidents:
    """Tells of them. `new_id` makes a request id."""

    def __init__(self, log: JsonLog, metrics: Metrics, new_id: Callable[[], str]) -> None:
        self._log = log
        self._metrics = metrics
        self._new_id = new_id

    def internal_error(self, error: BaseException | None) -> None:
        """An exception that no code expected reached aiohttp: log it whole, once."""
        shown = "".join(traceback.format_exception(error))
        self._log.event("error", "internal_error", error=repr(error), traceback=shown)

    def refused_head(self, peer: str, error: ApiError) -> bytes:
        """A head never became a request. Gives header lines for the answer: the id that stands in the log."""
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
        return b"x-request-id: %b\r\n" % request_id.encode()

    def dropped(self, peer: str, reason: str) -> None:
        """A connection was ended without a word to its client."""
        self._log.event("info", "connection_dropped", reason=reason, client_address=peer)
