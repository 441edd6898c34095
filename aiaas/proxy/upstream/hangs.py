"""An engine that hangs: its streams stand still while `/health` answers 200, as that comes from vLLM's API server.

The no-byte rule, on where `health.silent_after` is: if at least FLOWING_LEAST streams of an endpoint have begun, and
none of them has had a byte for so long, the endpoint goes down, and these streams end. These do not count:

- Streams that wait for their first text: a long prefill looks like that. They are left alone, too.
- Streams whose client is slow, since they are not read.
- A single stream: one answer alone may stand still for a reason of its own, such as a slow tool parser.

The rule costs nothing per event: it reads the time that each stream keeps anyway, once every LOOK_AT_STREAMS.

Its `/health` would bring the endpoint back with the next probe. So it must also write one token before it is up again.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from aiaas.openai import paths
from aiaas.proxy.upstream.ask import fetch
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.connection import Failure
from aiaas.proxy.upstream.endpoint import EndpointState

LOOK_AT_STREAMS: Final = 1.0  # seconds between two looks at the streams
LOOKS_PER_SILENCE: Final = 4  # at least, where `silent_after` is short
FLOWING_LEAST: Final = 2


async def watch_hangs(backend: BackendState) -> None:
    """Look for hung endpoints until cancelled; only where the rule is on."""
    loop = asyncio.get_running_loop()
    pause = min(LOOK_AT_STREAMS, backend.plan.health.silent_after / LOOKS_PER_SILENCE)
    while True:
        began = loop.time()
        await asyncio.sleep(pause)
        # A look that is late by so much was delayed by this process: bytes may lie unread in the kernel's buffers.
        if loop.time() - began < 2 * pause:
            for endpoint in (*backend.endpoints, *backend.leaving):
                end_if_hung(endpoint, loop.time())


def end_if_hung(endpoint: EndpointState, now: float) -> None:
    """Apply the no-byte rule at `now` (the loop's time)."""
    after = endpoint.backend.plan.health.silent_after
    if len(endpoint.streams) < FLOWING_LEAST:
        return
    flowing = []
    for stream in endpoint.streams:
        at = stream.last_byte()
        if at is not None and now - at < after:
            return
        if at is not None:
            flowing.append(stream)
    if len(flowing) >= FLOWING_LEAST:
        endpoint.report_hang(f"its {len(flowing)} streams had no byte for {after:g} s")
        for stream in flowing:
            stream.end_if_silent(now, f"no stream of its address had a byte for {after:g} s")


async def writes_again(endpoint: EndpointState, timeout: float) -> bool:
    """Ask an endpoint for one token, within `timeout` seconds. An answer with a status below 500 tells that it runs,
    also one from an engine without `/v1/completions`."""
    body = {"model": endpoint.backend.plan.served_models[0], "prompt": "a", "max_tokens": 1}
    answer = await fetch(endpoint, paths.COMPLETIONS, timeout, msgspec.json.encode(body))
    return not isinstance(answer, Failure) and answer.status < 500
