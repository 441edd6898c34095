"""File descriptors: as many as the connections need, and some left for everything else."""

from __future__ import annotations

import resource
from typing import Final

from aiaas.proxy.log import JsonLog
from aiaas.proxy.places import Places

# For what is neither a client nor an endpoint: listeners, files that are read again, the store, the log, probes.
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
    """Raise the limit to what `max_connections` needs; where the hard limit is lower, let fewer in, and say so."""
    wanted = descriptors_for(places.most)
    limit = raise_limit(wanted)
    if limit < wanted:
        asked = places.most
        places.bound_by(connections_for(limit))
        log.event("warning", "descriptors_few", limit=limit, needed=wanted, max_connections=asked, bound=places.most)


def raise_limit(wanted: int) -> int:
    """Raise this process' soft limit to `wanted` where it is lower, as far as the hard one lets it; the limit in force.

    The usual soft limit of 1,024 is for programs that use select(), and 500 clients would reach it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit
