"""Logs as JSON lines on stdout: one for every request, and everything else.

A line is encoded by msgspec (0.4 us; the standard library's logging call is 8) and appended to a buffer that a thread
writes out every FLUSH_INTERVAL. So a reader that stops reading stdout stops the log and never the gateway: beyond
BACKLOG_LIMIT lines are dropped, and their number is the next thing that is written.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import stat
import sys
import termios
import threading
import time
import traceback
from asyncio import get_running_loop, sleep
from collections.abc import Callable
from datetime import UTC, datetime
from math import floor, inf
from typing import Any

import msgspec

from aiaas.proxy.telemetry.record import Record, Resumption

FLUSH_INTERVAL = 0.1
BACKLOG_LIMIT = 16 * 1024 * 1024

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

# How often a writer that waits for its reader looks whether it shall give up.
POLL_INTERVAL = 0.1
# Between two tries to get the lock. Its holder usually has it for less than a millisecond.
LOCK_PAUSE = 0.005

# Formatting three digits for each line would cost as much as the rest of its encoding.
_MILLISECONDS = tuple(f".{number:03d}Z" for number in range(1000))

INFERENCE = "inference_request"
OTHER = "request"


class _Line(msgspec.Struct, frozen=True, gc=False):
    """A request's line, in the order that it is written in (half of a dict's cost)."""

    time: str
    level: str
    event: str
    request_id: str
    user: str | None
    key_id: str | None
    model: str | None
    backend: str | None
    upstream: str | None
    endpoint: str
    status: int
    error_code: str | None
    reason: str | None
    priority_class: str | None = msgspec.field(name="class")
    stream: bool
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    duration_seconds: float
    ttft_seconds: float | None
    queue_seconds: float
    retries: int
    session_turn: str | None
    request_bytes: int
    response_bytes: int
    ended_by: str
    client_address: str
    trace_id: str | msgspec.UnsetType
    # Of a stream that broke off although its backend has `resume`:
    resumed: int | msgspec.UnsetType = msgspec.UNSET
    resume_outcome: str | msgspec.UnsetType = msgspec.UNSET
    resume_way: str | msgspec.UnsetType = msgspec.UNSET
    resume_reason: str | msgspec.UnsetType = msgspec.UNSET
    resume_gap_seconds: float | msgspec.UnsetType = msgspec.UNSET
    first_upstream: str | msgspec.UnsetType = msgspec.UNSET


class JsonLog:
    """A log. `wall` gives POSIX seconds.

    write   called with whole lines, from a thread of its own; False says that they were not written
    worker  which of several processes this is: stands in the line of each event
    """

    def __init__(
        self, write: Callable[[bytes], object], wall: Callable[[], float], level: str, worker: int | None = None
    ) -> None:
        self._write = write
        self._wall = wall
        self._worker = {} if worker is None else {"worker": worker}
        self._encode = msgspec.json.Encoder(enc_hook=repr).encode
        self._lines: list[bytes] = []
        self._handed: list[bytes] = []  # to a thread, which empties it when it begins to write
        self._size = 0
        self._dropped = 0
        self._writing = threading.Lock()
        self._second = -inf  # the last one that was shown, and how
        self._shown = ""
        self.threshold = LEVELS[level]

    def event(self, level: str, event: str, **fields: Any) -> None:
        """Write down something that happened: `event` in snake_case, `fields` JSON-able, never a key or a body."""
        if LEVELS[level] >= self.threshold:
            self._append({"time": self._time(), "level": level, "event": event, **self._worker, **fields})

    def request(self, record: Record, duration: float, event: str = INFERENCE) -> None:
        """The one line of a request, in the words of docs/logs.md."""
        if self.threshold > 20:
            return
        rejection = record.rejection
        line = _Line(
            self._time(),
            "info",
            event,
            record.request_id,
            record.user,
            record.key_id if rejection is None else rejection.key_id,
            record.model,
            record.backend,
            record.upstream,
            record.path,
            record.status,
            record.error_code,
            None if rejection is None else rejection.reason,
            record.priority_class,
            record.stream,
            record.input_tokens,
            record.output_tokens,
            record.cached_tokens,
            _microseconds(duration),
            None if record.ttft is None else _microseconds(record.ttft),
            _microseconds(record.queue_seconds) if record.queue_seconds else 0.0,
            record.retries,
            record.session_turn,
            record.request_bytes,
            record.sent,
            record.ended_by,
            record.client_address,
            msgspec.UNSET if record.trace is None else record.trace.trace_id,
        )
        self._append(line if record.resumption is None else _with_resumption(line, record.resumption))

    def _time(self) -> str:
        wall = self._wall()
        past = wall - self._second
        if not 0.0 <= past < 1.0:
            self._second = float(floor(wall))
            self._shown = datetime.fromtimestamp(self._second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            past = wall - self._second
        return self._shown + _MILLISECONDS[floor(past * 1000.0)]

    def _append(self, fields: dict[str, Any] | _Line) -> None:
        if self._size > BACKLOG_LIMIT:
            self._dropped += 1
            return
        try:
            line = self._encode(fields)
        except UnicodeEncodeError:  # bytes of a client that were no UTF-8, in a path or in a traceback
            named = msgspec.structs.asdict(fields) if isinstance(fields, _Line) else fields
            line = self._encode({name: _printable(value) for name, value in named.items()})
        self._lines.append(line)
        self._size += len(line)

    async def flush_forever(self) -> None:
        """Write out what gathers, until cancelled. One write at a time; a stuck one holds up only the log."""
        loop = get_running_loop()
        while True:
            await sleep(FLUSH_INTERVAL)
            if self._lines or self._dropped:
                lines = self._handed = self._take()
                count = len(lines)
                if await loop.run_in_executor(None, self._write_out, lines) is False:
                    self._dropped += count

    def flush(self) -> None:
        """Write out what has gathered, now, in the caller's thread, behind what another thread still writes.

        If `flush_forever` was cancelled before its thread began, its lines are still there.
        """
        self._write_out(self._handed)
        if self._lines or self._dropped:
            self._write_out(self._take())

    def _take(self) -> list[bytes]:
        """Take all lines. Call this in the thread that appends, so that no line falls between two lists."""
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._lines.append(
                self._encode({"time": self._time(), "level": "error", "event": "log_lines_lost", "lines": dropped})
            )
        lines, self._lines = self._lines, []
        self._size = 0
        return lines

    def _write_out(self, lines: list[bytes]) -> object:
        with self._writing:
            batch = lines.copy()
            lines.clear()
            return not batch or self._write(b"\n".join([*batch, b""]))


class FdWriter:
    """Puts bytes on a file descriptor, and waits for its reader as long as it is not told to hurry.

    Written in pieces that never block: a file takes all, an empty pipe half of its buffer, and any other descriptor
    PIPE_BUF bytes once it is writable. (O_NONBLOCK instead would hold for everybody who shares the terminal.) For each
    piece the GIL is taken from the event loop twice: with PIPE_BUF alone, 10,842 times for 6,100 requests.

    lock  descriptor of a file that all processes which write to `fd` have open: who writes holds a lock on it, so that
          no line gets into the middle of another. (A pipe keeps only PIPE_BUF bytes together; a line may be longer.)
          The lock of a process that dies is free again.
    """

    def __init__(self, fd: int, lock: int | None = None) -> None:
        self._fd = fd
        self._lock = lock
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._give_up_at: float | None = None
        self._torn = False  # the last line was not written whole: the disk was full
        mode = os.fstat(fd).st_mode
        self._is_file, self._is_pipe = stat.S_ISREG(mode), stat.S_ISFIFO(mode)

    def hurry(self, seconds: float) -> None:
        """The process wants to end: from `seconds` from now on a reader that takes nothing is given up."""
        self._give_up_at = time.monotonic() + seconds

    def __call__(self, data: bytes) -> bool:
        """Write all of `data`; False where the reader has gone, the disk is full, or the time was up."""
        if self._lock is None:
            return self._put(data)
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # another process writes, maybe to a reader that does not read
                if self._is_late():
                    return False
                time.sleep(LOCK_PAUSE)
        try:
            return self._put(data)
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _put(self, data: bytes) -> bool:
        view = memoryview(b"\n" + data if self._torn else data)
        while view:
            if not self._poll.poll(POLL_INTERVAL * 1000):
                if self._is_late():
                    return False
                continue
            try:
                written = os.write(self._fd, view[: self._piece()])
            except BlockingIOError:
                continue
            except OSError:
                return False
            self._torn = view[written - 1] != ord("\n")
            view = view[written:]
        return True

    def _piece(self) -> int:
        """How many bytes can be written without blocking, now that something can be written."""
        if self._is_file:
            return sys.maxsize
        if sys.platform == "linux" and self._is_pipe:
            unread = int.from_bytes(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)), sys.byteorder)
            if not unread:
                return max(fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ) // 2, select.PIPE_BUF)
        return select.PIPE_BUF

    def _is_late(self) -> bool:
        return self._give_up_at is not None and time.monotonic() >= self._give_up_at


class LibraryLog(logging.Handler):
    """Turns the libraries' messages (`logging`) into lines of this log; otherwise Python prints warnings on stderr."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """`logging`: one record."""
        level = "error" if record.levelno >= logging.ERROR else "warning"
        shown = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else None
        self._log.event(level, "library", logger=record.name, message=record.getMessage(), traceback=shown)


def _with_resumption(line: _Line, resumption: Resumption) -> _Line:
    gap = resumption.gap
    return msgspec.structs.replace(
        line,
        resumed=int(resumption.outcome == "resumed"),
        resume_outcome=resumption.outcome or "client_left",
        resume_way=resumption.way or msgspec.UNSET,
        resume_reason=resumption.reason or msgspec.UNSET,
        resume_gap_seconds=msgspec.UNSET if gap is None else _microseconds(gap),
        first_upstream=resumption.first,
    )


def _microseconds(seconds: float) -> float:
    """Rounded to microseconds, for a quarter of what `round` costs."""
    return floor(seconds * 1e6 + 0.5) / 1e6


def _printable(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
