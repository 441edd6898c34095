"""Choose the endpoint for a request. Pure: reads the endpoints' states, and changes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from aiaas.proxy.upstream.affinity import load_bound, number_of, weights

if TYPE_CHECKING:
    from aiaas.proxy.upstream.endpoint import EndpointState

FIRST_LOOKS: Final = 4  # endpoints, in a prefix's order, that are looked at before all are


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


def choose_by_prefix(
    endpoints: Sequence[EndpointState], tried: Sequence[EndpointState], prefix: bytes, tokens: int = 0
) -> EndpointState | None:
    """An endpoint that is free for a prompt of so many tokens, untried before tried; of these the first in the prefix's
    own order that does not have more in flight than its share.
    """
    up = [endpoint for endpoint in endpoints if endpoint.up]
    if not up:
        return None
    share = load_bound([endpoint.pool.inflight for endpoint in up])
    number = number_of(prefix)
    order = weights(number, [endpoint.number for endpoint in up])
    for _ in range(min(FIRST_LOOKS, len(up))):  # one of these is nearly always it, and to sort them all takes longer
        at = order.index(max(order))
        endpoint = up[at]
        if endpoint.is_free(tokens) and endpoint.pool.inflight <= share and endpoint not in tried:
            return endpoint
        order[at] = -1
    free = [endpoint for endpoint in up if endpoint.is_free(tokens)]
    candidates = [endpoint for endpoint in free if endpoint not in tried] or free
    within = [endpoint for endpoint in candidates if endpoint.pool.inflight <= share]
    if within:
        order = weights(number, [endpoint.number for endpoint in within])
        return within[order.index(max(order))]
    # Those that have less are full or tried.
    return min(candidates, key=lambda endpoint: endpoint.pool.inflight, default=None)
