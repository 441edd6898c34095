"""Logs as JSON lines on stdout: one for every request, and everything else.

A line is encoded by msgspec (0.4 us; the standard library's logging call is 8) and appended to a buffer that a thread
writes out every FLUSH_INTERVAL. So a reader that stops reading stdout stops the log and never the gateway: beyond
BACKLOG_LIMIT lines are dropped, and their number is the next thing that is written.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from aiaas.proxy.record import Record

FLUSH_INTERVAL = 0.1
BACKLOG_LIMIT = 16 * 1024 * 1024

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class JsonLog:
    """A log. `write` is called with whole lines from a thread of its own; `wall` gives POSIX seconds."""

    def __init__(self, write: Callable[[bytes], object], wall: Callable[[], float], level: str) -> None:
        self._write = write
        self._wall = wall
        self._encode = msgspec.json.Encoder().encode
        self._lines: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._writing = threading.Lock()
        self._second = (0, "")
        self.threshold = LEVELS[level]

    def event(self, level: str, event: str, **fields: Any) -> None:
        """Write down something that happened: `event` in snake_case, `fields` JSON-able, never a key or a body."""
        if LEVELS[level] >= self.threshold:
            self._append({"time": self._time(), "level": level, "event": event, **fields})

    def request(self, record: Record, duration: float) -> None:
        """The one line of a request, in the plan's words where it has them (contract section 8)."""
        if self.threshold > 20:
            return
        self._append(
            {
                "time": self._time(),
                "level": "info",
                "event": "inference_request",
                "request_id": record.request_id,
                "user": record.user,
                "key_id": record.key_id,
                "model": record.model,
                "backend": record.backend,
                "upstream": record.upstream,
                "endpoint": record.path,
                "status": record.status,
                "error_code": record.error_code,
                "stream": record.stream,
                "input_tokens": record.input_tokens,
                "output_tokens": record.output_tokens,
                "duration_seconds": round(duration, 6),
                "ttft_seconds": None if record.ttft is None else round(record.ttft, 6),
                "queue_seconds": record.queue_seconds,
                "retries": record.retries,
                "request_bytes": record.request_bytes,
                "response_bytes": record.sent,
                "ended_by": record.ended_by,
                "client_address": record.client_address,
            }
        )

    def _time(self) -> str:
        wall = self._wall()
        second = int(wall)
        if self._second[0] != second:
            self._second = (second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S."))
        return f"{self._second[1]}{int((wall - second) * 1000):03d}Z"

    def _append(self, fields: dict[str, Any]) -> None:
        if self._size > BACKLOG_LIMIT:
            self._dropped += 1
            return
        line = self._encode(fields)
        self._lines.append(line)
        self._size += len(line)

    async def flush_forever(self) -> None:
        """Write out what gathers, until cancelled. One write at a time; a stuck one holds up only the log."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FLUSH_INTERVAL)
            if self._lines and not self._writing.locked():
                await loop.run_in_executor(None, self.flush)

    def flush(self) -> None:
        """Write out what has gathered, now, in the caller's thread."""
        with self._writing:
            lines, self._lines = self._lines, []
            self._size = 0
            dropped, self._dropped = self._dropped, 0
            if dropped:
                lines.append(
                    self._encode({"time": self._time(), "level": "error", "event": "log_lines_lost", "lines": dropped})
                )
            if lines:
                lines.append(b"")
                self._write(b"\n".join(lines))


def write_to(fd: int) -> Callable[[bytes], None]:
    """A writer that puts every byte on `fd`; a reader that has gone is not an error of the gateway's."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                os.set_blocking(fd, True)
            except OSError:
                return

    return write
