"""Is the memory of a real `aiaas serve` flat over a million stream events?

The benchmark's backend streams to clients that read to the end and ask again, each event in a write of its own, so that
most reach the gateway alone. After a warm-up, in which allocators and caches reach their size, the resident memory is
sampled; the slope of the straight line through the samples is the growth in bytes an event. The bound is far below the
smallest Python object: one leaked for every event would be 30 bytes an event, and a kilobyte for every request 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import uvloop

from tests.bench import wire
from tests.e2e.processes import Gateway, running_gateway
from tests.ports import free_port
from tests.soak.finding import Finding, slope

STREAMS: Final = 32
EVENTS_EACH: Final = 500
_PACE: Final = wire.Stream(events=EVENTS_EACH, per_second=800.0)
# Bytes an event.
BOUND: Final = 1.0
SAMPLES: Final = 100
# This share of the measured events is streamed first, unmeasured.
WARM_UP: Final = 0.3
_SECTIONS: Final = {"rate_limit": {"requests_per_minute": 10_000_000}}


class BrokenStreamError(Exception):
    """A stream ended before it was whole."""


@dataclass
class Course:
    """Samples of (events so far, resident bytes), and the seconds that they took."""

    samples: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """Bytes an event."""
        return slope(self.samples)


@contextlib.contextmanager
def gateway_before_a_fast_backend(folder: Path) -> Iterator[Gateway]:
    """Both up; ended with the block."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.backend", str(port)]
    backend = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        with running_gateway(folder, {"url": f"http://127.0.0.1:{port}"}, sections=_SECTIONS) as gateway:
            yield gateway
    finally:
        backend.kill()
        backend.wait()


def memory(gateway: Gateway, events: int, say: Callable[[str], None]) -> list[Finding]:
    """Stream `events` events, after a warm-up, and see what that did to the memory."""
    course = uvloop.run(_stream(gateway, events))
    first, last = course.samples[0][1] / 2**20, course.samples[-1][1] / 2**20
    say(f"memory: {events} events in {course.seconds:.0f} s, {events / course.seconds:.0f} a second")
    seen = f"{course.growth:+.3f} bytes an event ({first:.1f} MiB at first, {last:.1f} MiB at last)"
    return [Finding(f"growth over {events:,} events", seen, f"at most {BOUND:g}", course.growth <= BOUND)]


async def _stream(gateway: Gateway, events: int) -> Course:
    process = psutil.Process(gateway.pid)
    port = int(gateway.url.rpartition(":")[2])
    warm_up, every = int(events * WARM_UP), max(EVENTS_EACH, events // SAMPLES)
    course = Course()
    streamed = 0
    began = time.monotonic()

    async def client() -> None:
        nonlocal streamed, began
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while streamed < warm_up + events:
            writer.write(wire.request(gateway.key, _PACE))
            await _read_to_the_end(reader)
            before, streamed = streamed, streamed + EVENTS_EACH
            if streamed <= warm_up:
                began = time.monotonic()
            elif before // every != streamed // every:
                course.samples.append((streamed, process.memory_info().rss))
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(client())
    course.seconds = time.monotonic() - began
    return course


async def _read_to_the_end(reader: asyncio.StreamReader) -> None:
    """Raises BrokenStreamError where the end comes before all events, or another answer than a stream."""
    events, end = 0, b""
    while not end.endswith(wire.END_OF_CHUNKS):
        data = await asyncio.wait_for(reader.read(1 << 18), 30)
        if not data:
            raise BrokenStreamError(f"after {events} events")
        events += data.count(b'"choices"')
        end = (end + data)[-16:]
    if not 0.9 * EVENTS_EACH <= events <= EVENTS_EACH + 1:  # a word that two reads share is not counted
        raise BrokenStreamError(f"{events} events, ending in {end!r}")
