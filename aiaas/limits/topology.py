"""Find the servers of a store: one, the primary that sentinels name, or the nodes of a cluster and their slots.

The two questions and their answers (redis.io/docs, "Sentinel client spec" and "Cluster specification"):

    SENTINEL GET-MASTER-ADDR-BY-NAME name    host and port of the primary; nil where the sentinel does not know it
    CLUSTER SLOTS                            [first slot, last slot, [host, port, ...] of the primary, replicas...]
    -MOVED slot host:port                    another node has this slot now: ask it, and fetch the map again
    -ASK slot host:port                      this slot is moving there: ask that node this once, after ASKING

Each is one command on a connection like any other, with its users, TLS and patience. (A client library for them would
have cost each process 19 MB and 0.2 s at its start, and would have needed these settings a second time.)
"""

from __future__ import annotations

import ssl
from binascii import crc_hqx
from collections.abc import Iterable
from typing import Final, NamedTuple

from aiaas.limits.connection import StoreAwayError, StoreConnection, connect
from aiaas.limits.redis_url import RedisUrl, StorePlace
from aiaas.limits.resp import RedisReplyError, Reply

SLOTS: Final = 16384


class SlotRange(NamedTuple):
    """Slots from `first` to `last`, both included, and the node that has them."""

    first: int
    last: int
    place: StorePlace


class Redirect(NamedTuple):
    """The node that a cluster redirects us to. `once`: only for this command (ASK), not from now on (MOVED)."""

    slot: int
    place: StorePlace
    once: bool


def slot_of(tag: str) -> int:
    """The slot of keys with the hash tag `{tag}`."""
    return crc_hqx(tag.encode(), 0) % SLOTS


def redirect_of(error: RedisReplyError, asked: StorePlace) -> Redirect | None:
    """Read MOVED and ASK; None for another error. A node that does not know its own name leaves the host out."""
    code, _, rest = str(error).partition(" ")
    slot, _, address = rest.partition(" ")
    host, _, port = address.rpartition(":")
    if code not in ("MOVED", "ASK") or not (slot.isdecimal() and port.isdecimal()):
        return None
    return Redirect(int(slot) % SLOTS, StorePlace(host.strip("[]") or asked.host, int(port)), code == "ASK")


def slot_ranges(reply: Reply, asked: StorePlace) -> list[SlotRange]:
    """Read the reply to CLUSTER SLOTS. Raises StoreAwayError for another reply, or where no node has a slot."""
    ranges = []
    for row in reply if isinstance(reply, list) else ():
        match row:
            case [int(first), int(last), [host, int(port), *_], *_] if 0 <= first <= last < SLOTS:
                name = host.decode() if isinstance(host, bytes) else ""
                ranges.append(SlotRange(first, last, StorePlace(name if name not in ("", "?") else asked.host, port)))
            case _:
                raise StoreAwayError(f"{asked} sent an invalid answer to CLUSTER SLOTS")
    if not ranges:
        raise StoreAwayError(f"{asked} does not know a node with slots; has the cluster been created?")
    return ranges


async def find_primary(url: RedisUrl, tls: ssl.SSLContext | None) -> StorePlace:
    """Ask the sentinels, one after the other, until one names the primary. Raises StoreAwayError."""
    reasons = []
    for place in url.places:
        try:
            connection = await connect(url, place, tls, sentinel=True)
            try:
                found = await connection.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", url.service)
            finally:
                connection.lose("asked")
        except (StoreAwayError, RedisReplyError) as error:
            reasons.append(str(error))
            continue
        match found:
            case [bytes() as host, bytes() as port] if port.isdigit():
                return StorePlace(host.decode(), int(port))
        reasons.append(f"the sentinel {place} does not know a primary named {url.service}")
    raise StoreAwayError("; ".join(reasons))


async def find_slots(
    url: RedisUrl, tls: ssl.SSLContext | None, connections: Iterable[tuple[StorePlace, StoreConnection]]
) -> list[SlotRange]:
    """Ask the connected nodes, then those of the config, until one answers. Raises StoreAwayError."""
    reason = f"none of the nodes of {url.url} answers"
    for place, connection in connections:
        try:
            return slot_ranges(await connection.call("CLUSTER", "SLOTS"), place)
        except (StoreAwayError, RedisReplyError) as error:
            reason = str(error)
    for place in url.places:
        try:
            connection = await connect(url, place, tls)
            try:
                return slot_ranges(await connection.call("CLUSTER", "SLOTS"), place)
            finally:
                connection.lose("asked")
        except (StoreAwayError, RedisReplyError) as error:
            reason = str(error)
    raise StoreAwayError(reason)


async def find_place(url: RedisUrl, tls: ssl.SSLContext | None, tag: str) -> StorePlace:
    """The server that has the keys with the hash tag `{tag}`. Raises StoreAwayError."""
    if url.kind == "server":
        return url.places[0]
    if url.kind == "sentinel":
        return await find_primary(url, tls)
    slot = slot_of(tag)
    for first, last, place in await find_slots(url, tls, ()):
        if first <= slot <= last:
            return place
    raise StoreAwayError(f"{url.url}: no node has slot {slot}")
