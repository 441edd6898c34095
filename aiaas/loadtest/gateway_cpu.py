"""What the gateway's process used while a level of load was measured: two looks at its metrics port.

    reading(text, moment) -> Reading                 one look: pure
    between(before, after) -> GatewayUse | None      what lies between two: pure
    CpuWatch.over(stage, ended)                      looks when the measured part begins, and when it ends

Rules
- The moments are those of the looks, so a look that comes late makes no figure wrong, only its span another one.
- `/proc` counts CPU in steps of 10 ms: over less than SHORTEST_SPAN nothing is said.
- A process that is another one than before (a replica behind one address, a restart) tells nothing.
- A look that fails in the middle of a run costs that level's figure and not the run.
- Lines are picked by their names rather than parsed one and all: with 10,000 keys in use there are 80,000 of them, and
  this is the event loop that takes the times of the load.
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

SHORTEST_SPAN: Final = 0.5  # seconds between two looks; a step of 10 ms is then 2 % of a core
CPU: Final = b"process_cpu_seconds_total"
STARTED: Final = b"process_start_time_seconds"
REQUESTS: Final = b"inference_requests_total"


class CpuReading(msgspec.Struct, frozen=True):
    """One look, at `moment` (seconds of any one clock): CPU seconds and inference requests since the process began,
    and when that was."""

    moment: float
    cpu: float
    started: float
    requests: float


def reading(text: bytes, moment: float) -> CpuReading:
    """An exposition's figures. Raises ValueError where it has none of the process."""
    sums: dict[bytes, float] = {}
    for line in text.splitlines():
        if line.startswith((CPU, STARTED, REQUESTS)):
            series, _, value = line.rpartition(b" ")
            name = series.partition(b"{")[0]
            sums[name] = sums.get(name, 0.0) + float(value)
    if CPU not in sums or STARTED not in sums:
        raise ValueError(f"there is no {CPU.decode()}")
    return CpuReading(moment, sums[CPU], sums[STARTED], sums.get(REQUESTS, 0.0))


def between(before: CpuReading, after: CpuReading) -> GatewayUse | None:
    """What was used between two looks; None where they are too close together, or not at the same process."""
    span = after.moment - before.moment
    if span < SHORTEST_SPAN or after.started != before.started or after.cpu < before.cpu:
        return None
    cores, requests = (after.cpu - before.cpu) / span, (after.requests - before.requests) / span
    return GatewayUse(round(cores, 6), round(max(requests, 0.0), 6))


class CpuWatch:
    """Looks at one metrics port. `now` is the clock of its moments."""

    def __init__(self, target: HttpTarget, now: Callable[[], float]) -> None:
        self._client = HttpClient(target)
        self._now = now

    async def first_look(self) -> None:
        """Whether there is anything to see, before any load.

        Raises:
            EnvironmentFault: nothing answers there.
            CheckFailed: what answers does not tell its CPU.
        """
        answer = await get(self._client, "/metrics", None)
        try:
            reading(answer.content, 0.0)
        except ValueError as error:
            raise CheckFailed(
                f"{self._client.target.url}/metrics: {error}; --metrics names the gateway's `monitoring.metrics_port`, "
                "which tells its CPU where there is a /proc"
            ) from error

    async def over(self, stage: Stage, ended: asyncio.Event) -> GatewayUse | None:
        """What is used in the measured part of a stage that begins now, up to its duration's end or to `ended`."""
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
        """Drop the connections."""
        self._client.close()


async def _within(event: asyncio.Event, seconds: float | None) -> bool:
    """Whether it comes about in so many seconds; None waits for it."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
