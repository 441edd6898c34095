"""File descriptors: bound the connections so that descriptors remain for everything else.

`aiaas serve` has raised its soft limit to the hard one, and workers inherit that.
"""

from __future__ import annotations

import resource
from typing import Final

from aiaas.proxy.client.places import Places
from aiaas.proxy.telemetry.log import JsonLog

# For everything but clients and their requests: listeners, reloaded files, the store, the log, probes.
RESERVED: Final = 64
# A request has its client's connection and one to an endpoint.
PER_CONNECTION: Final = 2


def descriptors_for(connections: int) -> int:
    """How many descriptors `connections` clients may need."""
    return connections * PER_CONNECTION + RESERVED


def connections_for(descriptors: int) -> int:
    """How many clients may be connected where there are `descriptors`."""
    return max((descriptors - RESERVED) // PER_CONNECTION, 0)


def bound_connections(places: Places, log: JsonLog) -> None:
    """Accept fewer connections, and log that, if the descriptor limit is too low for `max_connections`."""
    needed, asked = descriptors_for(places.most), places.most
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    places.bound_by(connections_for(limit))  # also for a reload that asks for more
    if limit < needed:
        log.event("warning", "descriptors_few", limit=limit, needed=needed, max_connections=asked, bound=places.most)
