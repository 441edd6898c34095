"""Choose the endpoint for a request. Pure: reads the endpoints' states, and changes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiaas.proxy.upstream.affinity import load_bound, weight

if TYPE_CHECKING:
    from aiaas.proxy.upstream.backends import EndpointState


def choose(
    endpoints: Sequence[EndpointState], tried: Sequence[EndpointState], turn: int, *, by_load: bool
) -> EndpointState | None:
    """An endpoint that is free, untried before tried, least in flight (ties by turn) or simply by turn."""
    candidates = [endpoint for endpoint in endpoints if endpoint.is_free]
    fresh = [endpoint for endpoint in candidates if endpoint not in tried]
    candidates = fresh or candidates
    if not candidates:
        return None
    if len(candidates) == 1:
        return candidates[0]
    offset = turn % len(candidates)
    rotated = candidates[offset:] + candidates[:offset]
    return min(rotated, key=lambda endpoint: endpoint.pool.inflight) if by_load else rotated[0]


def choose_by_prefix(
    endpoints: Sequence[EndpointState], tried: Sequence[EndpointState], prefix: bytes
) -> EndpointState | None:
    """An endpoint that is free, untried before tried; of these the first in the prefix's own order that does not
    have more in flight than its share.
    """
    up = [endpoint for endpoint in endpoints if endpoint.up]
    candidates = [endpoint for endpoint in up if endpoint.is_free]
    candidates = [endpoint for endpoint in candidates if endpoint not in tried] or candidates
    if not candidates:
        return None
    share = load_bound([endpoint.pool.inflight for endpoint in up])
    within = [endpoint for endpoint in candidates if endpoint.pool.inflight <= share]
    if not within:  # those that have less are full or tried
        return min(candidates, key=lambda endpoint: endpoint.pool.inflight)
    return max(within, key=lambda endpoint: weight(prefix, endpoint.plan.url))
