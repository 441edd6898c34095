"""Measure the CPU that the gateway's process uses during a level of load: scrape its metrics port twice.

    reading(text, moment) -> Reading                 parse one scrape: pure
    between(before, after) -> GatewayUse | None      the use between two scrapes: pure
    CpuWatch.over(stage, ended)                      scrape when the measured part begins, and when it ends

Rules
- Each scrape records its own time, so a late scrape only changes the time span, and the figures stay correct.
- `/proc` counts CPU in steps of 10 ms, so a span shorter than SHORTEST_SPAN does not get a figure.
- If the second scrape reached another process (a replica behind one address, a restart), the level has no figure.
- If a scrape fails in the middle of a run, the level has no figure, and the run continues.
- Lines are selected by name instead of parsing all of them: with 10,000 keys in use there are 80,000 lines, and this
  event loop also measures the load's times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.client import HttpClient
from aiaas.httpclient.target import HttpTarget
from aiaas.loadtest.probe import get
from aiaas.loadtest.runner import Stage
from aiaas.loadtest.sample import GatewayUse

SHORTEST_SPAN: Final = 0.5  # seconds between two scrapes; a step of 10 ms is then 2 % of a core
CPU: Final = b"process_cpu_seconds_total"
STARTED: Final = b"process_start_time_seconds"
REQUESTS: Final = b"inference_requests_total"


class CpuReading(msgspec.Struct, frozen=True):
    """One scrape at `moment` (seconds of any one clock): CPU seconds and inference requests since the process started,
    and its start time."""

    moment: float
    cpu: float
    started: float
    requests: float


def reading(text: bytes, moment: float) -> CpuReading:
    """Parse a metrics text. Raises ValueError if the process metrics are missing."""
    sums: dict[bytes, float] = {}
    for line in text.splitlines():
        if line.startswith((CPU, STARTED, REQUESTS)):
            series, _, value = line.rpartition(b" ")
            name = series.partition(b"{")[0]
            sums[name] = sums.get(name, 0.0) + float(value)
    if CPU not in sums or STARTED not in sums:
        raise ValueError(f"{CPU.decode()} is missing")
    return CpuReading(moment, sums[CPU], sums[STARTED], sums.get(REQUESTS, 0.0))


def between(before: CpuReading, after: CpuReading) -> GatewayUse | None:
    """Return the use between two scrapes, or None if they are too close together or reached different processes."""
    span = after.moment - before.moment
    if span < SHORTEST_SPAN or after.started != before.started or after.cpu < before.cpu:
        return None
    cores, requests = (after.cpu - before.cpu) / span, (after.requests - before.requests) / span
    return GatewayUse(round(cores, 6), round(max(requests, 0.0), 6))


class CpuWatch:
    """Scrapes one metrics port. `now` is the clock that gives each scrape its time."""

    def __init__(self, target: HttpTarget, now: Callable[[], float]) -> None:
        self._client = HttpClient(target)
        self._now = now

    async def first_look(self) -> None:
        """Check, before any load, that the metrics port reports CPU.

        Raises:
            EnvironmentFault: the metrics port does not answer.
            CheckFailed: the answer does not report CPU.
        """
        answer = await get(self._client, "/metrics", None)
        try:
            reading(answer.content, 0.0)
        except ValueError as error:
            raise CheckFailed(
                f"{self._client.target.url}/metrics: {error}; give --metrics the gateway's `monitoring.metrics_port`, "
                "which reports CPU on systems with /proc"
            ) from error

    async def over(self, stage: Stage, ended: asyncio.Event) -> GatewayUse | None:
        """Measure the use in a stage that begins now: from its measured part to the end of its duration or `ended`."""
        if await _within(ended, stage.ramp + stage.warmup):
            return None
        before = await self._look()
        await _within(ended, stage.duration)
        after = await self._look()
        return None if before is None or after is None else between(before, after)

    async def _look(self) -> CpuReading | None:
        try:
            answer = await get(self._client, "/metrics", None)
            return reading(answer.content, self._now())
        except (EnvironmentFault, ValueError):
            return None

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()


async def _within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for the event for at most `seconds` (None: without a limit); return whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
