"""Streams leave an endpoint that drains, a few at a time, so that a rollout need not wait for the longest answer.

Only those that another endpoint can continue (`KeptRelay.move`); the others end where they are. Each that leaves has
its prompt read again elsewhere, so not all go at once: MOVED_AT_ONCE each MOVE_INTERVAL, at most as many as find a free
slot.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.kept_relay import KeptRelay

MOVED_AT_ONCE: Final = 8
MOVE_INTERVAL: Final = 0.5  # seconds


def move_streams(endpoint: EndpointState, loop: asyncio.AbstractEventLoop) -> None:
    """Move some streams, and look again for as long as it drains and has streams that may go on: one that has just
    begun can leave later."""
    streams = [stream for stream in endpoint.streams if isinstance(stream, KeptRelay)]
    room = min(MOVED_AT_ONCE, sum(_room(other) for other in endpoint.backend.endpoints if other is not endpoint))
    for stream in streams:
        if room < 1:
            break
        room -= stream.move()
    if streams and endpoint.emptying:
        loop.call_later(MOVE_INTERVAL, move_streams, endpoint, loop)


def _room(endpoint: EndpointState) -> float:
    """How many requests it can take now."""
    if not endpoint.up:
        return 0
    return math.inf if endpoint.bound is None else max(0, endpoint.bound - endpoint.pool.inflight)
