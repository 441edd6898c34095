"""The connections of one port, and the handler that answers their requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.hooks import Hooks
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.client.path_prefix import NO_PREFIX, PrefixedPaths
from aiaas.proxy.client.places import Guest
from aiaas.proxy.client.refusal import ConnectionLimits

Handle = Callable[[HttpRequest, ClientConnection], Coroutine[Any, Any, bool]]


class OpenSide:
    """Makes the connections of one port, and closes them.

    handle  answers a request, and returns whether its connection stays open
    prefix  in front of all paths
    """

    def __init__(
        self, handle: Handle, limits: ConnectionLimits, hooks: Hooks, prefix: PrefixedPaths = NO_PREFIX
    ) -> None:
        self.handle = handle
        self.prefix = prefix
        self.limits = limits
        self.hooks = hooks
        self._open: dict[ClientConnection, None] = {}
        self._loop = asyncio.get_running_loop()

    def __call__(self, guest: Guest | None = None) -> ClientConnection:
        """Make the protocol of one new connection, which has the place `guest`."""
        return ClientConnection(self, self._loop, guest)

    def opened(self, connection: ClientConnection) -> None:
        """A connection has its transport."""
        self._open[connection] = None

    def closed(self, connection: ClientConnection) -> None:
        """A connection has lost its transport."""
        self._open.pop(connection, None)

    @property
    def connections(self) -> list[ClientConnection]:
        """The open connections, the oldest first."""
        return list(self._open)

    async def shutdown(self, timeout: float) -> None:
        """Close all connections: idle ones now, the others behind their answers, which have `timeout` seconds."""
        open_now = self.connections
        for connection in open_now:
            connection.close()
        await asyncio.gather(*(connection.shutdown(timeout) for connection in open_now))
