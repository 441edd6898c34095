"""Read a changed config for a running gateway, and find out which changes can be put in force now.

An engine that is not healthy takes changed settings at once; a healthy engine waits for a restart. Only the engine
itself knows whether it is healthy, so a config with changed engine settings is compiled twice: the second time with the
settings that the engines took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from aiaas.config.model import Config
from aiaas.config.restart import with_engines
from aiaas.plan.model import EnginePlan
from aiaas.plan.read import Reading, read

# Offers engines their settings, by backend; returns the backends whose engines run with them.
OfferEngines = Callable[[Mapping[str, EnginePlan]], Collection[str]]


async def reread(
    path: Path, env: Mapping[str, str], before: Config | None, offer: OfferEngines, text: str | None = None
) -> Reading:
    """Run `aiaas.plan.read.read` in a thread, for a gateway that runs with `before`. Raises like `read`."""
    loop = asyncio.get_running_loop()
    reading = await loop.run_in_executor(None, partial(read, path, env, text, before=before))
    if before is None or not reading.engines or reading.loaded.config is None:
        return reading
    ahead = with_engines(before, reading.loaded.config, offer(reading.engines))
    if ahead == before:
        return reading
    return await loop.run_in_executor(None, partial(read, path, env, text, before=ahead))
