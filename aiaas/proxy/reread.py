"""Read a changed config for a running gateway, and find out which changes can be put in force now.

An engine that is not healthy takes changed settings at once; a healthy engine waits for a restart. Only the engine
itself knows whether it is healthy, so a config with changed engine settings is read twice: the second time with the
settings that the engines took. If the file has changed meanwhile, the engines do not run with its settings: both begin
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from aiaas.plan.model import EnginePlan
from aiaas.proxy.aside import PlanReading, ReadRequest, read_aside

# Offers engines their settings, by backend; returns the backends whose engines run with them.
OfferEngines = Callable[[Mapping[str, EnginePlan]], Collection[str]]


async def reread(
    files: tuple[Path, ...],
    env: Mapping[str, str],
    before: bytes | None,
    offer: OfferEngines,
    texts: tuple[str, ...] | None = None,
) -> PlanReading:
    """Read a config's files, or `texts` of them, for a gateway that runs with `before` (`Plan.config`). Raises like
    `read_aside`."""
    loop = asyncio.get_running_loop()
    request = ReadRequest(files, dict(env), texts, before)
    while True:
        reading = await loop.run_in_executor(None, read_aside, request)
        accepted = frozenset(offer(reading.engines)) if reading.engines else frozenset()
        if not accepted:
            return reading
        again = await loop.run_in_executor(None, read_aside, replace(request, accepted=accepted))
        if again.plan is None or all(
            backend.engine == reading.engines[backend.name]
            for backend in again.plan.backends
            if backend.name in accepted
        ):
            return again
