"""Check whether an engine that was healthy still is. `Looks` decides purely; the checks ("looks") use HTTP.

vLLM answers /health from its API server. A frozen API server therefore shows as a missing answer, but a frozen engine
core does not: /health answers 200 while every request hangs. To find that, `makes_progress` asks for one token after a
request has timed out. The engine is frozen if it neither returns the token nor does anything else for as long as the
config lets a request be silent. A slow prefill is progress: the metrics of the core change with each step.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Final

from aiaas.engines.command import HOST

LOOK_INTERVAL: Final = 5.0  # seconds from the start of one look at a healthy engine to the start of the next
LOOK_TIMEOUT: Final = 4.0  # seconds that the engine may take to answer a look
LOOK_LATE: Final = 2.0  # seconds; a look that is later than this was delayed by us, not by the engine
DOWN_AFTER: Final = 2  # failed looks in a row, after which the engine gets no more requests
FROZEN_AFTER: Final = 6  # failed looks in a row (30 s), after which we end it; a restart costs minutes and every stream
MOST_METRICS: Final = 4 * 1024 * 1024  # bytes; vLLM sends 70 kB

_HEADERS: Final = f"Host: {HOST}\r\nConnection: close\r\n"
# Metrics that the engine core reports with each step. The API server counts the others even while the core is frozen.
_OF_THE_CORE: Final = (
    b"vllm:generation_tokens_total",
    b"vllm:prompt_tokens_total",
    b"vllm:iteration_tokens_total",
    b"vllm:kv_cache_usage_perc",
    b"vllm:num_requests_",
)


@dataclass(frozen=True, slots=True)
class Looks:
    """Failed looks in a row. `now` and `began` are seconds of one monotonic clock.

    looked_at  when the last look ended
    since      when the engine last answered well
    """

    looked_at: float
    since: float
    failed: int = 0

    def after(self, answered: bool, began: float, now: float) -> Looks:
        """Add a look that lasted from `began` to `now`."""
        if answered:
            return Looks(now, now)
        # A look much too late or too long does not count: this process was stopped, or the machine suspended.
        was_late = began - self.looked_at > LOOK_INTERVAL + LOOK_LATE or now - began > LOOK_TIMEOUT + LOOK_LATE
        return Looks(now, now) if was_late else Looks(now, self.since, self.failed + 1)

    @property
    def is_down(self) -> bool:
        """Whether the engine should get no more requests."""
        return self.failed >= DOWN_AFTER

    @property
    def is_frozen(self) -> bool:
        """Whether the engine should be restarted."""
        return self.failed >= FROZEN_AFTER


def pause_before_look(began: float, now: float) -> float:
    """Seconds from `now` to the next look, if the last look began at `began`."""
    return max(0.0, began + LOOK_INTERVAL - now)


async def answers_health(port: int, timeout: float) -> bool:
    """Whether GET /health at 127.0.0.1:port gives 200 within `timeout` seconds."""
    try:
        status, _ = await _ask(port, f"GET /health HTTP/1.1\r\n{_HEADERS}\r\n".encode(), timeout, status_only=True)
    except (OSError, TimeoutError):
        return False
    return status == 200


async def makes_progress(port: int, model: str, patience: float) -> bool:
    """Ask for one token. False if neither an answer nor a change in the core's metrics comes within `patience` seconds.

    True also if /metrics does not answer: then /health does not answer either, and the ordinary looks detect that.
    """
    try:
        before = await _core_metrics(port)
    except (OSError, TimeoutError):
        return True
    body = json.dumps({"model": model, "prompt": "a", "max_tokens": 1})
    request = (
        f"POST /v1/completions HTTP/1.1\r\n{_HEADERS}Content-Type: application/json\r\n"
        f"Content-Length: {len(body.encode())}\r\n\r\n{body}"
    )
    try:
        await _ask(port, request.encode(), patience, status_only=True)
    except TimeoutError:
        try:
            return await _core_metrics(port) != before
        except (OSError, TimeoutError):
            return True
    except OSError:
        return True
    return True


async def _core_metrics(port: int) -> list[bytes]:
    request = f"GET /metrics HTTP/1.1\r\n{_HEADERS}\r\n".encode()
    _, body = await _ask(port, request, LOOK_TIMEOUT, status_only=False)
    return [line for line in body.splitlines() if line.startswith(_OF_THE_CORE)]


async def _ask(port: int, request: bytes, timeout: float, *, status_only: bool) -> tuple[int, bytes]:
    """Send a request; return the status and the rest of the answer. Raises OSError and TimeoutError."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(request)
            line = await reader.readline()
            rest = bytearray()
            while not status_only and len(rest) < MOST_METRICS and (data := await reader.read(65536)):
                rest += data
        except ValueError as error:  # a line longer than the reader's limit
            raise ConnectionError("not an HTTP server") from error
        finally:
            writer.close()
    status = line.split(b" ")[1:2]
    return int(status[0]) if status and status[0].isdigit() else 0, bytes(rest)
