"""The servers of the shared store: one, or each primary of a cluster; finds the server of a key.

In a cluster a key's slot may move while requests run. MOVED holds from now on, and makes us fetch the map again; so
does a lost node, whose slots another may get. ASK holds for one command.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from aiaas.limits.connection import StoreAwayError, StoreConnection
from aiaas.limits.node import RETRY_FIRST, RETRY_LONGEST, Owner, StoreNode
from aiaas.limits.redis_url import RedisUrl, StorePlace
from aiaas.limits.topology import SLOTS, Redirect, SlotRange, find_primary, find_slots, slot_of

_TAGS: Final = 16 * SLOTS  # tried until one is in a given node's slots; with three nodes the first few do


class Servers:
    """`run` keeps the connections. `owner` prepares each of them.

    interval  seconds between two beats
    """

    def __init__(
        self, url: RedisUrl, tls: ssl.SSLContext | None, owner: Owner, patience: float, interval: float
    ) -> None:
        self._url = url
        self._tls = tls
        self._owner = owner
        self._patience = patience
        self._interval = interval
        self._nodes: dict[StorePlace, StoreNode] = {}  # in a cluster; of one server or primary there is `_one`
        self._one = None if url.kind == "cluster" else self._node(self._find)
        self._owners: list[StoreNode | None] = [None] * SLOTS
        self._map_is_old = asyncio.Event()

    @property
    def up(self) -> bool:
        """Whether all servers are reachable."""
        nodes = self.nodes()
        return bool(nodes) and all(node.ready for node in nodes)

    @property
    def is_cluster(self) -> bool:
        """Whether the keys are spread over several servers."""
        return self._one is None

    def nodes(self) -> list[StoreNode]:
        """All known nodes."""
        return list(self._nodes.values()) if self._one is None else [self._one]

    def of(self, key: str) -> StoreNode:
        """The server that has an API key. Raises StoreAwayError where it is unknown."""
        node = self._one or self._owners[slot_of(key)]
        if node is None:
            self._map_is_old.set()
            raise StoreAwayError("the cluster node of its slot is unknown")
        return node

    def has(self, node: StoreNode, key: str) -> bool:
        """Whether `node` is the server of an API key."""
        return (self._one or self._owners[slot_of(key)]) is node

    def follow(self, patience: float) -> None:
        """Use this patience from now on."""
        self._patience = patience
        for node in self.nodes():
            node.patience = patience
            if node.connection is not None:
                node.connection.patience = patience

    def follow_redirect(self, redirect: Redirect) -> StoreNode:
        """The node that a cluster sends us to."""
        node = self._node_at(redirect.place)
        if not redirect.once:
            self._owners[redirect.slot] = node
        if not redirect.once or not node.ready:
            self._map_is_old.set()
        return node

    def probe_key(self, node: StoreNode) -> str:
        """A key that this server should have."""
        tags = (f"probe{number or ''}" for number in range(_TAGS))
        return f"aiaas:{{{next((tag for tag in tags if self.has(node, tag)), 'probe')}}}"

    def look_again(self) -> None:
        """Fetch the map again: a server is away, so the map may change."""
        self._map_is_old.set()

    async def run(self, failed: Callable[[str], None]) -> None:
        """Connect, reconnect, follow the map; until cancelled. `failed` gets the reason if there is no map."""
        if self._one is not None:
            await self._one.run()
            return
        async with asyncio.TaskGroup() as group:
            tasks: dict[StoreNode, asyncio.Task[None]] = {}
            pause = RETRY_FIRST  # fetch the map once for the many redirects of one move
            while True:
                self._map_is_old.clear()
                try:
                    ranges = await find_slots(self._url, self._tls, self._ready_connections())
                except StoreAwayError as error:
                    failed(str(error))
                    pause = min(2 * pause, RETRY_LONGEST)
                else:
                    await self._use(ranges, tasks, group.create_task)
                    pause = RETRY_FIRST
                    await self._map_is_old.wait()
                await asyncio.sleep(pause)

    async def close(self) -> None:
        """Wait briefly for open commands, then end the connections. `run` has ended before."""
        await asyncio.gather(*(node.close() for node in self.nodes()))

    # -- steps ----------------------------------------------------------------------------------------------------

    async def _use(
        self,
        ranges: Sequence[SlotRange],
        tasks: dict[StoreNode, asyncio.Task[None]],
        begin: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """Connect to new nodes, and leave those that have no slots any more."""
        owners: list[StoreNode | None] = [None] * SLOTS
        for first, last, place in ranges:
            owners[first : last + 1] = [self._node_at(place)] * (last - first + 1)
        self._owners = owners
        used = {node for node in owners if node is not None}
        self._nodes = {place: node for place, node in self._nodes.items() if node in used}
        for node in used - tasks.keys():
            tasks[node] = begin(node.run())
        for node in tasks.keys() - used:
            tasks.pop(node).cancel()
            await node.close()

    def _ready_connections(self) -> list[tuple[StorePlace, StoreConnection]]:
        return [(node.place, node.asked()) for node in self.nodes() if node.ready]

    def _node(self, find: Callable[[], Coroutine[Any, Any, StorePlace]]) -> StoreNode:
        return StoreNode(self._url, self._tls, find, self._owner, self._patience, self._interval)

    def _node_at(self, place: StorePlace) -> StoreNode:
        """The cluster's node at `place`; a new one is connected when the map is fetched again."""
        node = self._nodes.get(place)
        if node is None:

            async def find() -> StorePlace:
                return place

            node = self._nodes[place] = self._node(find)
        return node

    async def _find(self) -> StorePlace:
        if self._url.kind == "sentinel":
            return await find_primary(self._url, self._tls)
        return self._url.places[0]
