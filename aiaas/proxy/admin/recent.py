"""The last requests that ended, and the last errors that aiaas answered with: bounded, and kept as they are.

An ended request is its `Record`, which exists anyway: keeping it costs an append, while the views that the admin
endpoint shows (`views.py`) are made when somebody asks. A kept Record drops its references to endpoints and to
other requests.
"""

from __future__ import annotations

from collections import Counter, deque
from sys import intern
from typing import Final

import msgspec

from aiaas.errors import ApiError
from aiaas.proxy.client.answers import header_lines
from aiaas.proxy.telemetry.record import Record

MOST_ENDED: Final = 10_000  # about 9 MiB
MOST_REFUSED: Final = 1000


class RefusedRequest(msgspec.Struct, frozen=True):
    """A request that was refused, and the text that its client got."""

    record: Record
    message: str


class LastRequests:
    """The newest entries are last.

    by_code  errors that aiaas answered with since the start, by error code
    """

    def __init__(self) -> None:
        self.ended: deque[Record] = deque(maxlen=MOST_ENDED)
        self.refused: deque[RefusedRequest] = deque(maxlen=MOST_REFUSED)
        self.by_code: Counter[str] = Counter()

    def end(self, record: Record, duration: float) -> None:
        """Keep a request that has ended."""
        record.duration = duration
        record.path = intern(record.path)  # one of a few: each request brings a string of its own
        record.own_lines = b""
        record.event_text = 0.0
        record.on_first_text = record.trace = None
        self.ended.append(record)

    def refuse(self, record: Record, error: ApiError) -> None:
        """Keep a request that is answered with `error`."""
        self.by_code[error.code] += 1
        self.refused.append(RefusedRequest(record, error.message))
        if not record.limit_lines:
            record.limit_lines = header_lines(error.headers)
