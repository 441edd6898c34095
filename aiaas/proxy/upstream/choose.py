"""Choose the endpoint for a request. Pure: reads the endpoints' states, and changes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiaas.proxy.upstream.endpoint import EndpointState


def choose(
    endpoints: Sequence[EndpointState], tried: Sequence[EndpointState], turn: int, *, by_load: bool, tokens: int = 0
) -> EndpointState | None:
    """An endpoint that is free for a prompt of so many tokens, untried before tried, least in flight (ties by turn) or
    simply by turn."""
    candidates = [endpoint for endpoint in endpoints if endpoint.is_free(tokens)]
    fresh = [endpoint for endpoint in candidates if endpoint not in tried]
    candidates = fresh or candidates
    if not candidates:
        return None
    if len(candidates) == 1:
        return candidates[0]
    offset = turn % len(candidates)
    rotated = candidates[offset:] + candidates[:offset]
    return min(rotated, key=lambda endpoint: endpoint.pool.inflight) if by_load else rotated[0]
